"""What is no image and what is no result: both are refused in words, and nothing is made of them."""

import math

import numpy as np
import pytest

import jaxpneumo
from jaxpneumo.dicom.radiograph import Radiograph
from jaxpneumo.predict.certainty import Bands
from jaxpneumo.predict.finding import make_finding
from jaxpneumo.predict.native import NativeMask
from jaxpneumo.predict.reading import Picture
from jaxpneumo.predict.results_page import write_page
from jaxpneumo.predict.results_table import ResultRow
from jaxpneumo.process.errors import InputError
from jaxpneumo.run.config import Predict

GREY = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32)

SETTINGS = Predict(size=32, batch_size=1, tta=False, threshold=0.5, removal_threshold=0)


@pytest.fixture(scope="module")
def model(evaluated):
    return jaxpneumo.load(evaluated, batch_size=2)


@pytest.mark.parametrize("image", [GREY, GREY / 1024, GREY > 500, np.stack([GREY.astype(np.uint8)] * 3, -1)])
def test_a_radiograph_made_by_hand_has_grey_bytes(model, image):
    with pytest.raises(InputError, match=r"radiograph x is .*, not uint8 \(height, width\)\. Give the array itself"):
        next(model.predict([Radiograph(image, uid="x")]))


def test_a_radiograph_made_by_hand_has_the_size_of_one(model):
    with pytest.raises(InputError, match="x has 0 x 32 pixels"):
        next(model.predict([Radiograph(GREY.astype(np.uint8)[:0], uid="x")]))


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_no_result(score):
    mask = NativeMask(np.zeros((32, 4), np.uint8), 32, 32, 0)
    with pytest.raises(InputError, match=rf"score of a\.dcm is {score}, which is no result: its weights are damaged"):
        make_finding(Picture("a.dcm", uid="1.2"), mask, score, SETTINGS, Bands(0.2, 0.8))


def test_an_older_manifest_with_such_a_score_makes_no_page(tmp_path):
    """It would not be JSON, and browsers would show nothing."""
    row = ResultRow(file="a.dcm", result="found", id="1.2", score=math.nan)
    with pytest.raises(InputError, match=r"a result is not a number\. Predict again"):
        write_page(tmp_path / "index.html", [row], {}, [])
    assert not (tmp_path / "index.html").exists()
