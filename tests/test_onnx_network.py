"""The ONNX model's parts are the program's own: networks in ONNX Runtime beside JAX, sizes beside OpenCV and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from networks import assert_close, compiled_fold, tiny, tiny_variables

from jaxpneumo.data.resize import resize_to_squares
from jaxpneumo.export import onnx_model
from jaxpneumo.export.onnx_graph import Graph
from jaxpneumo.export.onnx_network import add_network
from jaxpneumo.model.rewrites import rewrites_for
from jaxpneumo.model.unet import ENCODERS
from jaxpneumo.predict.native import pixels_at_least, to_native_on_host
from jaxpneumo.run.config import Model

outputs_of = jax.jit(
    lambda model, variables, image: model.apply(variables, image, train=False, method="outputs"), static_argnums=0
)
CASES = {
    **{encoder: {"encoder": encoder} for encoder in ENCODERS},
    "all parts": {"encoder": "resnet34", "attention": "scse", "hypercolumns": True, "classifier": True},
    "a learnt input": {"encoder": "resnet34_preact", "input_convolution": True},
}
SIZE = 24


def session(graph, inputs, **results):
    """A graph in ONNX Runtime; results are name = (value, type, number of axes), and all sizes are open."""

    def open_sizes(name, axes):
        return [f"{name}{axis}" for axis in range(axes)]

    takes = {name: (value.dtype, open_sizes(name, value.ndim)) for name, value in inputs.items()}
    gives = {name: (kind, open_sizes(name, axes)) for name, (_, kind, axes) in results.items()}
    model = graph.serialize(takes, gives, {name: value for name, (value, *_) in results.items()}, {}, "")
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("case", CASES)
def test_a_network_gives_what_it_gives_in_jax(case):
    settings = {"input_convolution": False, **CASES[case]}
    model = tiny(**settings, parts=rewrites_for("cpu", training=False))
    folded = compiled_fold(tiny_variables(model), model.encoder, jnp.float32)
    image = np.random.Generator(np.random.PCG64(7)).random((2, 64, 64, 1), np.float32)
    logits, finding = outputs_of(model, folded, image)
    same = Model(
        dtype="float32", momentum=None, pretrained="", remat=False, depths=model.depths, width=model.width, **settings
    )
    graph = Graph()
    pixels, images = add_network(graph, same, jax.tree.map(np.asarray, folded), "pictures")
    assert (images is None) == (finding is None)
    results = {"pixels": (pixels, np.float32, 3), **({"images": (images, np.float32, 1)} if images else {})}
    inputs = {"pictures": image.transpose(0, 3, 1, 2)}
    found = session(graph, inputs, **results).run(list(results), inputs)
    for ours, expected in zip(found, (logits, finding), strict=False):
        assert_close(ours, jax.nn.sigmoid(expected), 1e-5)


@pytest.fixture(scope="module")
def shrinking():
    graph = Graph()
    height, width = (graph.node("Gather", graph.node("Shape", "image"), np.array(axis)) for axis in (1, 2))
    shrunk = onnx_model._shrink(graph, "image", height, width, SIZE)
    return session(graph, {"image": np.zeros((1, 1, 1), np.uint8)}, shrunk=(shrunk, np.float32, 3))


@pytest.mark.parametrize("times", [1, 2, 3, 4, 6])
def test_means_over_whole_numbers_of_pixels_are_opencvs_to_the_bit(shrinking, times):
    images = np.random.default_rng(times).integers(0, 256, (2, times * SIZE, times * SIZE), np.uint8)
    (found,) = shrinking.run(None, {"image": images})
    np.testing.assert_array_equal(found, [resize_to_squares(image, (SIZE,))[0] for image in images])


@pytest.mark.parametrize("shape", [(25, 24), (37, 91), (100, 48), (1024, 1000), (20, 11)])
def test_other_means_are_opencvs_within_a_grey_level(shrinking, shape):
    image = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    (found,) = shrinking.run(None, {"image": image[None]})
    difference = np.abs(found[0] - resize_to_squares(image, (SIZE,))[0])
    assert difference.max() <= 1
    assert (difference > 0).mean() < (0.5 if max(shape) < SIZE else 0.02)


@pytest.mark.parametrize("shape", [(SIZE, SIZE), (48, 48), (100, 37), (7, 1000)])
def test_probabilities_at_native_size_are_those_of_the_host(shape):
    graph = Graph()
    native = onnx_model._enlarge(graph, "x", "height", "width", SIZE)
    inputs = {
        "x": np.random.default_rng(2).random((1, SIZE, SIZE), np.float32),
        "height": np.array(shape[0]),
        "width": np.array(shape[1]),
    }
    (found,) = session(graph, inputs, native=(native, np.float32, 3)).run(None, inputs)
    expected = to_native_on_host(inputs["x"][0], *shape)
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=1e-6)
    if shape == (SIZE, SIZE):
        np.testing.assert_array_equal(found[0], inputs["x"][0])


def test_the_smallest_area_is_exact_for_every_size_and_threshold():
    """Also where threshold and pixels have products far beyond 32 bits."""
    graph = Graph()
    smallest = onnx_model._smallest_area(graph, "threshold", "height", "width")
    names = ("threshold", "height", "width")
    find = session(graph, dict.fromkeys(names, np.array(0)), smallest=(smallest, np.int64, 0))
    rng = np.random.default_rng(3)
    cases = [(0, 5, 7), (1, 1, 1), (2048, 1024, 1024), (1024 * 1024, 4096, 8191), (1024 * 1024 - 1, 3001, 2999)]
    cases += [tuple(map(int, rng.integers(1, (2**20, 6000, 6000)))) for _ in range(300)]
    for case in cases:
        (found,) = find.run(None, {name: np.array(value) for name, value in zip(names, case, strict=True)})
        assert found == pixels_at_least(*case), case
