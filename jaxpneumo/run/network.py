"""The network of a run, and the weights that its first stage starts from."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxpneumo.model import pretrained
from jaxpneumo.model.rewrites import rewrites_for
from jaxpneumo.model.unet import UNet
from jaxpneumo.run.config import Config, Model, read_config
from jaxpneumo.run.folders import final_directory
from jaxpneumo.run.sharding import make_mesh, replicated
from jaxpneumo.run.shared import final_variables
from jaxpneumo.run.state import initialise


def make_model(settings: Model, training: bool = True) -> UNet:
    """The network of a config's section `model`; with `training` False for folded variables (`model.folding`)."""
    return UNet(
        encoder=settings.encoder,
        dtype=jnp.dtype(settings.dtype),
        input_convolution=settings.input_convolution,
        momentum=settings.momentum,
        depths=settings.depths,
        width=settings.width,
        parts=rewrites_for(jax.default_backend(), training),
        remat=settings.remat,
        classifier=settings.classifier,
        attention=settings.attention,
        hypercolumns=settings.hypercolumns,
    )


def first_variables(config: Config) -> dict[str, Any]:
    """Variables the first stage starts from: another run's result, pretrained, or fresh ones.

    Raises InputError when the other run or the file of weights cannot be used.
    """
    variables = initialise(make_model(config.model), config.seed)
    if config.init_from:
        source = Path(config.init_from)
        # In the place of stage 1, where there are more; a run of one stage starts from the end of the other run. A
        # shared run has its last stage alone.
        first = len(config.stages) > 1 and final_directory(source / "stage1").is_dir()
        return stage_result(source, "stage1" if first else None, variables)
    if config.model.pretrained:
        return pretrained.load(config.model.pretrained, variables)
    return variables


def stage_result(run: Path | str, stage: str | None, template: dict[str, Any]) -> dict[str, Any]:
    """The variables that a stage of a run or a shared folder ended with, the last stage for None, on all devices.

    Raises InputError when they are missing, damaged or of another network than `template`.
    """
    stage = stage or read_config(run).stages[-1].name
    return final_variables(Path(run), stage, template, replicated(make_mesh()))
