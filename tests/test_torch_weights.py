"""Weights for segmentation_models_pytorch: its own names and shapes, all of them, and back again to equal bits.

The names are those of tests/golden, which the library itself has written.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import pattern
from safetensors.numpy import save_file

from jaxpneumo.export.torch_weights import arguments, header, to_torch
from jaxpneumo.model import pretrained
from jaxpneumo.model.unet import UNet
from jaxpneumo.model.weight_files import from_safetensors, to_safetensors
from jaxpneumo.process.errors import InputError
from jaxpneumo.run.config import Model

GOLDEN = Path(__file__).parent / "golden"
CASES = {
    "smp_se_resnext50_unet.npz": {"encoder": "se_resnext50_32x4d"},
    "smp_efficientnet_b4_unet.npz": {"encoder": "efficientnet-b4"},
    "smp_resnet34_scse_unet.npz": {"encoder": "resnet34", "attention": "scse"},
}
WHOLE = Model("resnet34", "float32", False, None, "", (3, 4, 6, 3), 64, False)


def shapes_of(**settings):
    init = functools.partial(UNet(**settings).init, train=False)
    return jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 32, 32, 1)))


def variables_of(**settings):
    return pattern(shapes_of(**settings), seed=1)


@pytest.mark.parametrize("file", CASES)
def test_names_and_shapes_are_what_the_library_has(file):
    weights = to_torch(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes_of(**CASES[file])))
    counters = {name for name in weights if name.endswith("num_batches_tracked")}
    ours = {f"{name}|{','.join(map(str, value.shape))}" for name, value in weights.items() if name not in counters}
    assert ours == set(map(str, np.load(GOLDEN / file)["names"]))
    assert counters == {
        name.replace("running_mean", "num_batches_tracked") for name in weights if name.endswith("running_mean")
    }
    assert {(weights[name].shape, weights[name].dtype) for name in counters} == {((), np.dtype(np.int64))}


@pytest.mark.parametrize(
    "settings",
    [
        {"encoder": "resnet34"},
        {"encoder": "se_resnext50_32x4d", "attention": "scse", "classifier": True},
        {"encoder": "efficientnet-b4", "attention": "scse"},
    ],
    ids=["resnet34", "attention and classifier", "efficientnet-b4"],
)
def test_what_is_read_back_is_equal_to_the_bit(settings):
    variables = variables_of(**settings, width=16, depths=(1, 1, 1, 1))
    back = pretrained.from_torch(from_safetensors(to_safetensors(to_torch(variables), {})), variables)
    assert jax.tree.structure(back) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_a_classifier_is_the_librarys_head_of_one_class(tmp_path):
    """A head of several classes is another one and is left out, as all heads are of a network without classifier."""
    variables = variables_of(encoder="resnet34", classifier=True, width=8, depths=(1, 1, 1, 1))
    weights = to_torch(variables)
    assert weights["classification_head.3.weight"].shape == (1, 64)
    weights |= {"classification_head.3.weight": np.ones((2, 64), np.float32)}
    weights |= {"classification_head.3.bias": np.ones(2, np.float32)}
    save_file(weights, tmp_path / "two.safetensors")
    read = pretrained.load(tmp_path / "two.safetensors", variables)["params"]
    np.testing.assert_array_equal(read["classifier"]["kernel"], variables["params"]["classifier"]["kernel"])
    np.testing.assert_array_equal(read["segmentation_head"]["bias"], variables["params"]["segmentation_head"]["bias"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"encoder": "resnet34_preact"}, "the pre-activation encoder resnet34_preact"),
        ({"width": 32}, r"encoders of width 32\."),
        ({"depths": (1, 1, 1, 1)}, r"encoders of depths \(1, 1, 1, 1\)\."),
        ({"width": 32, "depths": (1, 1, 1, 1)}, r"encoders of width 32 and depths \(1, 1, 1, 1\)\."),
        ({"hypercolumns": True, "input_convolution": True}, "hypercolumns and a learnt convolution from grey"),
    ],
)
def test_what_the_library_lacks_is_refused_in_words(change, words):
    with pytest.raises(InputError, match=f"it lacks {words}.*Export it as onnx, stablehlo or folder"):
        arguments(Model(**{**vars(WHOLE), **change}))


def test_the_header_says_how_to_make_the_network():
    told = header(Model(**{**vars(WHOLE), "attention": "scse", "classifier": True}), {"note": "Research use only."})
    data = to_safetensors({"a": np.zeros(1, np.float32)}, told)
    assert data == to_safetensors({"a": np.zeros(1, np.float32)}, told)
    assert b"decoder_attention_type" in data
    assert b"Research use only." in data


@pytest.mark.long
@pytest.mark.parametrize("encoder", ["resnet34", "efficientnet-b4"])
def test_the_library_loads_it_strictly_and_computes_the_same(encoder):
    """The whole network with attention and classifier, in float64: drawn weights make large maps, whose rounding the
    sigmoids of attention enlarge.
    """
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    for operator in ("nms", "qnms"):  # a torchvision without its compiled part fails on import
        if not hasattr(torch.ops.torchvision, operator):
            torch.library.define(f"torchvision::{operator}", "(Tensor boxes, Tensor scores, float limit) -> Tensor")
    smp = pytest.importorskip("segmentation_models_pytorch", reason="segmentation_models_pytorch is not installed")
    settings = {"encoder": encoder, "attention": "scse", "classifier": True}
    variables = variables_of(**settings)
    network = smp.Unet(**arguments(Model(**{**vars(WHOLE), **settings}))).eval()
    network.load_state_dict({name: torch.from_numpy(value) for name, value in to_torch(variables).items()}, strict=True)
    image = np.random.default_rng(0).random((1, 64, 64, 1))
    with torch.no_grad():
        theirs = network.double()(torch.from_numpy(image.transpose(0, 3, 1, 2)).repeat(1, 3, 1, 1))
    with jax.enable_x64(True):
        apply = jax.jit(UNet(**settings, dtype=jnp.float64).apply, static_argnames=("train", "method"))
        double = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
        ours = apply(double, image, train=False, method="outputs")
    for mine, its in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, its.numpy()[:, 0], rtol=0, atol=1e-8 * np.abs(its.numpy()).max())
