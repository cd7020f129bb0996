"""Weights of other libraries: read from a local file, renamed, checked name by name and shape by shape.

| file | network | source and licence |
| --- | --- | --- |
| resnet34_imagenet_1000_no_top.h5 | encoder "resnet34_preact" | classification_models (Keras), MIT |
| resnet34-b627a593.pth, or as .safetensors | encoder "resnet34" | torchvision, BSD-3-Clause |
| .h5 of a segmentation_models Unet | all of "resnet34_preact" | its author's |
| .pth, .safetensors of a segmentation_models_pytorch Unet | all of "resnet34" | its author's |

Nothing is downloaded, and nothing is unpickled: .pth files go through torch.load(weights_only=True), which
needs PyTorch; the other two formats do not.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxpneumo.errors import InputError
from jaxpneumo.model.unet import UNet

Variables = dict[str, Any]

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
    name = re.sub(r"(layer\d)_(\d+)", r"\1.\2", name)
    name = name.replace("downsample_conv", "downsample.0").replace("downsample_bn", "downsample.1")
    name = re.sub(r"decoder\.block(\d)\.conv(\d)", r"decoder.blocks.\1.conv\2.0", name)
    name = re.sub(r"decoder\.block(\d)\.bn(\d)", r"decoder.blocks.\1.conv\2.1", name)
    name = re.sub(r"^segmentation_head$", "segmentation_head.0", name)
    return f"{name}.{_TORCH_LEAVES[leaf]}"


def keras_name(path: tuple[str, ...]) -> str:
    """Our path below `params` or `batch_stats` -> segmentation_models' weight name."""
    *modules, leaf = path
    if modules[0] == "segmentation_head":
        return f"final_conv/{'bias:0' if leaf == 'bias' else 'kernel:0'}"
    name = "_".join(modules[1:]).replace("shortcut", "sc")
    if modules[0] == "decoder":
        block, layer = re.fullmatch(r"block(\d)_(\w+)", name).groups()
        name = f"decoder_stage{block}{'ab'[int(layer[-1]) - 1]}_{layer[:-1]}"
    return f"{name}/{_KERAS_LEAVES[leaf]}"


def from_torch(state_dict: Mapping[str, np.ndarray], template: Variables | None = None) -> Variables:
    """Variables of `UNet("resnet34")` from PyTorch arrays.

    Args:
      state_dict: name -> array, either the whole segmentation_models_pytorch Unet("resnet34") or torchvision's
        resnet34 (no `encoder.` prefix; its classifier is left out).
      template: variables of the network to fill (arrays or shapes); the default is the full ResNet34-UNet.

    Returns:
      {"params", "batch_stats"} of the whole network, or of `encoder` alone for torchvision's names.

    Raises:
      InputError: names or shapes differ; the message lists every difference.
    """
    weights = {k: v for k, v in state_dict.items() if not k.endswith("num_batches_tracked")}
    encoder_only = not any(name.startswith(("encoder.", "decoder.")) for name in weights)
    if encoder_only:
        weights = {f"encoder.{k}": v for k, v in weights.items() if not k.startswith("fc.")}

    def layout(array: np.ndarray) -> np.ndarray:
        return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array

    return _rename(weights, template or _template("resnet34"), torch_name, layout, encoder_only)


def from_keras(weights: Mapping[str, np.ndarray], template: Variables | None = None) -> Variables:
    """Variables of `UNet("resnet34_preact")` from Keras arrays named like 'stage1_unit1_bn1/gamma:0'.

    Args:
      weights: name -> array of the whole segmentation_models Unet("resnet34"), or of its encoder alone.
      template: variables of the network to fill (arrays or shapes); the default is the full ResNet34-UNet.

    Returns:
      {"params", "batch_stats"} of the whole network, or of `encoder` alone.

    Raises:
      InputError: names or shapes differ; the message lists every difference.
    """
    encoder_only = not any(name.startswith("decoder_") for name in weights)
    return _rename(weights, template or _template("resnet34_preact"), keras_name, lambda a: a, encoder_only)


def read_weights(path: Path | str) -> dict[str, np.ndarray]:
    """Reads name -> array from a .h5, .safetensors or .pth/.pt file.

    Raises:
      InputError: the file is missing, unreadable, of another kind, or needs a package that is not installed.
    """
    path = Path(path)
    readers = {
        ".h5": _read_h5,
        ".hdf5": _read_h5,
        ".safetensors": _read_safetensors,
        ".pth": _read_torch,
        ".pt": _read_torch,
    }
    if path.suffix not in readers:
        raise InputError(f"{path}: weights must be a .h5, .safetensors, .pth or .pt file.")
    if not path.is_file():
        raise InputError(f"{path}: no such file. README.md says where the ImageNet weights come from.")
    try:
        return readers[path.suffix](path)
    except InputError:
        raise
    except Exception as error:  # a damaged file makes the three libraries raise nearly anything
        raise InputError(f"{path} cannot be read as {path.suffix} weights: {error}") from error


def load(path: Path | str, variables: Variables) -> Variables:
    """Puts the weights of a local file into initialised variables.

    Args:
      path: .h5 (Keras names), .safetensors, .pth or .pt (PyTorch names).
      variables: {"params", "batch_stats"} of the network as initialised; what the file does not cover (the
        decoder, when it is an encoder's file; Exp1's input convolution) stays as it is.

    Returns:
      Variables of the same structure and types.

    Raises:
      InputError: the file is not usable, or does not fit this network; all differences in one message.
    """
    weights = read_weights(path)
    from_library = from_keras if any(name.endswith(":0") for name in weights) else from_torch
    try:
        found = flatten_dict(from_library(weights, variables))
    except InputError as error:
        raise InputError(f"{path} does not fit the network: {error}") from error
    merged = {key: jnp.asarray(found.get(key, value), value.dtype) for key, value in flatten_dict(variables).items()}
    return unflatten_dict(merged)


def _template(encoder: str) -> Variables:
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    return jax.eval_shape(lambda x: UNet(encoder).init(jax.random.key(0), x, train=False), image)


def _rename(
    weights: Mapping[str, np.ndarray],
    template: Variables,
    name_of: Callable[[tuple[str, ...]], str],
    layout: Callable[[np.ndarray], np.ndarray],
    encoder_only: bool,
) -> Variables:
    wanted = {
        (collection, *path): (name_of(path), value.shape)
        for (collection, *path), value in flatten_dict(template).items()
        if path[0] == "encoder" or not (encoder_only or path[0] == "input_convolution")
    }
    problems, found = [], {}
    for key, (name, shape) in wanted.items():
        if name not in weights:
            problems.append(f"missing {name}")
            continue
        array = layout(np.asarray(weights[name]))
        if array.shape != shape:
            problems.append(f"{name} has shape {array.shape}, expected {shape}")
        found[key] = array.astype(np.float32)
    known = {name for name, _ in wanted.values()}
    problems += [f"unexpected {name}" for name in weights if name not in known]
    if problems:
        listed = "\n  ".join(problems)
        raise InputError(
            f"{len(problems)} of {len(wanted)} weights differ. Check that model.encoder is the file's network "
            f"(resnet34_preact: Keras .h5; resnet34: torchvision).\n  {listed}"
        )
    return unflatten_dict(found)


def _read_h5(path: Path) -> dict[str, np.ndarray]:
    import h5py

    with h5py.File(path) as file:
        root = file.get("model_weights", file)
        weights = {}

        def visit(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                # The group is the layer; what lies between it and the leaf is the scope of a Keras session.
                weights[f"{name.split('/')[0]}/{name.split('/')[-1]}"] = item[()]

        root.visititems(visit)
    return weights


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(path)


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{path}: .pth files need PyTorch (pip install torch), or convert the file to .safetensors once."
        ) from error
    state_dict = torch.load(path, map_location="cpu", weights_only=True)
    return {name: tensor.numpy() for name, tensor in state_dict.items()}
