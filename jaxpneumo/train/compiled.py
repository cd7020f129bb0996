"""The functions of `step.py` compiled for a mesh: state on every device, batches split along the devices.

Stages of equal settings share them, so that a process that trains several runs traces and compiles once.
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


@lru_cache(maxsize=4)
def stage_functions(
    settings: Model, loss: Loss, seed: int, threshold: float, augment: DeviceAugment | None, mesh: Mesh
) -> StageFunctions:
    """The functions for a network and its loss; the same ones whenever all arguments are equal.

    Args:
      settings, loss, seed: the config's.
      threshold: of the probability, for the scores of `evaluate`.
      augment: of `augment.device.make_augment`, or None.
      mesh: the devices.
    """
    model, optimizer = make_model(settings), make_optimizer()
    everywhere, along_data, along_calls = replicated(mesh), split(mesh), split_calls(mesh)
    return StageFunctions(
        create=jax.jit(lambda variables: create_train_state(variables, optimizer), out_shardings=everywhere),
        average=jax.jit(update_average, out_shardings=everywhere, donate_argnums=0),
        train=jax.jit(
            make_train_call(make_train_step(model, optimizer, loss, augment, seed)),
            in_shardings=(everywhere, everywhere, along_calls, everywhere, along_data),
            out_shardings=everywhere,
            donate_argnums=0,
        ),
        evaluate=jax.jit(
            make_eval_step(model, loss, threshold),
            in_shardings=(everywhere, everywhere, along_data, along_data),
            out_shardings=everywhere,
        ),
        statistics=jax.jit(
            make_statistics_call(model, batch_norm_momentum(settings)),
            in_shardings=(everywhere, everywhere, everywhere, along_calls, along_data),
            out_shardings=everywhere,
            donate_argnums=1,
        ),
    )
