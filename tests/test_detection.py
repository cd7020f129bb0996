"""AUROC and average precision against scikit-learn, with ties and with weights."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from jaxpneumo.score.detection import auroc, average_precision


def test_by_hand():
    score, positive = np.array([0.9, 0.8, 0.7, 0.1]), np.array([True, False, True, False])
    assert auroc(score, positive) == pytest.approx([3 / 4])
    assert average_precision(score, positive) == pytest.approx([(1 + 2 / 3) / 2])
    assert auroc(np.full(4, 0.5), positive) == pytest.approx([0.5])  # all tied
    assert average_precision(np.full(4, 0.5), positive) == pytest.approx([0.5])
    assert auroc(-score, positive) == pytest.approx([1 / 4])


@pytest.mark.parametrize("ties", [False, True])
def test_against_scikit_learn(ties):
    rng = np.random.default_rng(0)
    for _ in range(10):
        positive = rng.random(200) < 0.3
        score = rng.normal(size=200) + positive
        score = np.round(score) if ties else score
        weights = rng.integers(0, 4, (5, 200)).astype(float)
        for ours, theirs in ((auroc, roc_auc_score), (average_precision, average_precision_score)):
            assert ours(score, positive)[0] == pytest.approx(theirs(positive, score), abs=1e-9)
            expected = [theirs(positive, score, sample_weight=w) for w in weights]
            np.testing.assert_allclose(ours(score, positive, weights), expected, atol=1e-9)


def test_without_positives_or_negatives_there_is_no_value():
    score = np.array([0.2, 0.4, 0.4])
    assert np.isnan(auroc(score, np.ones(3, bool))).all()
    assert np.isnan(auroc(score, np.zeros(3, bool))).all()
    assert np.isnan(average_precision(score, np.zeros(3, bool))).all()
    assert average_precision(score, np.ones(3, bool)) == pytest.approx([1])
    mixed = np.array([True, False, False])
    drawn_without_positive = np.array([[1.0, 1, 1], [0, 2, 1]])
    assert np.isnan(auroc(score, mixed, drawn_without_positive)).tolist() == [False, True]
