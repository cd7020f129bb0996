"""Weights of other libraries: read from a local file, renamed, checked name by name and shape by shape.

| file | network | source and licence |
| --- | --- | --- |
| resnet34_imagenet_1000_no_top.h5 | encoder "resnet34_preact" | classification_models (Keras), MIT |
| resnet34-b627a593.pth, or as .safetensors | encoder "resnet34" | torchvision, BSD-3-Clause |
| resnet50-0676ba61.pth or -11ad3fa6.pth, or as .safetensors | encoder "resnet50" | torchvision, BSD-3-Clause |
| se_resnext50_32x4d-a260b3a4.pth, .safetensors | encoder "se_resnext50_32x4d" | Cadene, BSD-3-Clause |
| [adv-]efficientnet-b4-*.pth, or as .safetensors | encoder "efficientnet-b4" | efficientnet_pytorch, Apache-2.0 |
| .h5 of a segmentation_models Unet | all of "resnet34_preact" | its author's |
| .pth, .safetensors of a segmentation_models_pytorch Unet | all of each but "resnet34_preact" | its author's |

PyTorch's names may stand behind a prefix that training programs put before them (module., model., net.), and in a
mapping "state_dict" or the like. An encoder's weights alone leave the decoder as it is. Nothing is downloaded.
"""

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxpneumo.model.unet import UNet
from jaxpneumo.model.weight_files import read_weights
from jaxpneumo.process.errors import InputError

logger = logging.getLogger(__name__)

Variables = dict[str, Any]

# Parts that some files have and the network need not have: classifiers of whole images, and PyTorch's counters.
_CLASSIFIERS = (
    *("fc.", "encoder.fc.", "encoder.last_linear.", "classification_head.", "fc1/"),
    *("encoder._conv_head.", "encoder._bn1.", "encoder._fc."),
)
# Attention before the last block's skip, which that block does not have.
_WITHOUT_USE = "decoder.blocks.4.attention1."
# A part that the network may have and no file has.
_OURS_ALONE = "input_convolution"
# segmentation_models_pytorch's head for whole images, behind pooling, flattening and dropout.
_HEAD = "classification_head.3"
_COUNTERS = "num_batches_tracked"
_LISTED = 3  # names of each kind in a message

_TORCH_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_KERAS_LEAVES = {
    "kernel": "kernel:0",
    "scale": "gamma:0",
    "bias": "beta:0",
    "mean": "moving_mean:0",
    "var": "moving_variance:0",
}


def torch_name(path: tuple[str, ...]) -> str:
    """Our path below `params` or `batch_stats` -> segmentation_models_pytorch's state-dict key."""
    *modules, leaf = path
    name = ".".join(modules)
    name = re.sub(r"(layer\d)_(\d+|conv1|bn1)", r"\1.\2", name)
    name = re.sub(r"^encoder\.(conv_stem|bn0)$", r"encoder._\1", name)
    name = re.sub(r"^encoder\.blocks_(\d+)\.", r"encoder._blocks.\1._", name)
    name = name.replace("downsample_conv", "downsample.0").replace("downsample_bn", "downsample.1")
    name = re.sub(r"decoder\.block(\d)\.conv(\d)", r"decoder.blocks.\1.conv\2.0", name)
    name = re.sub(r"decoder\.block(\d)\.bn(\d)", r"decoder.blocks.\1.conv\2.1", name)
    name = re.sub(r"decoder\.block(\d)\.attention(\d)", r"decoder.blocks.\1.attention\2.attention", name)
    for ours, theirs in {"channel1": "cSE.1", "channel2": "cSE.3", "pixel": "sSE.0"}.items():
        name = name.replace(f".attention.{ours}", f".attention.{theirs}")
    name = {"segmentation_head": "segmentation_head.0", "classifier": _HEAD}.get(name, name)
    return f"{name}.{_TORCH_LEAVES[leaf]}"


def keras_name(path: tuple[str, ...]) -> str:
    """Our path below `params` or `batch_stats` -> segmentation_models' weight name."""
    *modules, leaf = path
    if modules[0] == "segmentation_head":
        return f"final_conv/{'bias:0' if leaf == 'bias' else 'kernel:0'}"
    name = "_".join(modules[1:]).replace("shortcut", "sc")
    if modules[0] == "decoder":
        block, layer = name.removeprefix("block").split("_", 1)
        name = f"decoder_stage{block}{'ab'[int(layer[-1]) - 1]}_{layer[:-1]}"
    return f"{name}/{_KERAS_LEAVES[leaf]}"


def from_torch(state_dict: Mapping[str, np.ndarray], template: Variables | None = None) -> Variables:
    """Variables of a `UNet` over one of PyTorch's encoders, from PyTorch arrays.

    Args:
      state_dict: name -> array, either segmentation_models_pytorch's Unet, whole or its encoder alone, or the
        encoder's own library's network; behind any prefix. Classifiers are left out, but for a Unet's head of one class
        where the network has a classifier.
      template: variables of the network to fill (arrays or shapes); the default is the full ResNet34-UNet.

    Returns:
      {"params", "batch_stats"} of the whole network, or of `encoder` alone.

    Raises:
      InputError: names or shapes differ, or values cannot be weights; the message counts all and names the first.
    """
    weights, encoder_only = _own_names(state_dict)

    def layout(array: np.ndarray) -> np.ndarray:
        return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T

    return _rename(weights, template or _template("resnet34"), torch_name, layout, encoder_only)


def from_keras(weights: Mapping[str, np.ndarray], template: Variables | None = None) -> Variables:
    """Variables of `UNet("resnet34_preact")` from Keras arrays named like 'stage1_unit1_bn1/gamma:0'.

    Args:
      weights: name -> array of the whole segmentation_models Unet("resnet34"), or of its encoder alone.
      template: variables of the network to fill (arrays or shapes); the default is the full ResNet34-UNet.

    Returns:
      {"params", "batch_stats"} of the whole network, or of `encoder` alone.

    Raises:
      InputError: as `from_torch`.
    """
    encoder_only = not any(name.startswith(("decoder_", "final_conv/")) for name in weights)
    return _rename(weights, template or _template("resnet34_preact"), keras_name, lambda a: a, encoder_only)


def load(path: Path | str, variables: Variables) -> Variables:
    """Puts the weights of a local file into initialised variables.

    Args:
      path: .h5 (Keras names), .safetensors, .pth or .pt (PyTorch names).
      variables: {"params", "batch_stats"} of the network as initialised; what the file does not cover (the
        decoder, when it is an encoder's file; Exp1's input convolution) stays as it is.

    Returns:
      Variables of the same structure and types.

    Raises:
      InputError: the file is not usable, or does not fit this network; the differences in one message.
    """
    weights = read_weights(path)
    from_library = from_keras if any(name.endswith(":0") for name in weights) else from_torch
    try:
        found = flatten_dict(from_library(weights, variables))
    except InputError as error:
        raise InputError(f"{path} does not fit the network: {error}") from error
    if all("decoder" not in key for key in found):
        logger.info("%s holds an encoder's weights; the decoder begins untrained", path)
    merged = {key: jnp.asarray(found.get(key, value), value.dtype) for key, value in _arrays(variables).items()}
    return unflatten_dict(merged)


def _template(encoder: str) -> Variables:
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    return jax.eval_shape(lambda x: UNet(encoder).init(jax.random.key(0), x, train=False), image)


def _own_names(state_dict: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], bool]:
    """PyTorch's weights under the names of segmentation_models_pytorch, and whether they are an encoder's alone."""
    weights = {name: array for name, array in state_dict.items() if not name.endswith(_COUNTERS)}
    units = (re.match(r"((?:[^.]+\.)*?)(?:layer[1-4]|_blocks)\.\d+\.", name) for name in weights)
    places = sorted({unit[1] for unit in units if unit})
    if len(places) > 1:
        listed = ", ".join(repr(place) for place in places)
        raise InputError(f"it holds {len(places)} residual networks, below {listed}. Save the weights of one alone.")
    place = places[0] if places else "encoder."
    if place.endswith("encoder."):
        prefix, added = place.removesuffix("encoder."), ""
    else:
        prefix, added = place, "encoder."
    inside = {added + name.removeprefix(prefix): a for name, a in weights.items() if name.startswith(prefix)}
    if left_out := [name for name in weights if not name.startswith(prefix)]:
        logger.warning(
            "%d weights of the file are not below %r and left out: %s", len(left_out), prefix, _first(left_out)
        )
    encoder_only = bool(added) or not any(name.startswith(("decoder.", "segmentation_head.")) for name in inside)
    return inside, encoder_only


def _rename(
    weights: Mapping[str, np.ndarray],
    template: Variables,
    name_of: Callable[[tuple[str, ...]], str],
    layout: Callable[[np.ndarray], np.ndarray],
    encoder_only: bool,
) -> Variables:
    head = weights.get(f"{_HEAD}.weight")
    # A head of several classes says something else of an image.
    others = {_OURS_ALONE} if head is not None and np.shape(head)[:1] == (1,) else {_OURS_ALONE, "classifier"}
    wanted = {
        (collection, *path): (name_of(tuple(path)), value.shape)
        for (collection, *path), value in _arrays(template).items()
        if path[0] == "encoder" or not (encoder_only or path[0] in others)
    }
    known = dict(wanted.values())
    left_out = [name for name in weights if name.startswith(_CLASSIFIERS) and name not in known]
    if left_out:
        logger.info("The file's classifier is left out: %s", _first(left_out))
    left_out += [name for name in weights if name.startswith(_WITHOUT_USE)]
    missing = [f"missing {name}" for name in known if name not in weights]
    unexpected = [f"unexpected {name}" for name in weights if name not in known and name not in left_out]
    shapes, values, found = [], [], {}
    for key, (name, shape) in wanted.items():
        if name not in weights:
            continue
        array = layout(np.asarray(weights[name]))
        if array.shape != shape:
            shapes.append(f"{name} has shape {array.shape}, expected {shape}")
        elif problem := _unusable(array, key[-1] == "var"):
            values.append(f"{name} {problem}")
        else:
            found[key] = array.astype(np.float32)
    if differences := len(missing) + len(shapes) + len(unexpected):
        raise InputError(
            f"{differences} differences from its {len(wanted)} weights. Check that model.encoder is the file's network "
            "(resnet34_preact: Keras .h5; all others: PyTorch), and model.attention its decoder's.\n  "
            + "\n  ".join(_first(kind, "\n  ") for kind in (missing, shapes, unexpected) if kind)
        )
    if values:
        raise InputError(
            f"{len(values)} of its {len(wanted)} weights cannot be used. Take a file from before training went wrong, "
            "or save it as float32.\n  " + _first(values, "\n  ")
        )
    return unflatten_dict(found)


def _unusable(array: np.ndarray, variance: bool) -> str:
    """What keeps an array from being weights; "" if nothing does. A variance must not be negative."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return f"is of type {array.dtype}, no floating-point numbers"
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        return "holds values that are not a number (NaN) or infinite"
    return "is a variance below 0" if variance and (array < 0).any() else ""


def _first(items: list[str], between: str = ", ") -> str:
    """The first items, and how many more there are."""
    more = len(items) - _LISTED
    return between.join(items[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def _arrays(variables: Variables) -> dict[tuple[str, ...], jax.Array]:
    """Every array under its path; flax's type tells neither."""
    return cast(dict[tuple[str, ...], jax.Array], flatten_dict(variables))
