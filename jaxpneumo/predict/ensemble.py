"""Ensembles: the weighted mean of the probabilities of several runs, with and without test-time augmentation (TTA).

The runs may have different networks and input sizes. Images come at the largest of the sizes. One compiled call makes
them smaller where a run needs it, applies all networks and enlarges the probabilities again. Runs of one network and
size are stacked, so that it is compiled once.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxpneumo.model.unet import UNet
from jaxpneumo.predict.infer import Outputs, Predictor, jit_outputs, load_predictor, predict_outputs
from jaxpneumo.predict.native import shrink
from jaxpneumo.process.errors import InputError
from jaxpneumo.run.network import make_model
from jaxpneumo.run.sharding import replicated


@dataclass(frozen=True)
class Group:
    """The runs of one network and input size: `weights` has one for each of them."""

    model: UNet
    size: int
    weights: tuple[float, ...]


def load_ensemble(workdirs: Sequence[Path], weights: Sequence[float], batch_size: int | None = None) -> Predictor:
    """Loads the predictor of one or several runs.

    Args:
      workdirs: finished runs. The first run sets thresholds, batch size and data.
      weights: one weight per run for its probabilities; the weights sum to 1.
      batch_size: see `load_predictor`.

    Raises:
      InputError: a folder is not a finished run, or as `combine`.
    """
    return combine([load_predictor(workdir, batch_size) for workdir in workdirs], weights)


def combine(predictors: Sequence[Predictor], weights: Sequence[float], size: int = 0) -> Predictor:
    """Makes one predictor of several.

    Args:
      predictors: the results of `load_predictor`. The first one sets all settings but the size.
      weights: one weight per predictor for its probabilities; the weights sum to 1.
      size: the size of the images that it takes; 0 takes the largest of the predictors' sizes.

    Returns:
      The predictor of the weighted mean. Its variables are a tuple with one tree per network and size, stacked along a
      new first axis. A single predictor that takes this size is returned as it is.

    Raises:
      InputError: the first one has a threshold of its classifier, and none with weight has a classifier.
    """
    first = predictors[0]
    size = size or max(predictor.settings.size for predictor in predictors)
    if len(predictors) == 1 and size == first.settings.size:
        return first
    own = first.settings.classifier_threshold
    if own is not None and not any(p.config.model.classifier for p, w in zip(predictors, weights, strict=True) if w):
        raise InputError(
            f"the thresholds of {first.workdir} need a classifier's score (classifier_threshold {own:g}), and no run "
            "with weight has a classifier. Give such a run weight, or put a run without this threshold first."
        )
    members: dict[Any, list[tuple[Predictor, float]]] = {}
    for predictor, weight in zip(predictors, weights, strict=True):
        # Initial weights and BatchNorm momentum do not matter to a prediction.
        network = replace(predictor.config.model, pretrained="", momentum=None, remat=False)
        members.setdefault((network, predictor.settings.size), []).append((predictor, weight))
    groups = tuple(
        Group(make_model(network, training=False), size, tuple(weight for _, weight in alike))
        for (network, size), alike in members.items()
    )
    stacked = tuple(
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *(predictor.variables for predictor, _ in alike))
        for alike in members.values()
    )
    runs = [predictor.workdir for predictor in predictors]
    return replace(
        first,
        settings=replace(first.settings, size=size),
        variables=jax.device_put(stacked, replicated(first.mesh)),
        model_id="+".join(predictor.model_id for predictor in predictors),
        outputs=jit_outputs(functools.partial(ensemble_outputs, groups), first.mesh),
        synthetic=any(predictor.synthetic for predictor in predictors),
        weighted_runs=tuple(zip(runs, weights, strict=True)),
    )


def ensemble_outputs(
    groups: Sequence[Group], variables: Sequence[dict[str, Any]], image: jax.Array, tta: bool | str
) -> Outputs:
    """Computes the weighted mean of `predict_outputs` over several runs, of whole images over those with a classifier.

    Args:
      groups: the runs by network and size; all weights together sum to 1.
      variables: for each group {"params", "batch_stats"} with a leading axis over its runs.
      image, tta: see `predict_outputs`; the image at the largest size.

    Returns:
      The same shapes and types as `predict_outputs`.
    """
    size, means, findings, share = image.shape[-1], [], [], 0.0
    for group, stacked in zip(groups, variables, strict=True):
        smaller = image if group.size == size else shrink(image, group.size)
        # Applies the runs one after another: on a CPU, XLA's convolutions are ten times slower if the kernels have a
        # batch axis too.
        apply = functools.partial(predict_outputs, group.model, image=smaller, tta=tta)
        pixels, finding = jax.lax.map(apply, stacked)
        weights = jnp.float32(group.weights)
        mean = jnp.tensordot(weights, pixels, axes=1, precision="highest")
        if finding is not None:
            findings.append(jnp.tensordot(weights, finding, axes=1, precision="highest"))
            share += sum(group.weights)
        means.append(mean if group.size == size else jax.image.resize(mean, (*mean.shape[:2], size, size), "linear"))
    # If none of the weight is on runs with a classifier, the images have no score.
    return functools.reduce(jnp.add, means), functools.reduce(jnp.add, findings) / share if share else None
