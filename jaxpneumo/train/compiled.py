"""The functions of `step.py` compiled for a mesh: state on every device, batches split along the devices.

Each function is kept by the settings that it depends on, so that stages and runs of one process that agree in them
trace and compile once: two thresholds share the training step, two losses the statistics.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jaxpneumo.augment.device import DeviceAugment
from jaxpneumo.run.config import Loss, Model
from jaxpneumo.run.network import batch_norm_momentum, make_model
from jaxpneumo.run.sharding import replicated, split, split_calls
from jaxpneumo.run.state import create_train_state, update_average
from jaxpneumo.train.optimizer import make_optimizer
from jaxpneumo.train.step import make_eval_step, make_statistics_call, make_train_call, make_train_step

KEPT = 8  # of each kind, for as many different settings: the stages of a run, or runs of one process


class StageFunctions(NamedTuple):
    """What a stage runs on the devices. JAX compiles each at its first call, for the shapes that it is given.

    Attributes:
      create: of `create_train_state`, variables -> state.
      average: of `update_average`, state -> state.
      train, evaluate, statistics: of `make_train_call`, `make_eval_step`, `make_statistics_call`.
    """

    create: Callable[..., Any]
    average: Any
    train: Callable[..., Any]
    evaluate: Callable[..., Any]
    statistics: Callable[..., Any]


def stage_functions(
    settings: Model, loss: Loss, seed: int, threshold: float, augment: DeviceAugment | None, mesh: Mesh
) -> StageFunctions:
    """The functions for a network and its loss; each is the same one whenever what it depends on is equal.

    Args:
      settings, loss, seed: the config's.
      threshold: of the probability, for the scores of `evaluate`.
      augment: of `augment.device.make_augment`, or None.
      mesh: the devices.
    """
    return StageFunctions(
        *_state_functions(mesh),
        train=_train(settings, loss, seed, augment, mesh),
        evaluate=_evaluate(settings, loss, threshold, mesh),
        statistics=_statistics(settings, mesh),
    )


@lru_cache(maxsize=KEPT)
def _state_functions(mesh: Mesh) -> tuple[Callable[..., Any], Any]:
    optimizer = make_optimizer()
    return (
        jax.jit(lambda variables: create_train_state(variables, optimizer), out_shardings=replicated(mesh)),
        jax.jit(update_average, out_shardings=replicated(mesh), donate_argnums=0),
    )


@lru_cache(maxsize=KEPT)
def _train(settings: Model, loss: Loss, seed: int, augment: DeviceAugment | None, mesh: Mesh) -> Callable[..., Any]:
    everywhere = replicated(mesh)
    return jax.jit(
        make_train_call(make_train_step(make_model(settings), make_optimizer(), loss, augment, seed)),
        in_shardings=(everywhere, everywhere, split_calls(mesh), everywhere, split(mesh)),
        out_shardings=everywhere,
        donate_argnums=0,
    )


@lru_cache(maxsize=KEPT)
def _evaluate(settings: Model, loss: Loss, threshold: float, mesh: Mesh) -> Callable[..., Any]:
    everywhere, along_data = replicated(mesh), split(mesh)
    return jax.jit(
        make_eval_step(make_model(settings), loss, threshold),
        in_shardings=(everywhere, everywhere, along_data, along_data),
        out_shardings=everywhere,
    )


@lru_cache(maxsize=KEPT)
def _statistics(settings: Model, mesh: Mesh) -> Callable[..., Any]:
    everywhere = replicated(mesh)
    return jax.jit(
        make_statistics_call(make_model(settings), batch_norm_momentum(settings)),
        in_shardings=(everywhere, everywhere, everywhere, split_calls(mesh), split(mesh)),
        out_shardings=everywhere,
        donate_argnums=1,
    )
