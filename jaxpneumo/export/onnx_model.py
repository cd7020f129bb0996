"""The whole prediction as one ONNX model: radiographs of any size in, masks at their own size out.

| input | |
| --- | --- |
| image | uint8 (N, H, W): N radiographs of one size, any size |
| threshold | float32, of the probability |
| removal_threshold | int64, in pixels of a 1024x1024 image; the mask is emptied if its area is smaller |
| top_threshold, top_area | float32 and int64 of the triplet rule; 0 and 0 without it |
| classifier_threshold | float32; only if the network has a classifier; 0 without a threshold |

| output | |
| --- | --- |
| mask | uint8 (N, H, W) of 0 and 1, after thresholds and removal |
| probability | float32 (N, H, W) |
| score | float32 (N,) of the whole image, as `api.Result` has it |

The thresholds are inputs without defaults, as OpenVINO takes defaults for constants. The run's are in the metadata.

Sizes and shares of pixels are whole numbers up to the division that makes a float of them. So an image at the
network's own size, or at two or four times it, is averaged to the bit as OpenCV does, and an image at the network's
size has its own probabilities as output.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxpneumo.export.onnx_graph import Graph, Values
from jaxpneumo.export.onnx_network import add_network
from jaxpneumo.predict.image_scores import top_pixels
from jaxpneumo.predict.onnx_session import THRESHOLDS, threshold_inputs
from jaxpneumo.run import tta
from jaxpneumo.run.config import Model, Predict

IMAGES = ("images", "height", "width")
OUTPUTS: Values = {"mask": (np.uint8, IMAGES), "probability": (np.float32, IMAGES), "score": (np.float32, IMAGES[:1])}


def to_onnx(network: Model, variables: dict[str, Any], settings: Predict, metadata: dict[str, str]) -> bytes:
    """The bytes of an ONNX model.

    Args:
      network: what the network is.
      variables: its float32 {"params", "batch_stats"}, folded (`model.folding.fold`).
      settings: of the prediction; its TTA is none or the flip.
      metadata: texts that the file holds beside the graph, "note" among them.
    """
    import jax

    variables = jax.tree.map(np.asarray, jax.device_get(variables))
    graph = Graph()
    with graph.scope("shrink"):
        height, width = (graph.node("Gather", graph.node("Shape", "image"), np.array(axis)) for axis in (1, 2))
        x = _shrink(graph, "image", height, width, settings.size)
    with graph.scope("views"):
        views = 1 + len(tta.names(settings.tta))
        if views == 2:
            x = graph.node("Concat", x, _mirror(graph, x, settings.size), axis=0)
        x = graph.node("Div", graph.node("Unsqueeze", x, np.array([1])), np.array(255, np.float32))
    probability, finding = add_network(graph, network, variables, x)
    with graph.scope("mean"):
        if views == 2:
            own, mirrored = graph.node("Split", probability, count=2, axis=0, num_outputs=2)
            probability = _half_sum(graph, own, _mirror(graph, mirrored, settings.size))
            finding = finding and _half_sum(graph, *graph.node("Split", finding, count=2, axis=0, num_outputs=2))
    with graph.scope("score"):
        score = finding or _top_mean(graph, probability, settings.size)
    with graph.scope("enlarge"):
        native = _enlarge(graph, probability, height, width, settings.size)
    with graph.scope("mask"):
        mask = graph.node("GreaterOrEqual", native, "threshold")
        top = graph.node("GreaterOrEqual", native, "top_threshold")
        kept = graph.node(
            "And",
            _is_large(graph, mask, "removal_threshold", height, width),
            _is_large(graph, top, "top_area", height, width),
        )
        if finding:
            kept = graph.node("And", kept, graph.node("GreaterOrEqual", finding, "classifier_threshold"))
        mask = graph.node("And", mask, graph.node("Unsqueeze", kept, np.array([1, 2])))
        mask = graph.cast(mask, np.uint8)
    results = {"mask": mask, "probability": native, "score": score}
    thresholds = threshold_inputs(settings, network.classifier)
    return graph.serialize(inputs(thresholds), OUTPUTS, results, metadata, metadata["note"])


def inputs(thresholds: Iterable[str]) -> Values:
    """What a model takes: the image and these thresholds."""
    return {"image": (np.uint8, IMAGES), **{name: (THRESHOLDS[name], ()) for name in thresholds}}


def _shrink(graph: Graph, image: str, height: str, width: str, size: int) -> str:
    """Means over areas as `data.resize` rounds them: uint8 (N, H, W) -> float32 (N, size, size) of whole numbers."""
    rows, columns = (_overlaps(graph, side, size) for side in (height, width))
    sums = graph.node("MatMul", rows, graph.cast(image, np.float32))
    sums = graph.node("MatMul", sums, graph.node("Transpose", columns, perm=[1, 0]))
    area = graph.node("Mul", height, width)
    means = graph.node("Mul", sums, _divide(graph, np.array(size * size), area))
    # OpenCV rounds halves up where it averages 2 x 2 pixels, and to even elsewhere.
    double = [graph.node("Equal", side, np.array(2 * size)) for side in (height, width)]
    up = graph.node("Floor", graph.node("Add", means, np.array(0.5, np.float32)))
    return graph.node("Where", graph.node("And", *double), up, graph.node("Round", means))


def _overlaps(graph: Graph, side: str, size: int) -> str:
    """How much of each of `side` pixels lies in each of `size` areas, in pixels: float32 (size, side)."""
    source, target = _range(graph, side), np.arange(size)[:, None]
    # In parts of a pixel of which `size` make one
    low = graph.node("Max", graph.node("Mul", target, side), graph.node("Mul", source, np.array(size)))
    after = graph.node("Add", source, np.array(1))
    high = graph.node("Min", graph.node("Mul", target + 1, side), graph.node("Mul", after, np.array(size)))
    parts = graph.node("Max", graph.node("Sub", high, low), np.array(0))
    return _divide(graph, parts, np.array(size))


def _enlarge(graph: Graph, x: str, height: str, width: str, size: int) -> str:
    """Linear between the centres of pixels, as `predict.native`: (N, size, size) -> (N, H, W). Columns come first."""
    for axis, side in ((2, width), (1, height)):
        # The place (i + 1/2) size / side - 1/2 in parts of a pixel of which 2 side make one
        parts = graph.node("Mul", side, np.array(2))
        odd = graph.node("Add", graph.node("Mul", _range(graph, side), np.array(2)), np.array(1))
        place = graph.node("Sub", graph.node("Mul", odd, np.array(size)), side)
        place = graph.node("Max", graph.node("Min", place, graph.node("Mul", parts, np.array(size - 1))), np.array(0))
        first = graph.node("Div", place, parts)
        share = _divide(graph, graph.node("Sub", place, graph.node("Mul", first, parts)), parts)
        if axis == 1:
            share = graph.node("Unsqueeze", share, np.array([1]))
        following = graph.node("Min", graph.node("Add", first, np.array(1)), np.array(size - 1))
        lower, upper = (graph.node("Gather", x, places, axis=axis) for places in (first, following))
        x = graph.node("Add", lower, graph.node("Mul", graph.node("Sub", upper, lower), share))
    return x


def _is_large(graph: Graph, mask: str, threshold: str, height: str, width: str) -> str:
    """Whether each mask has the area `threshold`, in pixels of a 1024x1024 image: bool (N,)."""
    area = graph.node("ReduceSum", graph.cast(mask, np.int64), np.array([1, 2]), keepdims=0)
    return graph.node("GreaterOrEqual", area, _smallest_area(graph, threshold, height, width))


def _smallest_area(graph: Graph, threshold: str, height: str, width: str) -> str:
    """`native.pixels_at_least` in steps whose numbers 32 bits hold: OpenVINO has no more."""
    high, low = _parts(graph, graph.node("Mul", height, width), 2**20)
    upper, lower = _parts(graph, threshold, 2**10)
    rest = _divide_up(graph, graph.node("Mul", lower, low))
    rest = _divide_up(graph, graph.node("Add", graph.node("Mul", upper, low), rest))
    return graph.node("Add", graph.node("Mul", threshold, high), rest)


def _parts(graph: Graph, number: str, unit: int) -> tuple[str, str]:
    """A whole number as units and what is left."""
    whole = graph.node("Div", number, np.array(unit))
    return whole, graph.node("Sub", number, graph.node("Mul", whole, np.array(unit)))


def _divide_up(graph: Graph, number: str) -> str:
    """A whole number divided by 1024, rounded up."""
    return graph.node("Div", graph.node("Add", number, np.array(1023)), np.array(1024))


def _top_mean(graph: Graph, probability: str, size: int) -> str:
    """The second score of `image_scores.image_scores`: (N,)."""
    pixels = graph.node("Reshape", probability, np.array([0, -1]))
    top, _ = graph.node("TopK", pixels, np.array([top_pixels(size)]), count=2, axis=1, sorted=0)
    return graph.node("ReduceMean", top, np.array([1]), keepdims=0)


def _mirror(graph: Graph, x: str, size: int) -> str:
    return graph.node("Gather", x, np.arange(size)[::-1], axis=2, name="mirror")


def _half_sum(graph: Graph, one: str, other: str) -> str:
    return graph.node("Div", graph.node("Add", one, other), np.array(2, np.float32))


def _range(graph: Graph, side: str) -> str:
    return graph.node("Range", np.array(0), side, np.array(1))


def _divide(graph: Graph, one: str | np.ndarray, other: str | np.ndarray) -> str:
    """The quotient of whole numbers, float32."""
    return graph.node("Div", *(graph.cast(each, np.float32) for each in (one, other)))
