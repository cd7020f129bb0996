"""The page in headless Chromium: files in, areas as `predict` has them, slider, keys, words, and no overflow."""

import json
import time

import numpy as np
import pytest
from browsers import chromium, dark, every, one, press, requested, size, style
from serving import OUTLINING, options_of, predictor_of, serving

from jaxpneumo.data import rle
from jaxpneumo.dicom import dicom
from jaxpneumo.predict import predict
from jaxpneumo.predict.png import write_png
from jaxpneumo.predict.postprocess import remove_small
from jaxpneumo.predict.submission import read_submission
from jaxpneumo.process.errors import DONE

WIDTHS = (1280, 800)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    # Without smooth scrolling, so that a click finds its target at rest.
    driver = chromium(tmp_path_factory.mktemp("profile"), "force-prefers-reduced-motion")
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def server(evaluated):
    with serving(predictor_of(evaluated)) as server:
        yield server


@pytest.fixture(scope="module")
def files(radiographs):
    return sorted((radiographs / "dicom").rglob("*.dcm"))


@pytest.fixture(scope="module")
def areas(evaluated, files, tmp_path_factory):
    """What `jaxpneumo predict` outlines in the first three files, alone, at a threshold: file -> pixels."""

    def at(threshold):
        found = {}
        for number, file in enumerate(files[:3]):
            output = tmp_path_factory.mktemp(f"out{number}")
            arguments = ["--workdir", str(evaluated), "--input", str(file), "--output", str(output)]
            assert predict.main([*arguments, *options_of(threshold)]) == DONE
            ((code),) = read_submission(output / "submission.csv").values()
            found[file] = int(rle.decode(code, *dicom.read(file).image.shape).sum())
        return found

    return at


@pytest.fixture
def page(browser, server):
    """The page just opened, as wide as a desktop's, without complaints of the browser in the end."""
    size(browser, WIDTHS[0])
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(server.address)
    yield browser
    complaints = [entry["message"] for entry in browser.get_log("browser")]
    assert [one for one in complaints if "status of 400" not in one] == []


def until(condition, seconds: float = 30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def give(page, *paths, total: int | None = None) -> None:
    """Chooses files and waits until all are answered and one is shown."""
    one(page, "#choose-files").send_keys("\n".join(map(str, paths)))
    count = total or len(paths)
    until(lambda: one(page, "#progress").text == f"{count} read")
    until(lambda: every(page, '#list button[aria-current="true"]') == every(page, "#list button")[:1])
    until(lambda: one(page, "#place").text.startswith("1 of"))


def names(page) -> list[str]:
    return [button.get_attribute("title") for button in every(page, "#list button")]


def chosen(page) -> str:
    return one(page, '#list button[aria-current="true"]').get_attribute("title")


def area(page) -> int:
    """The area on the screen."""
    return int(one(page, "#area").text.removesuffix(" px").replace(",", ""))


def computed(page) -> int:
    """The area that the browser has computed itself."""
    return int(one(page, "#area").get_attribute("data-computed"))


class TestFinding:
    def test_areas_equal_predicts_and_the_list_is_sorted_by_score(self, page, files, areas):
        give(page, *files[:3])
        expected = areas(OUTLINING["threshold"])
        assert any(expected.values())
        scores = [float(text.text) for text in every(page, "#list b")]
        assert scores == sorted(scores, reverse=True)
        for name in names(page):
            until(lambda name=name: chosen(page) == name and name in one(page, "#marked img").get_attribute("alt"))
            (file,) = [file for file in files if file.name == name]
            assert (area(page), computed(page)) == (expected[file], expected[file])
            assert (one(page, "#finding").text == "Pneumothorax outlined") == (expected[file] > 0)
            assert bool(one(page, "#marked path").get_attribute("d")) == (expected[file] > 0)
            millimetres = float(one(page, "#area-mm2").text.removesuffix(" mm²").replace(",", ""))
            assert millimetres == pytest.approx(expected[file] * 0.139**2, abs=0.051)
            press(page, "ARROW_DOWN")

    def test_the_slider_needs_no_request_and_agrees_with_predict(self, page, files, areas):
        give(page, *files[:3])
        page.get_log("performance")
        one(page, "#threshold").click()
        press(page, "r", *["["] * 10)
        assert one(page, "#threshold-value").text == "0.25"
        file = next(file for file in files if file.name == chosen(page))
        # Host and device may round a probability's last bit otherwise.
        assert area(page) == pytest.approx(areas(0.25)[file], abs=1)
        assert "(at 0.30)" in one(page, "#certainty").text
        press(page, "]")
        assert one(page, "#threshold-value").text == "0.255"
        press(page, "END")
        assert (one(page, "#threshold-value").text, area(page)) == ("1.00", 0)
        assert one(page, "#finding").text == "No pneumothorax outlined"
        one(page, "#own").click()
        assert one(page, "#threshold-value").text == "0.30"
        assert requested(page) == set()

    @pytest.mark.parametrize("rule", ["image", "component"])
    def test_regions_follow_the_removal_rules_of_predict(self, page, rule):
        rng = np.random.default_rng(7)
        for top_level, top_area, removal in ((None, 0, 0), (None, 0, 20_000), (3, 300_000, 90_000), (3, 1, 900_000)):
            levels = rng.integers(0, 5, (40, 56), np.uint8)
            rules = {"removal": removal, "rule": rule, "topLevel": top_level, "topArea": top_area, "emptied": False}
            for level in (1, 3, 4, 5):
                expected = remove_small((levels >= level).astype(np.uint8), removal, rule)
                if top_level and np.count_nonzero(levels >= top_level) < top_area * levels.size / 1024**2:
                    expected[:] = 0
                script = (
                    "const [levels, level, rules] = arguments; const bytes = Uint8Array.from(levels);"
                    "const found = region(bytes, 56, 40, level, rules, countReached(bytes));"
                    "return [found.area, found.mask && [...found.mask]]"
                )
                found, mask = page.execute_script(script, levels.ravel().tolist(), level, rules)
                assert found == expected.sum()
                assert (mask or [0] * levels.size) == expected.ravel().tolist()

    def test_an_outline_encloses_the_region_and_nothing_else(self, page):
        rng = np.random.default_rng(3)
        for share in (0.1, 0.5, 0.9, 1.0):
            mask = (rng.random((30, 41)) < share).astype(np.uint8)
            # Filled anew by the browser, pixel by pixel
            script = (
                "const canvas = new OffscreenCanvas(41, 30), pen = canvas.getContext('2d');"
                "pen.fill(new Path2D(outline(Uint8Array.from(arguments[0]), 41, 30)), 'evenodd');"
                "return [...pen.getImageData(0, 0, 41, 30).data].filter((value, i) => i % 4 === 3)"
            )
            filled = np.array(page.execute_script(script, mask.ravel().tolist())).reshape(mask.shape)
            np.testing.assert_array_equal(filled, 255 * mask)


class TestFiles:
    def test_one_that_cannot_be_used_says_why(self, page, files, tmp_path):
        (tmp_path / "notes.txt").write_text("no radiograph")
        write_png(tmp_path / "a.png", dicom.read(files[0]).image)
        give(page, tmp_path / "notes.txt", tmp_path / "a.png")
        assert one(page, "#refused summary").text == "1 file not used"
        assert "notes.txt is not a DICOM, PNG or JPEG file" in one(page, "#refused li").text
        assert names(page) == ["a.png"]
        assert one(page, "#area-mm2").text == "mm² unknown: no pixel spacing"

    def test_a_folder_is_read_at_any_depth(self, page, files, tmp_path):
        for name in ("one/a.png", "one/two/b.png"):
            write_png(tmp_path / name, dicom.read(files[0]).image)
        one(page, "#choose-folder").send_keys(str(tmp_path))
        until(lambda: one(page, "#progress").text == "2 read")
        until(lambda: len(names(page)) == 2)
        assert sorted(name.split("/", 1)[1] for name in names(page)) == ["one/a.png", "one/two/b.png"]

    def test_one_that_is_dropped_is_read(self, page, files):
        image = [int(value) for value in (files[0]).read_bytes()]
        script = (
            "const data = new DataTransfer();"
            "data.items.add(new File([Uint8Array.from(arguments[0])], 'dropped.dcm'));"
            "document.dispatchEvent(new DragEvent('dragover', { dataTransfer: data, cancelable: true }));"
            "const shown = !document.querySelector('#drop-here').hidden;"
            "document.dispatchEvent(new DragEvent('drop', { dataTransfer: data, cancelable: true }));"
            "return shown && document.querySelector('#drop-here').hidden"
        )
        assert page.execute_script(script, image)
        until(lambda: names(page) == ["dropped.dcm"])

    def test_one_that_is_too_large_is_not_sent(self, page, tmp_path):
        with open(tmp_path / "large.dcm", "wb") as file:
            file.truncate((64 << 20) + 1)
        page.get_log("performance")
        one(page, "#choose-files").send_keys(str(tmp_path / "large.dcm"))
        until(lambda: "It has 65 MiB" in one(page, "#refused").text)
        assert requested(page) == set()

    def test_nothing_goes_anywhere_but_to_the_server(self, page, server, files):
        give(page, files[0])
        assert requested(page) == {server.address, f"{server.address}radiographs"}

    def test_a_server_that_is_gone_is_told_and_asked_again(self, page, files):
        page.execute_script("window.fetched = window.fetch; window.fetch = () => Promise.reject(new TypeError())")
        one(page, "#choose-files").send_keys(str(files[0]))
        until(lambda: "No answer from the server, 1 not read" in one(page, "#progress").text)
        page.execute_script("window.fetch = window.fetched")
        one(page, "#again").click()
        until(lambda: one(page, "#progress").text == "1 read")

    def test_pictures_beyond_the_memory_kept_are_asked_for_again(self, page, server, files):
        small = "const parse = JSON.parse; JSON.parse = (text) => ({ ...parse(text), mostKept: 1 })"
        script = page.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": small})
        try:
            page.get(server.address)
            give(page, *files[:3])
            page.get_log("performance")
            for _ in range(2):
                press(page, "END")
                until(lambda: names(page)[2] in one(page, "#marked img").get_attribute("alt"))
                press(page, "HOME")
                until(lambda: names(page)[0] in one(page, "#marked img").get_attribute("alt"))
            assert requested(page) == {f"{server.address}radiographs"}
            assert len(names(page)) == 3
        finally:
            page.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)


class TestView:
    def test_keys(self, page, files):
        give(page, *files[:3])
        listed = names(page)
        one(page, "#list button").click()
        press(page, "ARROW_RIGHT", "ARROW_DOWN")
        assert chosen(page) == listed[2]
        assert page.switch_to.active_element.get_attribute("title") == listed[2]
        press(page, "ARROW_RIGHT")
        assert chosen(page) == listed[2]
        press(page, "ARROW_LEFT", "HOME", "ARROW_UP")
        assert (chosen(page), one(page, "#place").text) == (listed[0], "1 of 3")
        press(page, "END")
        assert chosen(page) == listed[2]
        assert not one(page, "#marked canvas").is_displayed()
        press(page, "h")
        assert one(page, "#marked canvas").is_displayed()
        assert one(page, "#legend").is_displayed()
        assert not one(page, "#plain").is_displayed()
        press(page, "s")
        assert one(page, "#plain").is_displayed()
        press(page, "o")
        assert style(page, "#marked path", "display") == "none"
        press(page, "?")
        assert one(page, "#help").is_displayed()
        press(page, "h", "ESCAPE")
        assert not one(page, "#help").is_displayed()
        assert one(page, "#show-heat").get_attribute("aria-pressed") == "true"

    def test_the_heat_map_shows_the_probability(self, page, files):
        give(page, files[0])
        press(page, "h")
        script = (
            "const canvas = document.querySelector('#marked canvas');"
            "return [canvas.width, [...canvas.getContext('2d').getImageData(0, 0, 128, 128).data]]"
        )
        width, pixels = page.execute_script(script)
        alpha = np.array(pixels).reshape(128, 128, 4)[..., 3]
        assert (width, alpha.max() > 0) == (128, True)

    def test_dragging_changes_the_window_and_reset_puts_it_back(self, page, files):
        from selenium.webdriver import ActionChains

        give(page, files[0])
        values = [int(one(page, f"#{name}-value").text) for name in ("width", "level")]
        assert values == [255, 128]
        ActionChains(page).click_and_hold(one(page, "#stage")).move_by_offset(-55, 28).release().perform()
        values = [int(one(page, f"#{name}-value").text) for name in ("width", "level")]
        assert values == [200, 156]
        slope, intercept = (
            float(one(page, "#grey feComponentTransfer > *").get_attribute(name)) for name in ("slope", "intercept")
        )
        # The window's ends are black and white.
        assert slope * (155.5 - 100) / 255 + intercept == pytest.approx(0, abs=1e-6)
        assert slope * (155.5 + 100) / 255 + intercept == pytest.approx(1, abs=1e-6)
        one(page, "#reset").click()
        assert one(page, "#width-value").text == "255"

    def test_downloads_are_saved_under_the_images_name(self, page, files, tmp_path):
        page.execute_cdp_cmd("Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
        give(page, files[0])
        words = ["PNG mask", "PNG outline", "DICOM SEG", "DICOM SR"]
        assert [button.text for button in every(page, "#downloads button")] == words
        every(page, "#downloads button")[0].click()
        name = f"{dicom.read(files[0]).uid}-mask.png"
        until(lambda: [file.name for file in tmp_path.iterdir()] == [name])
        until(lambda: one(page, "#download-note").text == f"PNG mask: saved as {name}, at threshold 0.30.")

    @pytest.mark.parametrize("width", WIDTHS)
    @pytest.mark.parametrize("dark_desktop", [False, True])
    def test_nothing_overflows_and_all_is_labelled(self, page, files, width, dark_desktop, tmp_path):
        (tmp_path / "notes.txt").write_text("no radiograph")
        size(page, width)
        dark(page, dark_desktop)
        try:
            give(page, *files[:3], tmp_path / "notes.txt", total=4)
            press(page, "h", "s")
            page.execute_cdp_cmd("Page.setDownloadBehavior", {"behavior": "deny"})
            one(page, "#downloads button").click()
            until(lambda: "saved as" in one(page, "#download-note").text)
            one(page, "#more summary").click()
            wide = (
                "return [...document.querySelectorAll('html, section')]"
                ".filter((one) => one.scrollWidth > one.clientWidth)"
            )
            assert page.execute_script(wide) == []
            outside = (
                "return [...document.querySelectorAll('main *, header *')].filter((one) => {"
                "  if (!one.checkVisibility() || one.closest('#list, svg')) return false;"
                "  const box = one.getBoundingClientRect();"
                "  const within = one.closest('section, header').getBoundingClientRect();"
                "  return box.width > 1 && (box.left < within.left - 1 || box.right > within.right + 1);"
                "}).map((one) => one.outerHTML.slice(0, 80))"
            )
            assert page.execute_script(outside) == []
            unnamed = (
                "return [...document.querySelectorAll('button, input, summary')].filter((one) => one.checkVisibility()"
                " && !(one.ariaLabel || one.textContent.trim() || (one.labels && one.labels.length))).length"
            )
            assert page.execute_script(unnamed) == 0
            assert len(one(page, "#marked img").get_attribute("alt")) > 20
            assert low_contrast(page) == []
            beside = one(page, "#files").rect["x"] + one(page, "#files").rect["width"] <= one(page, "#viewer").rect["x"]
            assert beside == (width == 1280)
        finally:
            dark(page, False)

    def test_it_says_what_it_is(self, page):
        words = one(page, ".banner").text
        assert "Research use only; not a medical device." in words
        assert "Trained on synthetic radiographs" in words


def low_contrast(page) -> list[str]:
    """Texts whose colour has a contrast of less than 4.5 to 1 with what is behind them (WCAG 2.2, 1.4.3)."""
    script = (
        "const found = [];"
        "for (const one of document.querySelectorAll('body *')) {"
        "  const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());"
        "  if (!own || !one.checkVisibility() || one.matches(':disabled, script, style')) continue;"
        "  let behind = one;"
        "  while (getComputedStyle(behind).backgroundColor === 'rgba(0, 0, 0, 0)') behind = behind.parentElement;"
        "  const colours = [getComputedStyle(one).color, getComputedStyle(behind).backgroundColor];"
        "  found.push([one.textContent.trim().slice(0, 30), ...colours]);"
        "}"
        "return found"
    )

    def luminance(colour: str) -> float:
        parts = np.array([int(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]) / 255
        return float(
            np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)
        )

    texts = page.execute_script(script)
    assert len(texts) > 20
    low = []
    for text, *colours in texts:
        darker, lighter = sorted(map(luminance, colours))
        if (lighter + 0.05) / (darker + 0.05) < 4.5:
            low.append(f"{text}: {json.dumps(colours)}")
    return low
