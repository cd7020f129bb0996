"""Learning rates of the papers' schedules, epoch by epoch."""

import itertools
from dataclasses import replace

import pytest

from jaxpneumo.run.config import Stage
from jaxpneumo.train.optimizer import Plateau, cosine_learning_rate, learning_rate_fn, reduce_on_plateau


def test_cosine_starts_at_the_initial_rate_and_passes_the_middle():
    assert cosine_learning_rate(0, 100, 1e-3, 0.0) == 1e-3
    assert cosine_learning_rate(50, 100, 1e-3, 0.0) == pytest.approx(5e-4)
    assert cosine_learning_rate(50, 100, 1e-3, 1e-4) == pytest.approx(5.5e-4)
    rates = [cosine_learning_rate(epoch, 100, 1e-3, 0.0) for epoch in range(100)]
    assert all(a > b > 0 for a, b in itertools.pairwise(rates))


def test_plateau_waits_for_its_patience_then_multiplies():
    plateau = Plateau(1e-3)
    seen = []
    for loss in (1.0, 0.9, 0.9, 0.95, 0.9, 0.91, 0.92, 0.93):
        plateau = reduce_on_plateau(plateau, loss, factor=0.2, patience=5)
        seen.append(plateau.learning_rate)
    assert seen == pytest.approx([1e-3] * 6 + [2e-4] * 2)
    assert plateau.best_loss == 0.9


def test_plateau_counts_a_tiny_improvement_as_none():
    plateau = Plateau(1e-3, best_loss=0.5)
    assert reduce_on_plateau(plateau, 0.49995, 0.2, 5).epochs_since_best == 1
    assert reduce_on_plateau(plateau, 0.4998, 0.2, 5).epochs_since_best == 0


def test_schedule_is_chosen_by_the_config():
    cosine = Stage("stage1", 32, 4, 10, "cosine", learning_rate=1e-3, swa_epochs=0, final_learning_rate=0.0)
    assert learning_rate_fn(cosine, 5, Plateau(7.0)) == pytest.approx(5e-4)
    assert learning_rate_fn(replace(cosine, schedule="plateau"), 5, Plateau(7.0)) == 7.0
    with pytest.raises(ValueError, match='"cosine" or "plateau"'):
        learning_rate_fn(replace(cosine, schedule="step"), 5, Plateau(7.0))
