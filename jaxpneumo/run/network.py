"""The network of a run, and the weights that its first stage starts from."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxpneumo.model import pretrained
from jaxpneumo.model.rewrites import rewrites_for
from jaxpneumo.model.unet import ENCODERS, UNet
from jaxpneumo.process.errors import InputError
from jaxpneumo.run import checkpoint
from jaxpneumo.run.config import read_config, stages_of
from jaxpneumo.run.folders import final_directory
from jaxpneumo.run.sharding import make_mesh, replicated
from jaxpneumo.run.state import initialise


def make_model(config: ConfigDict, training: bool = True) -> UNet:
    """The network of `config.model`; with `training` False for folded variables (`model.folding`).

    Raises InputError for an unknown encoder or type.
    """
    model = config.model
    if model.encoder not in ENCODERS:
        raise InputError(f"model.encoder={model.encoder!r} is unknown: choose one of {', '.join(ENCODERS)}.")
    if model.dtype not in ("float32", "bfloat16"):
        raise InputError(f'model.dtype={model.dtype!r}: choose "float32" or "bfloat16".')
    return UNet(
        encoder=model.encoder,
        dtype=jnp.dtype(model.dtype),
        input_convolution=model.input_convolution,
        momentum=batch_norm_momentum(config),
        depths=tuple(model.depths),
        width=model.width,
        parts=rewrites_for(jax.default_backend(), training),
        remat=model.remat,
    )


def batch_norm_momentum(config: ConfigDict) -> float:
    """The config's BatchNorm momentum, or the encoder's own where it is None."""
    given = config.model.momentum
    return ENCODERS[config.model.encoder].momentum if given is None else given


def first_variables(config: ConfigDict) -> dict[str, Any]:
    """Variables the first stage starts from: another run's result, pretrained, or fresh ones.

    Raises InputError when the other run or the file of weights cannot be used.
    """
    variables = initialise(make_model(config), config.seed)
    if config.init_from:
        source = Path(config.init_from)
        stage = "stage1" if final_directory(source / "stage1").is_dir() else stages_of(read_config(source))[-1]
        return checkpoint.restore_final(source / stage, variables, replicated(make_mesh()))[0]
    if config.model.pretrained:
        return pretrained.load(config.model.pretrained, variables)
    return variables
