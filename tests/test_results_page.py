"""The results page in headless Chromium: filters, search, keys, thumbnails, thousands of rows, and nothing fetched."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from browsers import chromium, dark, every, one, press, requested, size, style

from jaxpneumo.predict import predict
from jaxpneumo.predict.manifest import SYNTHETIC_NOTE
from jaxpneumo.predict.results_page import write_page
from jaxpneumo.predict.results_table import ResultRow
from jaxpneumo.process.errors import PARTIAL

WIDTHS = (1280, 800)
HEADER = {
    "model": "a" * 64,
    "settings": {"threshold": 0.5, "removal_threshold": 2048, "removal_rule": "image"},
    "bands": {"low": 0.25, "high": 0.75, "calibrated": False},
    "note": SYNTHETIC_NOTE,
}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    # Without smooth scrolling, so that a click finds its target at rest.
    driver = chromium(tmp_path_factory.mktemp("profile"), "force-prefers-reduced-motion")
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def path(evaluated, radiographs, tmp_path_factory) -> Path:
    """The page of a prediction."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "in").mkdir()
    for file in sorted((radiographs / "dicom").rglob("*.dcm"))[:8]:
        (folder / "in" / file.name).write_bytes(file.read_bytes())
    (folder / "in/<script>alert(1)<").write_text("not a radiograph")
    arguments = ["--workdir", str(evaluated), "--input", str(folder / "in"), "--output", str(folder / "out")]
    assert predict.main([*arguments, "--removal-threshold", "740000"]) == PARTIAL
    return folder / "out/index.html"


@pytest.fixture
def page(browser, path):
    """The page just opened, as wide as a desktop's."""
    size(browser, WIDTHS[0])
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(path.as_uri())
    yield browser
    assert [entry["message"] for entry in browser.get_log("browser")] == []


def shown(page) -> list[str]:
    return [row.get_attribute("data-id") for row in every(page, "tbody tr")]


def rows_of(path: Path) -> list[dict[str, str]]:
    """The table's rows, the highest score first."""
    with open(path.parent / "results.csv") as file:
        return sorted(csv.DictReader(file), key=lambda row: -float(row["score"] or -1))


def data_of(path: Path) -> dict:
    """What the page's script draws."""
    return json.loads(path.read_text().split('id="data">')[1].split("</script>")[0])


def test_rows_come_by_score_with_pictures_and_words(page, path):
    rows = rows_of(path)
    assert shown(page) == [row["id"] or row["file"] for row in rows]
    assert "<script>alert(1)<" in shown(page)[-1]
    text = one(page, "tbody tr").text
    assert rows[0]["result"] in text
    assert f"{float(rows[0]['score']):.3f}" in text
    assert f"{int(rows[0]['area']):,} px" in text
    loaded = "return [...document.images].every((image) => image.complete && image.naturalWidth > 0)"
    assert page.execute_script(loaded)
    assert len(every(page, "tbody img[loading=lazy]")) == len(rows) - 1
    assert "set aside" in every(page, "tbody tr")[-1].text
    banners = [banner.text for banner in every(page, ".banner")]
    assert "Not a medical device" in banners[0]
    assert SYNTHETIC_NOTE in banners[1]


def test_filters_search_and_counts(page, path):
    rows = rows_of(path)
    for kind in ("found", "nothing found", "uncertain", "set aside", "all"):
        one(page, f'input[value="{kind}"]').click()
        wanted = [r["id"] or r["file"] for r in rows if kind in ("all", r["result"], r["certainty"])]
        assert shown(page) == wanted
        assert one(page, ".none").is_displayed() == (not wanted)
        label = one(page, f'input[value="{kind}"]').find_element("xpath", "..")
        assert label.text == f"{kind} {len(wanted)}"
    one(page, ".query").send_keys(rows[3]["id"][-12:])
    assert shown(page) == [rows[3]["id"]]
    one(page, ".query").send_keys("zzz")
    assert shown(page) == []
    assert "No result fits" in one(page, ".none").text


def test_keys_reach_everything_with_focus_in_sight(page):
    press(page, "TAB")
    assert page.switch_to.active_element.text == "Skip to the results"
    press(page, "TAB", "ARROW_RIGHT")
    assert one(page, 'input[value="found"]').is_selected()
    press(page, "TAB")
    assert page.switch_to.active_element.get_attribute("class") == "query"
    press(page, "TAB")
    link = page.switch_to.active_element
    assert link.get_attribute("href").endswith(f"/overlays/{shown(page)[0]}.png")
    assert page.execute_script("return getComputedStyle(document.activeElement).outlineStyle") == "solid"


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_overflows_and_dark_is_dark(page, width):
    size(page, width)
    assert page.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    light = style(page, "body", "backgroundColor")
    dark(page, True)
    assert style(page, "body", "backgroundColor") != light
    dark(page, False)


def test_only_the_pictures_beside_it_are_fetched(page, path):
    assert page.execute_script("return document.images.length") > 0
    allowed = {path.as_uri(), *(file.as_uri() for file in (path.parent / "overlays").iterdir())}
    assert requested(page) <= allowed


def test_three_thousand_rows_are_small_and_drawn_in_pages(browser, tmp_path):
    rows = [
        ResultRow(
            id=f"2.25.{10**36 + number}",
            file=f"{number}.dcm",
            result="found" if number % 3 else "nothing found",
            certainty="uncertain" if number % 5 == 0 else "likely",
            why="the score is between 0.250 and 0.750" if number % 5 == 0 else "",
            score=(number * 7919 % 3000) / 3000,
            area=1000 * (number % 3),
            area_mm2=19.3 * (number % 3),
            largest=900 * (number % 3),
            side="left" if number % 3 else "",
            picture=0,
        )
        for number in range(3000)
    ]
    path = tmp_path / "index.html"
    write_page(path, rows, HEADER, [tmp_path])
    assert path.stat().st_size < 400_000
    size(browser, 1280)
    browser.get(path.as_uri())
    assert len(shown(browser)) == 50
    assert one(browser, ".place").text == "1 to 50 of 3,000"
    assert "not calibrated" in one(browser, ".rule").text
    assert one(browser, ".facts").text == "model aaaaaaaaaaaa, B-TH 0.5, R-TH 2048 px (image)"
    started = browser.execute_script("return performance.now()")
    for _ in range(3):
        one(browser, ".next").click()
    assert browser.execute_script("return performance.now()") - started < 10_000
    assert one(browser, ".place").text == "151 to 200 of 3,000"
    scores = [float(cell.text) for cell in every(browser, "tbody td:nth-child(3)")]
    assert scores == sorted(scores, reverse=True)
    one(browser, ".query").send_keys(rows[2999].id)
    assert shown(browser) == [rows[2999].id]
    browser.get_log("browser")  # of pictures that are not there


def test_more_rows_than_a_page_holds_are_left_to_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxpneumo.predict.results_page.MOST", 2)
    rows = [ResultRow(id=str(n), file=f"{n}.dcm", result="found", score=n / 10, area=1) for n in range(5)]
    write_page(tmp_path / "index.html", rows, HEADER, [tmp_path])
    data = data_of(tmp_path / "index.html")
    assert (data["total"], [row[0] for row in data["rows"]]) == (5, ["4", "3"])


def test_what_the_gate_emptied_is_told(browser, tmp_path):
    rows = [ResultRow(id=f"{n}", file=f"{n}.dcm", result="nothing found", area=0, score=1 - n / 2) for n in range(2)]
    write_page(tmp_path / "index.html", [replace(rows[0], emptied_by="gate"), rows[1]], HEADER, [tmp_path])
    browser.get((tmp_path / "index.html").as_uri())
    told = [[cell.text for cell in row.find_elements("css selector", ".why")] for row in every(browser, "tbody tr")]
    assert told == [["the gate left it empty, the network outlined something"], []]
    browser.get_log("browser")  # of pictures that are not there


def test_all_thresholds_and_the_gate_are_named(tmp_path):
    """Whatever may leave an image empty."""
    triplet = {**HEADER["settings"], "top_threshold": 0.7, "top_area": 512, "classifier_threshold": 0.4}
    for settings, words in (
        (HEADER["settings"], "model aaaaaaaaaaaa, B-TH 0.5, R-TH 2048 px (image)"),
        (
            triplet | {"removal_threshold": 0, "gate": {**HEADER["settings"], "model": "b" * 64}},
            "model aaaaaaaaaaaa, top 0.7, area 512 px, bottom 0.5, classifier 0.4 · images stay empty where the gate "
            "outlines nothing: model bbbbbbbbbbbb, B-TH 0.5, R-TH 2048 px (image)",
        ),
    ):
        write_page(tmp_path / "index.html", [], {**HEADER, "settings": settings}, [tmp_path])
        assert data_of(tmp_path / "index.html")["facts"] == words
    write_page(tmp_path / "index.html", [], {**HEADER, "model": f"{'a' * 64}+{'b' * 64}", "settings": {}}, [tmp_path])
    assert data_of(tmp_path / "index.html")["facts"] == "models aaaaaaaaaaaa, bbbbbbbbbbbb"
