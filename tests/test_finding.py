"""What is no image and what is no result: both are refused in words, and nothing is made of them."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import jaxpneumo
from jaxpneumo.dicom.radiograph import Radiograph
from jaxpneumo.evaluate.evaluate import evaluate
from jaxpneumo.predict.certainty import Bands
from jaxpneumo.predict.finding import make_finding
from jaxpneumo.predict.infer import load_predictor
from jaxpneumo.predict.native import NativeMask
from jaxpneumo.predict.onnx_predictor import load_onnx
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


@pytest.fixture(scope="module")
def sound(evaluated):
    return load_predictor(evaluated, batch_size=4)


@pytest.fixture(scope="module")
def damaged(sound):
    """The same network, with a last layer that is no numbers."""

    def damage(path, leaf):
        return jnp.full_like(leaf, math.nan) if "segmentation_head" in jax.tree_util.keystr(path) else leaf

    return replace(sound, variables=jax.tree_util.tree_map_with_path(damage, sound.variables))


PICTURES = [(str(number), np.full((32, 32), 40 * number, np.uint8), (64, 64)) for number in range(5)]


def test_probabilities_that_are_no_numbers_are_no_empty_masks(sound, damaged):
    """No number reaches a threshold, so the images would look like ones without a finding."""
    assert len(list(sound.find(PICTURES, False))) == 5
    with pytest.raises(InputError, match=r"the network's probabilities are no finite numbers, which is no result"):
        list(damaged.find(PICTURES, False))


def test_nor_do_they_count_as_a_gate_that_keeps_nothing(sound, damaged):
    with pytest.raises(InputError, match=r"the gate's probabilities are no finite numbers"):
        list(replace(sound, gate=damaged).find(PICTURES, False))


def test_nor_are_they_scored(damaged, prepared, tmp_path):
    split = {"method": "none", "part": "whole"}
    with pytest.raises(InputError, match=r"the network's probabilities are no finite numbers"):
        evaluate(damaged, prepared, np.arange(4), split, tmp_path / "scores", quiet=True)
    assert not (tmp_path / "scores/summary.json").exists()


def test_nor_those_of_an_exported_network(onnx_file, tmp_path):
    model = onnx.load(onnx_file)
    for weight in model.graph.initializer:
        if "segmentation_head" in weight.name and weight.data_type == onnx.TensorProto.FLOAT:
            none = np.full_like(numpy_helper.to_array(weight), math.nan)
            weight.CopyFrom(numpy_helper.from_array(none, weight.name))
    onnx.save(model, tmp_path / "damaged.onnx")
    with pytest.raises(InputError, match=r"the network's probabilities are no finite numbers"):
        list(load_onnx(tmp_path / "damaged.onnx", "onnxruntime").find(PICTURES, False))


def test_an_older_manifest_with_such_a_score_makes_no_page(tmp_path):
    """It would not be JSON, and browsers would show nothing."""
    row = ResultRow(file="a.dcm", result="found", id="1.2", score=math.nan)
    with pytest.raises(InputError, match=r"a result is not a number\. Predict again"):
        write_page(tmp_path / "index.html", [row], {}, [])
    assert not (tmp_path / "index.html").exists()
