"""Pictures of random headers are what the standard's formulas give, computed in `grey_reference`."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from grey_cases import SYNTAXES, Case, describe, draw, draw_flat, to_bytes
from grey_reference import Header, Table, grey
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from jaxpneumo.dicom import dicom
from jaxpneumo.dicom.radiograph import RadiographError

# The reference is not rounded: the nearest grey level is 0.5 away at most, and the code may count in float32.
NEAREST = 0.51


def fault(seed: int, syntax: str, folder: Path) -> str:
    """What is wrong with the picture of this seed's case, in words; "" where nothing is."""
    return fault_of(draw(seed, syntax), f"seed {seed}", folder)


def fault_of(case: Case, name: str, folder: Path) -> str:
    file = folder / "case.dcm"
    file.write_bytes(to_bytes(case))
    try:
        image = dicom.read_image(file).image
    except RadiographError as error:
        return f"{name}: refused: {error}\n  {describe(case)}"
    expected = grey(case.words, case.header)
    if image.shape != expected.shape or image.dtype != np.uint8:
        return f"{name}: {image.dtype} {image.shape}\n  {describe(case)}"
    difference = np.abs(image - expected)
    if difference.max() <= NEAREST:
        return ""
    row, column = np.unravel_index(difference.argmax(), difference.shape)
    return (
        f"{name}: {(difference > NEAREST).sum()} of {difference.size} pixels are wrong; "
        f"({row}, {column}), word {case.words[row, column]:#06x}, is {image[row, column]}, "
        f"not {expected[row, column]:.2f}\n  {describe(case)}"
    )


def faults(syntax: str, count: int, folder: Path) -> list[str]:
    found = [
        fault(seed, syntax, folder) for seed in range(SYNTAXES.index(syntax), len(SYNTAXES) * count, len(SYNTAXES))
    ]
    return [text for text in found if text]


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.keyword)
def test_pictures_are_what_the_standard_says(syntax, tmp_path):
    found = faults(syntax, 25, tmp_path)
    assert not found, f"{len(found)} of 25 cases\n" + "\n".join(found[:5])


@pytest.mark.slow
@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.keyword)
def test_many_pictures_are_what_the_standard_says(syntax, tmp_path):
    found = faults(syntax, 250, tmp_path)
    assert not found, f"{len(found)} of 250 cases\n" + "\n".join(found[:5])


@pytest.mark.parametrize("kind", ["pixels", "padding", "window", "slope", "table", "modality"])
def test_no_picture_is_one_single_grey(kind, tmp_path):
    """Where one element would make it so, the file is refused, or read as if that element were not there."""
    file = tmp_path / "case.dcm"
    for seed in range(10):
        case = draw_flat(seed, kind)
        file.write_bytes(to_bytes(case))
        try:
            image = dicom.read_image(file).image
        except RadiographError:
            continue
        assert kind not in ("pixels", "padding"), describe(case)
        bare = replace(case.header, table=None, window=None, modality=None, slope=None, intercept=None)
        assert np.abs(image - grey(case.words, bare)).max() <= NEAREST, describe(case)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian], ids=lambda syntax: syntax.keyword)
@pytest.mark.parametrize("modality", ["table", "rescale"])
def test_the_first_input_of_a_voi_table_has_the_sign_of_the_modalitys_output(modality, syntax, tmp_path):
    """C.11.2.1.1: not that of the pixels. An implicit file has no VR that would tell."""
    words = np.arange(400, dtype=np.uint16).reshape(20, 20) * 10
    ramp = np.arange(4096) * 16
    above = Table(40000, np.arange(20000) // 5, 12, 2, "US", signed=False)
    header = Header(16, 12, 11, signed=True, table=above)
    if modality == "table":
        case = Case(replace(header, modality=Table(-2048, ramp, 16, 2, "US", signed=True)), words, syntax, 16, False)
    else:
        header = replace(header, slope=16.0, intercept=32768.0)
        case = Case(header, words, syntax, 16, False, slope="16", intercept="32768")
    assert not fault_of(case, modality, tmp_path)
