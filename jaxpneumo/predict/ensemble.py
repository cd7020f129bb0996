"""Several runs that predict as one: the weighted mean of their probabilities, with and without flip TTA.

The runs must be of one network and input size. Their parameters are stacked, and one compiled call takes a batch
through all of them.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxpneumo.model.unet import UNet
from jaxpneumo.predict.infer import Predictor, jit_probabilities, load_predictor, predict_probabilities
from jaxpneumo.process.errors import InputError
from jaxpneumo.run.network import make_model
from jaxpneumo.run.sharding import replicated


def load_ensemble(workdirs: Sequence[Path], weights: Sequence[float], batch_size: int | None = None) -> Predictor:
    """The predictor of one run or of several.

    Args:
      workdirs: finished runs. Thresholds, batch size and data are the first one's.
      weights: of each run's probabilities, adding up to 1.
      batch_size: as for `load_predictor`.

    Returns:
      A predictor like any other; of several runs its variables are stacked along a first axis.

    Raises:
      InputError: a folder is no finished run, or the runs differ in network or input size.
    """
    predictors = [load_predictor(workdir, batch_size) for workdir in workdirs]
    first = predictors[0]
    if len(predictors) == 1:
        return first
    for other in predictors[1:]:
        _check_alike(first, other)
    mesh, model = first.mesh, make_model(first.config.model, training=False)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(predictor.variables for predictor in predictors))
    return replace(
        first,
        variables=jax.device_put(stacked, replicated(mesh)),
        model_id="+".join(predictor.model_id for predictor in predictors),
        probabilities=jit_probabilities(functools.partial(ensemble_probabilities, model, tuple(weights)), mesh),
        synthetic=any(predictor.synthetic for predictor in predictors),
        weighted_runs=tuple(zip(workdirs, weights, strict=True)),
    )


def ensemble_probabilities(
    model: UNet, weights: tuple[float, ...], variables: dict[str, Any], image: jax.Array, mirror: bool
) -> jax.Array:
    """The weighted mean of `predict_probabilities` of several runs.

    Args:
      model: the network of all of them.
      weights: one a run, adding up to 1.
      variables: {"params", "batch_stats"} with a leading axis of the runs.
      image, mirror: as for `predict_probabilities`, and so is what is returned.
    """
    # One run after the other: XLA makes convolutions that are batched over kernels too ten times as slow on a CPU.
    each = jax.lax.map(lambda one: predict_probabilities(model, one, image, mirror), variables)
    return jnp.tensordot(jnp.float32(weights), each, axes=1, precision="highest")


def _check_alike(first: Predictor, other: Predictor) -> None:
    """The network as it predicts: where its first weights came from, and BatchNorm's momentum, do not matter."""
    unlike = [
        f"model.{key} ({one!r} and {two!r})"
        for key in ("encoder", "dtype", "input_convolution", "depths", "width")
        if (one := getattr(first.config.model, key)) != (two := getattr(other.config.model, key))
    ]
    sizes = first.settings.size, other.settings.size
    if sizes[0] != sizes[1]:
        unlike.append(f"predict.size ({sizes[0]} and {sizes[1]})")
    if unlike:
        raise InputError(
            f"{first.workdir} and {other.workdir} cannot be averaged: they differ in {', '.join(unlike)}. Give runs "
            "with the same network and input size."
        )
