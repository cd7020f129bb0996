"""Folds keep patients whole and share out the positives."""

import numpy as np
import pytest

from jaxpneumo.score.folds import folds


def test_folds_keep_patients_whole_and_share_out_positives():
    rng = np.random.default_rng(0)
    cluster = np.sort(np.r_[np.arange(60), rng.integers(0, 60, 140)])
    positive = rng.random(60)[cluster] < 0.2
    fold = folds(cluster, positive, 5, seed=1)
    for patient in range(60):
        assert len(set(fold[cluster == patient])) == 1
    sick = [len(set(cluster[positive & (fold == f)])) for f in range(5)]
    assert max(sick) - min(sick) <= 1
    everyone = [len(set(cluster[fold == f])) for f in range(5)]
    assert everyone == [12] * 5
    np.testing.assert_array_equal(fold, folds(cluster, positive, 5, seed=1))
    assert (fold != folds(cluster, positive, 5, seed=2)).any()


@pytest.mark.parametrize("count", [1, 4])
def test_too_few_patients_are_refused(count):
    with pytest.raises(ValueError, match="3 patients"):
        folds(np.array([0, 1, 2, 2]), np.zeros(4, bool), count, 0)
