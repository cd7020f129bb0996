"""The network as nodes of an ONNX graph, from the folded weights that prediction uses (`model.folding`).

It is built by hand, module by module, beside the plain forms of `model/`: `resnet.py`, `bottleneck.py`,
`efficientnet.py`, `attention.py` and `unet.py`. A module's weights tell its shape, so any depth and width can be
written.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxpneumo.export.onnx_graph import Graph
from jaxpneumo.model.efficientnet import Block, block_table
from jaxpneumo.model.unet import ENCODERS
from jaxpneumo.run.config import Model

STAGES = range(1, 5)


def add_network(graph: Graph, settings: Model, variables: dict[str, Any], pictures: str) -> tuple[str, str | None]:
    """Adds the network.

    Args:
      graph: to add to.
      settings: what the network is.
      variables: its {"params", "batch_stats"} as float32 NumPy arrays, with folded BatchNorm layers.
      pictures: name of a value float32 (N, 1, S, S) in [0, 1].

    Returns:
      Names of the probabilities of the pixels, (N, S, S), and of the images, (N,); None without a classifier.
    """
    params = variables["params"]
    with graph.scope("encoder"):
        if settings.encoder == "resnet34_preact":
            norm = _Normalised(graph, params["encoder"], variables["batch_stats"]["encoder"])
            x = _input(graph, params, pictures, "conv0", "bn0", norm.scale_and_shift("bn_data"))
            features = _preactivated(graph, params["encoder"], norm, _relu(graph, x), settings.depths)
        elif settings.encoder == "efficientnet-b4":
            features = _inverted(graph, params, pictures, settings)
        else:
            before = "layer0_" if settings.encoder == "se_resnext50_32x4d" else ""
            x = _input(graph, params, pictures, f"{before}conv1", f"{before}bn1")
            features = _residual(graph, params["encoder"], _relu(graph, x), settings.depths, 0 if before else 1)
    with graph.scope("decoder"):
        x = _decoder(graph, params["decoder"], features, settings)
    with graph.scope("segmentation_head"):
        logits = _convolve(graph, params["segmentation_head"], x)
        pixels = graph.node("Squeeze", graph.node("Sigmoid", logits), np.array([1]))
    if not settings.classifier:
        return pixels, None
    with graph.scope("classifier"):
        means = graph.node("ReduceMean", features[-1], np.array([2, 3]), keepdims=0)
        logit = graph.node("Gemm", means, params["classifier"]["kernel"], params["classifier"]["bias"])
        return pixels, graph.node("Squeeze", graph.node("Sigmoid", logit), np.array([1]))


# Encoders


class _Normalised:
    """The pre-activation encoder's BatchNorm layers that stay, as a scale and a shift of each channel."""

    def __init__(self, graph: Graph, params: dict[str, Any], statistics: dict[str, Any]):
        self._graph, self._params, self._statistics = graph, params, statistics

    def scale_and_shift(self, *path: str) -> tuple[np.ndarray, np.ndarray]:
        params, statistics = self._params, self._statistics
        for name in path:
            params, statistics = params[name], statistics[name]
        epsilon = np.float32(ENCODERS["resnet34_preact"].epsilon)
        scale = params.get("scale", np.float32(1)) / np.sqrt(statistics["var"] + epsilon)
        return scale, params["bias"] - statistics["mean"] * scale

    def __call__(self, x: str, *path: str) -> str:
        """ReLU of the normalised map."""
        scale, shift = (each.reshape(-1, 1, 1) for each in self.scale_and_shift(*path))
        with self._graph.scope(path[-1]):
            return _relu(self._graph, self._graph.node("Add", self._graph.node("Mul", x, scale), shift))


def _input(
    graph: Graph,
    params: dict[str, Any],
    x: str,
    name: str,
    norm: str,
    scale_and_shift: tuple[np.ndarray, np.ndarray] | None = None,
    edges: tuple[int, int] | None = None,
) -> str:
    """The encoder's first convolution, `name`, with its BatchNorm: (N, 1, S, S) -> (N, C, S / 2, S / 2).

    `scale_and_shift`, (3,) each, normalise the image before it.
    """
    kernel, bias = params["encoder"][name]["kernel"], params["encoder"][norm]["bias"]
    if "input_convolution" in params:
        x = _convolve(graph, params["input_convolution"], x, name="input_convolution")
        if scale_and_shift:
            scale, shift = (each.reshape(3, 1, 1) for each in scale_and_shift)
            x = graph.node("Add", graph.node("Mul", x, scale), shift)
    elif scale_and_shift:
        # A grey image meets the kernel's sum over its three inputs. The shift is a second channel of ones and no bias,
        # since the padding around the image stays without it.
        sums = [(kernel * each[:, None]).sum(axis=2, keepdims=True) for each in scale_and_shift]
        kernel = np.concatenate(sums, axis=2)
        ones = graph.node("Expand", np.ones((1, 1, 1, 1), np.float32), graph.node("Shape", x), name="ones")
        x = graph.node("Concat", x, ones, axis=1)
    else:
        kernel = kernel.sum(axis=2, keepdims=True)
    return _convolve(graph, {"kernel": kernel, "bias": bias}, x, 2, name, edges=edges)


def _preactivated(graph: Graph, params: dict[str, Any], norm: _Normalised, x: str, depths: Sequence[int]) -> list[str]:
    """`resnet.PreactivationResNet` behind its first ReLU."""
    features = [x]
    x = _pool(graph, x, 1)
    for stage, depth in zip(STAGES, depths, strict=True):
        for unit in range(1, depth + 1):
            name = f"stage{stage}_unit{unit}"
            own = params[name]
            stride = 2 if unit == 1 and stage > 1 else 1
            with graph.scope(name):
                activated = norm(x, name, "bn1")
                shortcut = _convolve(graph, own["shortcut"], activated, stride, "shortcut") if unit == 1 else x
                y = _relu(graph, _folded(graph, own, "conv1", "bn2", activated, stride))
                x = graph.node("Add", _convolve(graph, own["conv2"], y, name="conv2"), shortcut)
            if unit == 1 and stage > 1:
                features.append(activated)
    return [*features, norm(x, "bn1")]


def _residual(graph: Graph, params: dict[str, Any], x: str, depths: Sequence[int], pool_before: int) -> list[str]:
    """`resnet.ResNet` behind its first ReLU, with any of its blocks."""
    features = [x]
    x = _pool(graph, x, pool_before)
    for stage, depth in zip(STAGES, depths, strict=True):
        for unit in range(depth):
            with graph.scope(f"layer{stage}_{unit}"):
                x = _block(graph, params[f"layer{stage}_{unit}"], x, 2 if unit == 0 and stage > 1 else 1)
        features.append(x)
    return features


def _block(graph: Graph, params: dict[str, Any], x: str, stride: int) -> str:
    """`resnet.BasicBlock`, or `bottleneck.Bottleneck` if there is a third convolution, which has the stride second."""
    if "conv3" in params:
        y = _relu(graph, _folded(graph, params, "conv1", "bn1", x))
        groups = params["conv1"]["kernel"].shape[3] // params["conv2"]["kernel"].shape[2]
        y = _relu(graph, _folded(graph, params, "conv2", "bn2", y, stride, groups))
        y = _folded(graph, params, "conv3", "bn3", y)
    else:
        y = _relu(graph, _folded(graph, params, "conv1", "bn1", x, stride))
        y = _folded(graph, params, "conv2", "bn2", y)
    if "se_module" in params:
        own = params["se_module"]
        with graph.scope("se_module"):
            y = graph.node("Mul", y, _excitation(graph, y, own["fc1"], own["fc2"], _relu))
    if "downsample_conv" in params:
        x = _folded(graph, params, "downsample_conv", "downsample_bn", x, stride)
    return _relu(graph, graph.node("Add", x, y))


def _inverted(graph: Graph, params: dict[str, Any], pictures: str, settings: Model) -> list[str]:
    """`efficientnet.EfficientNet`."""
    made = block_table(settings.depths, settings.width)
    x = _swish(graph, _input(graph, params, pictures, "conv_stem", "bn0", edges=made.stem_edges))
    features = [x]
    number = 0
    for level in made.levels:
        for block in level:
            with graph.scope(f"blocks_{number}"):
                x = _inverted_block(graph, params["encoder"][f"blocks_{number}"], x, block)
            number += 1
        features.append(x)
    return features


def _inverted_block(graph: Graph, params: dict[str, Any], x: str, block: Block) -> str:
    """`efficientnet.InvertedBottleneck`."""
    y = _swish(graph, _folded(graph, params, "expand_conv", "bn0", x)) if block.expansion > 1 else x
    groups = params["depthwise_conv"]["kernel"].shape[3]
    y = _folded(graph, params, "depthwise_conv", "bn1", y, block.stride, groups, block.edges)
    y = _swish(graph, y)
    weights = _excitation(graph, y, params["se_reduce"], params["se_expand"], _swish)
    y = _folded(graph, params, "project_conv", "bn2", graph.node("Mul", y, weights))
    return graph.node("Add", y, x) if block.residual else y


# Decoder


def _decoder(graph: Graph, params: dict[str, Any], features: Sequence[str], settings: Model) -> str:
    """`unet.Decoder` without the head."""
    *skips, x = features
    maps = []
    for number, skip in enumerate([*reversed(skips), None]):
        own = params[f"block{number}"]
        with graph.scope(f"block{number}"):
            x = _enlarge(graph, x, 2)
            if skip is not None:
                x = graph.node("Concat", x, skip, axis=1)
                x = _attend(graph, own, "attention1", x)
            x = _relu(graph, _folded(graph, own, "conv1", "bn1", x))
            x = _relu(graph, _folded(graph, own, "conv2", "bn2", x))
            x = _attend(graph, own, "attention2", x)
        maps.append(x)
    if not settings.hypercolumns:
        return x
    columns = [
        _enlarge(graph, each, 2 ** (len(maps) - number), linear=True) for number, each in enumerate(maps[:-1], 1)
    ]
    return graph.node("Concat", *columns, x, axis=1, name="hypercolumns")


def _attend(graph: Graph, params: dict[str, Any], name: str, x: str) -> str:
    """`attention.SCSE`, if the block has it."""
    if name not in params:
        return x
    own = params[name]
    with graph.scope(name):
        of_channel = graph.node("Mul", x, _excitation(graph, x, own["channel1"], own["channel2"], _relu))
        of_pixel = graph.node("Mul", x, graph.node("Sigmoid", _convolve(graph, own["pixel"], x)))
        return graph.node("Add", of_channel, of_pixel)


def _excitation(
    graph: Graph, x: str, first: dict[str, Any], second: dict[str, Any], activate: Callable[[Graph, str], str]
) -> str:
    """A weight for each channel, by two layers that see the means of all."""
    means = graph.node("ReduceMean", x, np.array([2, 3]), keepdims=1)
    return graph.node("Sigmoid", _convolve(graph, second, activate(graph, _convolve(graph, first, means))))


def _enlarge(graph: Graph, x: str, times: int, linear: bool = False) -> str:
    """Nearest neighbour, or linear between the centres of pixels."""
    nearest = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    between = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    kind: dict[str, Any] = between if linear else nearest
    return graph.node("Resize", x, None, np.array([1, 1, times, times], np.float32), **kind)


# Layers


def _folded(
    graph: Graph,
    params: dict[str, Any],
    name: str,
    norm: str,
    x: str,
    stride: int = 1,
    groups: int = 1,
    edges: tuple[int, int] | None = None,
) -> str:
    """A convolution with the bias that its folded BatchNorm has left."""
    return _convolve(graph, {**params[name], "bias": params[norm]["bias"]}, x, stride, name, groups, edges)


def _convolve(
    graph: Graph,
    params: dict[str, Any],
    x: str,
    stride: int = 1,
    name: str = "conv",
    groups: int = 1,
    edges: tuple[int, int] | None = None,
) -> str:
    """A square convolution with a kernel (K, K, C / groups, O), padded as `convolution.Convolution`."""
    size = params["kernel"].shape[0]
    before, behind = edges or (size // 2, size // 2)
    return graph.node(
        "Conv",
        *(x, params["kernel"].transpose(3, 2, 0, 1), params.get("bias")),
        name=name,
        kernel_shape=[size, size],
        strides=[stride, stride],
        pads=[before, before, behind, behind],
        group=groups,
    )


def _pool(graph: Graph, x: str, before: int) -> str:
    """3x3 maximum at stride 2, as `resnet.plain_pool`."""
    return graph.node("MaxPool", x, name="pool", kernel_shape=[3, 3], strides=[2, 2], pads=[before, before, 1, 1])


def _relu(graph: Graph, x: str) -> str:
    return graph.node("Relu", x)


def _swish(graph: Graph, x: str) -> str:
    return graph.node("Mul", x, graph.node("Sigmoid", x))
