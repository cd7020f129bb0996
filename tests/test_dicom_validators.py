"""DICOM results before the programs that check and show DICOM objects: dciodvfy, pixelmed's validator and DCMTK."""

import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from dicom_sources import ALGORITHM, lut, negative, odd_radiographs, positive, radiograph, ramp

from jaxpneumo.dicom import dicom
from jaxpneumo.dicom.outcome import ImageOutcome
from jaxpneumo.predict.dicom_results import KINDS, write_dicom_results

pytest.importorskip("highdicom", reason="highdicom is not installed: pip install 'jaxpneumo[dicom]'")
JAVA = Path("/usr/share/java")
ODD = ("Fake_MONOHR1", "JPGLosslessP14SV1_1s_1f_8b", "RG1_J2KI", "vlut_04")


def program(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} here: apt-get install {package}")
    return found


def results(source: Path, folder: Path, shape: tuple[int, int] | None = None) -> list[Path]:
    """All results of a radiograph, positive and negative, and the report of a positive one alone."""
    found, nothing = positive(), negative()
    if shape is not None:
        mask = np.zeros(shape, np.uint8)
        nothing = ImageOutcome(mask.copy(), 0.1)
        mask[shape[0] // 3 : shape[0] // 2, shape[1] // 5 : shape[1] // 3] = 1
        found = ImageOutcome(mask, 0.9, "right")
    written = []
    for name, outcome, kinds in (("all", found, KINDS), ("alone", found, ["sr"]), ("negative", nothing, KINDS)):
        paths, _ = write_dicom_results(source, outcome, kinds, folder / name, ALGORITHM)
        written += paths.values()
    return written


def faults(validator: str, path: Path) -> list[str]:
    done = subprocess.run([validator, "-new", path], capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    assert lines, "it says at least what the object is"
    return [f"{path}: {line}" for line in lines if line.startswith(("Error", "Abort"))]


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    return odd_radiographs(tmp_path_factory.mktemp("sources"))


def test_dciodvfy_finds_no_error_in_results_of_odd_radiographs(sources, tmp_path):
    validator = program("dciodvfy", "dicom3tools")
    count = 0
    for number, source in enumerate(sources.values()):
        paths = results(source, tmp_path / str(number))
        count += len(paths)
        assert not [fault for path in paths for fault in faults(validator, path)]
    assert count == 6 * len(sources) - 2, "two are stored in colour and have no presentation state"


def test_dciodvfy_sees_errors(sources, tmp_path):
    path = results(sources["plain"], tmp_path)[0]
    dataset = pydicom.dcmread(path)
    del dataset.SegmentSequence
    dataset.save_as(path)
    assert faults(program("dciodvfy", "dicom3tools"), path)


def test_dciodvfy_finds_no_error_in_results_of_real_radiographs(shared, tmp_path):
    validator = program("dciodvfy", "dicom3tools")
    real = sorted(shared.glob("data/siim-sample/dicom-images-train/*/*/*.dcm"))[:4]
    for number, source in enumerate([*real, *(shared / f"data/odd-dicom/{name}.dcm" for name in ODD)]):
        shape = dicom.read_image(source).image.shape
        paths = results(source, tmp_path / str(number), shape)
        assert len(paths) == 6
        assert not [fault for path in paths for fault in faults(validator, path)]


def rendered(source: Path, state: Path, to: Path) -> np.ndarray:
    """The picture that DCMTK makes of a radiograph with a presentation state."""
    line = [program("dcmp2pgm", "dcmtk"), "--pstate", state, source, to]
    subprocess.run(line, capture_output=True, check=True)
    picture = cv2.imread(str(to), cv2.IMREAD_GRAYSCALE)
    assert picture is not None
    return picture


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    "elements",
    [
        {},
        {"WindowCenter": 1500, "WindowWidth": 2400},
        {"WindowCenter": 500, "WindowWidth": 2400, "RescaleSlope": 0.5, "RescaleIntercept": -100},
        {"VOILUTSequence": [lut([4095 - value for value in range(4096)], 0, 12)]},
    ],
    ids=["full", "window", "rescaled", "VOI LUT"],
)
def test_with_a_presentation_state_the_radiograph_has_the_grey_levels_that_were_read(tmp_path, elements, photometric):
    film = radiograph(
        *(tmp_path / "a.dcm", ramp(np.uint16, 4095)),
        **{"BitsStored": 12, "HighBit": 11, "PhotometricInterpretation": photometric, **elements},
    )
    written, _ = write_dicom_results(film, positive(), ["presentation"], tmp_path, ALGORITHM)
    picture = rendered(film, written["presentation"], tmp_path / "a.pgm").astype(int)
    assert np.abs(picture - dicom.read_image(film).image).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("title", [None, ("126000", "DCM", "Imaging Measurement Report")], ids=["own", "measurement"])
def test_pixelmeds_validator_finds_no_error_in_reports(sources, tmp_path, title):
    """It knows the template by the title of measurement reports; so that title is tried, too."""
    java = program("java", "default-jre-headless")
    if not (JAVA / "pixelmed.jar").exists():
        pytest.skip("no pixelmed.jar here: apt-get install libpixelmed-java")
    options = [f"-Djdk.xml.xpath{name}Limit=0" for name in ("ExprOp", "TotalOp", "ExprGrp")]
    line = [java, *options, "-cp", f"{JAVA}/pixelmed.jar:{JAVA}/*", "com.pixelmed.validate.DicomSRValidator"]
    reports = [path for path in results(sources["CR"], tmp_path) if path.name == "sr.dcm"]
    assert len(reports) == 3
    for path in reports:
        if title:
            dataset = pydicom.dcmread(path)
            name = dataset.ConceptNameCodeSequence[0]
            name.CodeValue, name.CodingSchemeDesignator, name.CodeMeaning = title
            dataset.save_as(path)
        done = subprocess.run([*line, path], capture_output=True, text=True, check=False)
        said = done.stdout + done.stderr
        assert "Root Template Validation Complete" in said
        assert "IOD validation complete" in said
        assert "Error" not in said
        if title:
            beside = [line for line in said.splitlines() if "not in template" in line]
            assert all("Algorithm" in line or '"Pneumothorax")' in line for line in beside), beside
