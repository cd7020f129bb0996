"""The report in headless Chromium: no errors, nothing fetched, sliders, keys, filters, words, and no overflow."""

import shutil
import time

import pytest
from browsers import chromium, every, one, press, requested, size, style

from jaxpneumo.report import report

WIDTHS = (1280, 820)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    # Without smooth scrolling, so that a click finds its target at rest.
    driver = chromium(tmp_path_factory.mktemp("profile"), "force-prefers-reduced-motion")
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def path(evaluated, tmp_path_factory):
    folder = shutil.copytree(evaluated, tmp_path_factory.mktemp("browser") / "run")
    return report.write_report(folder)[0]


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
    return [case.get_attribute("data-image-id") for case in every(page, ".cases > li") if case.is_displayed()]


def chosen(page) -> str:
    return one(page, ".viewer").get_attribute("data-image-id")


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_overflows_and_every_picture_is_there_with_words(page, width):
    size(page, width)
    assert page.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    pictures = every(page, "img")
    assert len(pictures) > 10
    assert all(len(picture.get_attribute("alt")) > 20 for picture in pictures)
    loaded = "return [...document.images].every((image) => image.complete && image.naturalWidth > 0)"
    assert page.execute_script(loaded)
    place, viewer = (one(page, selector).rect for selector in (".list", ".viewer"))
    beside = place["x"] >= viewer["x"] + viewer["width"]
    assert beside == (width == 1280)


def test_nothing_is_fetched(page, path):
    assert requested(page) == {path.as_uri()}


def test_arrow_keys_step_with_focus_in_sight(page):
    cases = shown(page)
    one(page, ".cases > li:first-child .card").click()
    assert chosen(page) == cases[0]
    press(page, "ARROW_RIGHT")
    press(page, "ARROW_RIGHT")
    assert chosen(page) == cases[2]
    active = page.switch_to.active_element
    assert active.find_element("xpath", "..").get_attribute("data-image-id") == cases[2]
    assert page.execute_script("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert one(page, ".stage img").get_attribute("src") == active.find_element("css selector", "img").get_attribute(
        "src"
    )
    assert cases[2] in one(page, ".stage img").get_attribute("alt")
    assert cases[2] in one(page, ".facts").text
    press(page, "ARROW_LEFT")
    assert chosen(page) == cases[1]
    press(page, "END")
    assert chosen(page) == cases[-1]
    press(page, "ARROW_RIGHT")
    assert chosen(page) == cases[-1]
    press(page, "HOME", "ARROW_DOWN")
    tops = [case.rect["y"] for case in every(page, ".cases > li")]
    assert chosen(page) == cases[sum(top == tops[0] for top in tops)]
    one(page, ".next").click()
    assert len(every(page, '.card[aria-pressed="true"]')) == 1


def test_sliders_change_outlines_masks_and_brightness(page):
    path = ".stage path.prediction"
    assert (style(page, path, "strokeOpacity"), style(page, path, "fillOpacity")) == ("1", "0")
    before = chosen(page)
    one(page, ".outline-opacity").click()
    press(page, "HOME")
    assert style(page, path, "strokeOpacity") == "0"
    press(page, "ARROW_RIGHT")
    assert float(style(page, path, "strokeOpacity")) == pytest.approx(0.01)
    one(page, ".fill-opacity").click()
    press(page, "END")
    assert style(page, path, "fillOpacity") == "1"
    one(page, ".brightness").click()
    press(page, "END")
    assert style(page, ".stage img", "filter") == "brightness(2.5)"
    assert chosen(page) == before


def test_outlines_can_be_hidden(page):
    one(page, ".show-truth").click()
    assert style(page, ".stage path.truth", "display") == "none"
    assert style(page, ".stage path.prediction", "display") != "none"
    one(page, ".cases .card").click()
    press(page, "h")
    assert style(page, ".stage path.prediction", "display") == "none"
    press(page, "h")
    assert style(page, ".stage path.prediction", "display") != "none"


def test_filters_and_order(page):
    cases = shown(page)
    for kind in ("positive", "miss", "false-alarm", "all"):
        one(page, f'input[value="{kind}"]').click()
        expected = [c.get_attribute("data-image-id") for c in every(page, f'.cases > li[data-kinds~="{kind}"]')]
        assert shown(page) == expected
        assert one(page, ".none").is_displayed() == (not expected)
        assert one(page, ".viewer").is_displayed() == bool(expected)
        assert not expected or chosen(page) in expected
    one(page, '.order option[value="worst"]').click()
    assert shown(page) == cases[::-1]


def test_dark_and_print(page):
    light = style(page, "body", "backgroundColor")
    emulate = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", emulate)
    try:
        time.sleep(0.1)
        assert style(page, "body", "backgroundColor") != light
        figure = "return document.querySelector('figure img').currentSrc !== document.querySelector('figure img').src"
        assert page.execute_script(figure)
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", **emulate})
        time.sleep(0.1)
        assert style(page, "body", "backgroundColor") == "rgb(255, 255, 255)"
        assert not one(page, ".viewer").is_displayed()
        assert len(shown(page)) == len(every(page, ".cases > li"))
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
