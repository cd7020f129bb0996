"""Every score by hand and against scikit-learn; the empty cases one by one."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, jaccard_score, recall_score

from jaxpneumo.score.metrics import summarise
from jaxpneumo.score.scores import ratios, select, values


def table(*images: tuple[int, ...]) -> dict[str, np.ndarray]:
    names = ("tp", "fp", "fn", "lesions", "lesions_detected", "regions", "regions_real", "hausdorff95_px")
    return dict(zip(names, np.array(images, float).T, strict=False))


def test_scores_by_hand():
    nan = float("nan")
    found = values(
        ratios(
            table(
                (2, 1, 1, 2, 1, 3, 1, 7.0),  # half of the two lesions, with two false regions
                (0, 0, 3, 1, 0, 0, 0, nan),  # missed
                (0, 0, 0, 0, 0, 0, 0, nan),  # negative, left empty
                (0, 7, 0, 0, 0, 1, 0, nan),  # negative, false alarm
            )
        )
    )
    assert found == pytest.approx(
        {
            "dice": (2 / 3 + 0 + 1 + 0) / 4,
            "iou": (1 / 2 + 0 + 1 + 0) / 4,
            "dice_positive": 1 / 3,
            "iou_positive": 1 / 4,
            "dice_negative": 1 / 2,
            "sensitivity": 1 / 2,
            "specificity": 1 / 2,
            "lesion_sensitivity": 1 / 3,
            "lesion_precision": 1 / 4,
            "false_regions_per_image": 3 / 4,
            "hausdorff95_px": 7.0,
        }
    )


@pytest.mark.parametrize(
    ("image", "dice", "sensitivity", "specificity"),
    [((0, 0, 0), 1, None, 1), ((0, 5, 0), 0, None, 0), ((0, 0, 5), 0, 0, None), ((0, 2, 5), 0, 1, None)],
)
def test_empty_cases_one_by_one(image, dice, sensitivity, specificity):
    found = values(ratios(table(image)))
    assert (found["dice"], found["sensitivity"], found["specificity"]) == (dice, sensitivity, specificity)
    assert found["dice_positive"] == (None if image[2] == 0 else 0)


def test_scores_against_scikit_learn():
    rng = np.random.default_rng(0)
    truth = (rng.random((30, 50)) < 0.3) & (rng.random((30, 1)) < 0.6)
    prediction = (truth ^ (rng.random((30, 50)) < 0.2)) & (rng.random((30, 1)) < 0.7)
    counts = {
        "tp": (truth & prediction).sum(1),
        "fp": (~truth & prediction).sum(1),
        "fn": (truth & ~prediction).sum(1),
    }
    found = values(ratios(counts))
    pairs = list(zip(truth, prediction, strict=True))
    dices = [f1_score(t, p, zero_division=1.0) for t, p in pairs]
    ious = [jaccard_score(t, p, zero_division=0.0) if t.any() or p.any() else 1.0 for t, p in pairs]
    assert found["dice"] == pytest.approx(np.mean(dices), abs=1e-6)
    assert found["iou"] == pytest.approx(np.mean(ious), abs=1e-6)
    positive, called = truth.any(1), prediction.any(1)
    assert found["dice_positive"] == pytest.approx(np.mean(np.array(dices)[positive]), abs=1e-6)
    assert found["sensitivity"] == pytest.approx(recall_score(positive, called), abs=1e-6)
    assert found["specificity"] == pytest.approx(recall_score(~positive, ~called), abs=1e-6)
    summary = summarise(**counts)
    assert found == pytest.approx(found | {name: summary[name] for name in summary if name in found})


def test_selection_is_the_score_of_the_selected():
    counts = table((2, 1, 1), (0, 0, 3), (0, 0, 0), (0, 7, 0))
    keep = np.array([True, False, True, False])
    selected = values(select(ratios(counts), keep))
    assert selected == values(ratios({name: column[keep] for name, column in counts.items()}))
