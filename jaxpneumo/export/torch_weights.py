"""Weights under the names of segmentation_models_pytorch's Unet, for the networks that it has.

It is `model.pretrained` backwards. A file loads strictly into

    smp.Unet(encoder_name, encoder_weights=None, in_channels=3, classes=1, decoder_attention_type=..., aux_params=...)

whose arguments the file's header has. The network sees the grey image in all three channels, divided by 255.
"""

import json
from typing import Any

import jax
import numpy as np

from jaxpneumo.model.pretrained import torch_name
from jaxpneumo.process.errors import InputError
from jaxpneumo.run.config import Model

WIDTH, DEPTHS = 64, (3, 4, 6, 3)  # of its encoders
# It builds these two too and never applies them: attention before the skip that the last block does not have, and the
# convolution with BatchNorm between EfficientNet's last map and its classifier.
UNUSED = "decoder.blocks.4.attention1.attention"
REDUCTION = 16
HEAD, HEAD_NORM, HEAD_EXPANSION = "encoder._conv_head", "encoder._bn1", 4


def to_torch(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """PyTorch's name -> array in its layout, of {"params", "batch_stats"}: what a strict loading asks for."""
    weights: dict[str, np.ndarray] = {}
    for (_, *path), value in jax.tree_util.tree_leaves_with_path(jax.device_get(variables)):
        name = torch_name(tuple(key.key for key in path))
        weights[name] = np.ascontiguousarray(_layout(np.asarray(value)))
        if name.endswith(".running_mean"):
            weights[name.replace(".running_mean", ".num_batches_tracked")] = np.array(0)
    if any(".attention" in name for name in weights):
        weights |= _unused(weights["decoder.blocks.4.conv1.0.weight"].shape[1])
    if last := [len(array) for name, array in weights.items() if name.endswith("._project_conv.weight")]:
        weights |= _unused_head(max(last))  # the last block has the most channels
    return weights


def arguments(model: Model) -> dict[str, Any]:
    """The arguments of segmentation_models_pytorch's Unet for a network.

    Raises:
      InputError: it has no such network; the message says what it lacks.
    """
    other = [f"width {model.width}"] if model.width != WIDTH else []
    other += [f"depths {model.depths}"] if model.depths != DEPTHS else []
    lacks = {
        "the pre-activation encoder resnet34_preact (of Keras' segmentation_models)": model.encoder
        == "resnet34_preact",
        f"encoders of {' and '.join(other)}": bool(other),
        "hypercolumns": model.hypercolumns,
        "a learnt convolution from grey to three channels": model.input_convolution,
    }
    if any(lacks.values()):
        raise InputError(
            "segmentation_models_pytorch has no such network: it lacks "
            f"{' and '.join(what for what, true in lacks.items() if true)}. Export it as onnx, stablehlo or folder."
        )
    return {
        "encoder_name": model.encoder,
        "encoder_weights": None,
        "in_channels": 3,
        "classes": 1,
        "decoder_attention_type": None if model.attention == "none" else model.attention,
        "aux_params": {"classes": 1, "pooling": "avg", "dropout": None} if model.classifier else None,
    }


def header(model: Model, description: dict[str, Any]) -> dict[str, str]:
    """What the file holds beside the weights. One text: the order of several would be another each time."""
    how = {
        "class": "segmentation_models_pytorch.Unet",
        "arguments": arguments(model),
        "input": "grey / 255, three times",
    }
    return {"jaxpneumo": json.dumps({"network": how, **description})}


def _layout(array: np.ndarray) -> np.ndarray:
    """Kernels (H, W, in, out) and (in, out) with the outputs first."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def _unused(channels: int) -> dict[str, np.ndarray]:
    hidden = channels // REDUCTION
    shapes = {
        "cSE.1.weight": (hidden, channels, 1, 1),
        "cSE.1.bias": (hidden,),
        "cSE.3.weight": (channels, hidden, 1, 1),
        "cSE.3.bias": (channels,),
        "sSE.0.weight": (1, channels, 1, 1),
        "sSE.0.bias": (1,),
    }
    return {f"{UNUSED}.{name}": np.zeros(shape, np.float32) for name, shape in shapes.items()}


def _unused_head(channels: int) -> dict[str, np.ndarray]:
    features = HEAD_EXPANSION * channels
    leaves = ("weight", "bias", "running_mean", "running_var")
    norm = {f"{HEAD_NORM}.{leaf}": np.zeros(features, np.float32) for leaf in leaves}
    kernel = np.zeros((features, channels, 1, 1), np.float32)
    return {f"{HEAD}.weight": kernel, **norm, f"{HEAD_NORM}.num_batches_tracked": np.array(0)}
