"""Headless Chromium for tests of pages; they skip in words where it or selenium is absent."""

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
