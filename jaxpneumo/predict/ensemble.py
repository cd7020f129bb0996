"""Ensembles: the weighted mean of the probabilities of several runs, with and without flip TTA.

All runs must have the same network and input size. Their parameters are stacked, and one compiled call applies all
networks to a batch.
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
    """Loads the predictor of one or several runs.

    Args:
      workdirs: finished runs. The first run sets thresholds, batch size and data.
      weights: one weight per run for its probabilities; the weights sum to 1.
      batch_size: see `load_predictor`.

    Returns:
      A predictor. For several runs, its variables are stacked along a new first axis.

    Raises:
      InputError: a folder is not a finished run, or the runs differ in network or input size.
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
    """Computes the weighted mean of `predict_probabilities` over several runs.

    Args:
      model: the network of all runs.
      weights: one weight per run; they sum to 1.
      variables: {"params", "batch_stats"} with a leading axis over the runs.
      image, mirror: see `predict_probabilities`.

    Returns:
      The same shapes and type as `predict_probabilities`.
    """
    # Applies the runs one after another: on a CPU, XLA's convolutions are ten times slower if the kernels have a batch
    # axis too.
    each = jax.lax.map(lambda one: predict_probabilities(model, one, image, mirror), variables)
    return jnp.tensordot(jnp.float32(weights), each, axes=1, precision="highest")


def _check_alike(first: Predictor, other: Predictor) -> None:
    """Checks that two runs predict with the same network. Initial weights and BatchNorm momentum may differ."""
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
