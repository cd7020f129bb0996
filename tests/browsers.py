"""Headless Chromium for tests of pages; they skip in words where it or selenium is absent."""

import json
import shutil
from pathlib import Path

import pytest

OFF = ("extensions", "background-networking", "component-update", "sync", "quic", "gpu", "default-apps")


def chromium(profile: Path, *arguments: str):
    """A driver of a browser with a fresh profile, which reaches for nothing by itself. To be quit."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install selenium")
    from selenium.webdriver.chrome.service import Service

    programs = [
        next(filter(None, map(shutil.which, names)), None)
        for names in (("chromium", "chromium-browser", "google-chrome"), ("chromedriver", "chromium.chromedriver"))
    ]
    if None in programs:
        pytest.skip("no chromium and chromedriver here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for argument in ("headless=new", "no-sandbox", "no-first-run", f"user-data-dir={profile}", *arguments):
        options.add_argument(f"--{argument}")
    for name in OFF:
        options.add_argument(f"--disable-{name}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=Service(programs[1]))


def size(browser, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def one(page, selector: str):
    return page.find_element("css selector", selector)


def every(page, selector: str) -> list:
    return page.find_elements("css selector", selector)


def style(page, selector: str, name: str) -> str:
    return page.execute_script(
        "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]", selector, name
    )


def press(page, *keys: str) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    for key in keys:
        ActionChains(page).send_keys(getattr(Keys, key, key)).perform()


def dark(page, on: bool) -> None:
    """Whether the page is shown as the reader of a dark desktop sees it."""
    scheme = {"name": "prefers-color-scheme", "value": "dark" if on else "light"}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": [scheme]})


def requested(page) -> set[str]:
    """The addresses that were asked for since the last call, without those of the page's own data."""
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    urls = {one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"}
    return {url for url in urls if not url.startswith(("data:", "blob:"))}
