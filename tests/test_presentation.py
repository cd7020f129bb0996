"""Presentation states: lines around the mask, on a radiograph of the same shape and grey levels."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_sources import ALGORITHM, CR, SHAPE, outlined, positive, radiograph
from pydicom.dataset import Dataset

from jaxpneumo.predict.dicom_results import write_dicom_results

pytest.importorskip("highdicom", reason="highdicom is not installed: pip install 'jaxpneumo[dicom]'")


def state_of(film: Path, folder: Path) -> Dataset:
    return pydicom.dcmread(
        write_dicom_results(film, positive(), ["presentation"], folder, ALGORITHM)[0]["presentation"]
    )


def test_lines_of_a_presentation_state_enclose_exactly_the_mask(tmp_path):
    state = state_of(radiograph(tmp_path / "a.dcm"), tmp_path)
    (annotation,) = state.GraphicAnnotationSequence
    crossed = np.zeros((SHAPE[0], SHAPE[1] + 1), int)
    for line in annotation.GraphicObjectSequence:
        assert (line.GraphicType, line.GraphicAnnotationUnits) == ("POLYLINE", "PIXEL")
        points = np.array(line.GraphicData).reshape(-1, 2)
        np.testing.assert_array_equal(points[0], points[-1])
        for (x, top), (other, bottom) in pairwise(points):
            if x == other:
                crossed[int(min(top, bottom)) : int(max(top, bottom)), int(x)] += 1
    # From the left, a pixel is inside after an odd number of lines.
    np.testing.assert_array_equal(np.cumsum(crossed, axis=1)[:, :-1] % 2, outlined())


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({"PixelSpacing": [0.4, 0.2]}, ([0.4, 0.2], None)),
        ({"PixelSpacing": None, "ImagerPixelSpacing": [0.4, 0.2], "SOPClassUID": CR}, (None, [4000, 2000])),
        ({"PixelSpacing": None, "PixelAspectRatio": [2, 1]}, (None, [2, 1])),
        ({"PixelSpacing": None}, (None, [1, 1])),
    ],
)
def test_a_presentation_state_says_how_large_a_pixel_is_or_at_least_its_shape(tmp_path, elements, expected):
    film = radiograph(tmp_path / "a.dcm", **elements)
    (area,) = state_of(film, tmp_path).DisplayedAreaSelectionSequence
    assert (area.get("PresentationPixelSpacing"), area.get("PresentationPixelAspectRatio")) == expected


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({"RescaleSlope": 2}, (2, 0, None)),
        ({"RescaleIntercept": -5}, (1, -5, None)),
        ({"RescaleSlope": 1 / 255, "RescaleIntercept": 0}, (0.00392156862745, 0, None)),
        ({"RescaleSlope": 0, "RescaleIntercept": 3}, (None, None, None)),
        ({"WindowCenter": 128, "WindowWidth": 0.5, "VOILUTFunction": "LINEAR_EXACT"}, (None, None, (128, 0.5))),
        ({"WindowCenter": 128, "WindowWidth": 0.5}, (None, None, None)),
    ],
)
def test_a_presentation_state_has_the_grey_levels_of_the_radiograph(tmp_path, elements, expected):
    film = radiograph(tmp_path / "a.dcm", **elements)
    state = state_of(film, tmp_path)
    windows = [(item.WindowCenter, item.WindowWidth) for item in state.get("SoftcopyVOILUTSequence", ())]
    found = state.get("RescaleSlope"), state.get("RescaleIntercept"), windows[0] if windows else None
    assert found == expected
    assert all(len(str(state[each].value)) <= 16 for each in ("RescaleSlope", "RescaleIntercept") if each in state)
