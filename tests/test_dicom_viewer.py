"""DICOM results in OHIF before Orthanc: the outlined region at its place, both reports as text.

JAXPNEUMO_OHIF names the viewer's folder: `npm pack @ohif/app`, unpack it, and give its `package/dist`. Screenshots lie
in the folder that JAXPNEUMO_SCREENSHOTS names, else among pytest's temporary files.
"""

import os
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from browsers import chromium
from dicom_sources import ALGORITHM
from viewer import ohif, orthanc

from jaxpneumo.dicom import dicom
from jaxpneumo.dicom.outcome import ImageOutcome
from jaxpneumo.predict.dicom_results import write_dicom_results

pytest.importorskip("highdicom", reason="highdicom is not installed: pip install 'jaxpneumo[dicom]'")
pytestmark = pytest.mark.slow
SIDE, BOX = 512, (100, 220, 60, 200)  # rows and columns of the mask, from and to


@pytest.fixture(scope="module")
def dist() -> Path:
    folder = Path(os.environ.get("JAXPNEUMO_OHIF", ""))
    if not (folder / "index.html").is_file():
        pytest.skip("JAXPNEUMO_OHIF names no folder with OHIF: npm pack @ohif/app, then its package/dist")
    return folder


@pytest.fixture(scope="module")
def shots(tmp_path_factory) -> Path:
    folder = Path(os.environ.get("JAXPNEUMO_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def viewer(dist, tmp_path_factory):
    """The driver of a browser and the viewer's address; the archive has a positive and a negative study."""
    folder = tmp_path_factory.mktemp("archive")
    image = np.add.outer(np.arange(SIDE), np.arange(SIDE)).astype(np.uint8) // 2
    mask = np.zeros((SIDE, SIDE), np.uint8)
    files = []
    for number, (rows, spacing) in enumerate((((100, 220), True), ((0, 0), True), ((100, 220), False)), start=1):
        film = folder / f"{number}.dcm"
        dicom.write(film, image, f"1.2.{number}.4", f"P{number}", view="PA", study_uid=f"1.2.{number}")
        if not spacing:
            remove_spacing(film)
        mask[:] = 0
        mask[slice(*rows), slice(*BOX[2:])] = 1
        outcome = ImageOutcome(mask, 0.9, "right" if mask.any() else None)
        written, _ = write_dicom_results(film, outcome, ["seg", "sr"], folder / str(number), ALGORITHM)
        files += [film, *written.values()]
    profile = tmp_path_factory.mktemp("profile")
    with orthanc(folder, files) as archive, ohif(dist, archive) as address:
        driver = chromium(profile, "use-angle=swiftshader", "enable-unsafe-swiftshader", "window-size=1400,900")
        yield driver, address
        driver.quit()


def remove_spacing(path: Path) -> None:
    import pydicom

    dataset = pydicom.dcmread(path)
    del dataset.PixelSpacing
    dataset.save_as(path)


def open_series(viewer, study: int, word: str) -> None:
    """Opens a study and puts the series whose description has a word into the viewport."""
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    driver, address = viewer
    driver.get(f"{address}/viewer?StudyInstanceUIDs=1.2.{study}")
    (series,) = wait_for(driver, By.XPATH, f"//*[contains(text(), 'pneumothorax {word}')]")
    for tour in driver.find_elements(By.XPATH, "//*[text()='Skip all']"):
        tour.click()
    ActionChains(driver).double_click(series).perform()


def wait_for(driver, how: str, what: str, seconds: float = 60.0) -> list:
    end = time.monotonic() + seconds
    while not (found := [each for each in driver.find_elements(how, what) if each.is_displayed()]):
        assert time.monotonic() < end, f"{what} does not come: {driver.find_element('css selector', 'body').text}"
        time.sleep(0.5)
    return found


def screenshot(driver, path: Path) -> np.ndarray:
    """uint8 (H, W, 3) RGB; also written to a file."""
    import cv2

    data = driver.get_screenshot_as_png()
    path.write_bytes(data)
    return cv2.imdecode(np.frombuffer(BytesIO(data).getvalue(), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


@pytest.mark.parametrize("study", [1, 3], ids=["with spacing", "without spacing"])
def test_the_segmentation_lies_where_the_mask_is(viewer, shots, study):
    from selenium.webdriver.common.by import By

    driver, _ = viewer
    open_series(viewer, study, "segmentation")
    wait_for(driver, By.XPATH, "//button[contains(., 'Yes')]")[0].click()
    end = time.monotonic() + 60
    while True:
        picture = screenshot(driver, shots / f"segmentation-{study}.png").astype(int)
        canvas = wait_for(driver, By.CSS_SELECTOR, ".cornerstone-canvas")[0].rect
        # The outline: orange, which neither the grey radiograph nor the blue frame is.
        left, top = int(canvas["x"]), int(canvas["y"])
        inside = picture[top : top + int(canvas["height"]), left : left + int(canvas["width"])]
        rows, columns = np.nonzero((inside[..., 0] > inside[..., 2] + 60) & (inside[..., 1] > inside[..., 2] + 30))
        if len(rows) > 1000 or time.monotonic() > end:
            break
        time.sleep(1)
    scale = min(inside.shape[:2]) / SIDE
    offset = np.array([(inside.shape[0] - SIDE * scale) / 2, (inside.shape[1] - SIDE * scale) / 2])
    found = np.array(
        [rows.min() - offset[0], rows.max() - offset[0], columns.min() - offset[1], columns.max() - offset[1]]
    )
    np.testing.assert_allclose(found / scale, BOX, atol=5)


@pytest.mark.parametrize(
    ("study", "lines"),
    [
        (1, ("Pneumothorax: Present", "Certainty of Finding: 90 %", "Area: 324.59 mm2", "Area: 16800 {pixels}")),
        (2, ("Pneumothorax: Absent",)),
    ],
    ids=["positive", "negative"],
)
def test_a_report_is_shown_as_text(viewer, shots, study, lines):
    from selenium.webdriver.common.by import By

    driver, _ = viewer
    open_series(viewer, study, "report")
    wait_for(driver, By.XPATH, "//div[contains(., 'Chest CAD Report')]")
    screenshot(driver, shots / f"report-{study}.png")
    text = driver.find_element(By.CSS_SELECTOR, "body").text
    for line in (*lines, "Research use only; not a medical device."):
        assert line in text
    if study == 2:
        assert "Area" not in text
        assert "Certainty" not in text
