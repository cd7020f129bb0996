"""Adam, and the learning rate of each epoch: cosine annealing or reduce-on-plateau.

Both schedules change the rate between epochs only (papers, section 4). The rate is therefore an argument of the train
step, and the optimizer holds no schedule.
"""

import math
from typing import NamedTuple

import optax

from jaxpneumo.run.config import Stage


class Plateau(NamedTuple):
    """The state of reduce-on-plateau between epochs."""

    learning_rate: float
    best_loss: float = math.inf
    epochs_since_best: int = 0


def make_optimizer() -> optax.GradientTransformation:
    """Adam without a learning rate: the train step multiplies its updates by the rate of the epoch."""
    return optax.scale_by_adam()


def cosine_learning_rate(epoch: int, epochs: int, initial: float, final: float) -> float:
    """Rate of `epoch` (from 0): from `initial` towards `final` along half a cosine (arXiv 2009.02805, 4.2)."""
    return final + 0.5 * (initial - final) * (1.0 + math.cos(math.pi * epoch / epochs))


def reduce_on_plateau(plateau: Plateau, loss: float, factor: float, patience: int) -> Plateau:
    """Multiplies the rate by `factor` after `patience` epochs without a loss lower by at least 1e-4."""
    if loss < plateau.best_loss - 1e-4:
        return Plateau(plateau.learning_rate, loss, 0)
    waited = plateau.epochs_since_best + 1
    if waited >= patience:
        return Plateau(plateau.learning_rate * factor, plateau.best_loss, 0)
    return plateau._replace(epochs_since_best=waited)


def learning_rate_fn(stage: Stage, epoch: int, plateau: Plateau) -> float:
    """The rate of one epoch by the stage's schedule, "cosine" or "plateau"; ValueError for another.

    In the `warmup_epochs` it rises to the stage's learning rate in equal steps; the schedule begins after them.
    """
    warmup = stage.warmup_epochs
    if epoch < warmup:
        return stage.learning_rate * (epoch + 1) / (warmup + 1)
    if stage.schedule == "cosine":
        left = stage.epochs - warmup
        return cosine_learning_rate(epoch - warmup, left, stage.learning_rate, stage.final_learning_rate)
    if stage.schedule == "plateau":
        return plateau.learning_rate
    raise ValueError(f'schedule must be "cosine" or "plateau", not {stage.schedule!r}')
