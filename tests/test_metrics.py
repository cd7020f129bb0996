"""Counts, Dice and IoU against values made by hand, and the challenge's own figures."""

import csv
import gzip
import json

import numpy as np
import pytest

from jaxpneumo.data import rle
from jaxpneumo.predict.postprocess import remove_small
from jaxpneumo.process.errors import InputError
from jaxpneumo.score.metrics import all_empty, counts, dice, iou, summarise

TRUTH = np.array([[1, 1, 0], [1, 0, 0]], np.uint8)
PREDICTION = np.array([[0, 1, 1], [1, 0, 0]], np.uint8)
NOTHING = np.zeros((2, 3), np.uint8)


def test_counts_of_one_image_by_hand():
    assert counts(PREDICTION, TRUTH) == (2, 1, 1)
    assert counts(NOTHING, TRUTH) == (0, 0, 3)
    assert counts(TRUTH, NOTHING) == (0, 3, 0)
    assert counts(PREDICTION.astype(bool), TRUTH * 255) == (2, 1, 1)


def test_counts_of_a_batch_are_those_of_its_images():
    predictions, truths = np.stack([PREDICTION, NOTHING, TRUTH]), np.stack([TRUTH, TRUTH, NOTHING])
    tp, fp, fn = counts(predictions, truths)
    assert [value.dtype for value in (tp, fp, fn)] == [np.int64] * 3
    assert list(zip(tp, fp, fn, strict=True)) == [(2, 1, 1), (0, 0, 3), (0, 3, 0)]


def test_full_images_do_not_overflow():
    full = np.ones((2, 1024, 1024), np.uint8)
    tp, fp, fn = counts(full, full)
    assert tp.tolist() == [1 << 20] * 2
    assert fp.tolist() == fn.tolist() == [0, 0]
    assert dice(np.uint16(40000), np.uint16(40000), np.uint16(40000)) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("prediction", "truth", "words"),
    [
        (PREDICTION, TRUTH.T, "one shape"),
        (PREDICTION[0], TRUTH[0], "one shape"),
        (PREDICTION * 0.7, TRUTH, "prediction is float64"),
        (PREDICTION, TRUTH.astype(np.float32), "truth is float32"),
    ],
)
def test_counts_refuse_what_is_no_pair_of_masks(prediction, truth, words):
    with pytest.raises(ValueError, match=words):
        counts(prediction, truth)


@pytest.mark.parametrize(
    ("case", "expected_dice", "expected_iou"),
    [
        ((2, 1, 1), 2 / 3, 1 / 2),
        ((5, 0, 0), 1.0, 1.0),
        ((1, 2, 0), 1 / 2, 1 / 3),
        ((0, 3, 4), 0.0, 0.0),
        ((0, 0, 1), 0.0, 0.0),  # a missed pneumothorax
        ((0, 1, 0), 0.0, 0.0),  # one wrong pixel on a negative image costs the whole image
        ((0, 0, 0), 1.0, 1.0),  # the challenge's rule
    ],
)
def test_ratios_by_hand(case, expected_dice, expected_iou):
    assert dice(*case) == pytest.approx(expected_dice, abs=1e-15)
    assert iou(*case) == pytest.approx(expected_iou, abs=1e-15)


def test_ratios_over_arrays_and_their_identity():
    tp, fp, fn = np.random.default_rng(0).integers(0, 4, (3, 500))
    scores, overlaps = dice(tp, fp, fn), iou(tp, fp, fn)
    assert scores.shape == (500,)
    assert np.all(scores[tp + fp + fn == 0] == 1)
    np.testing.assert_allclose(scores, 2 * overlaps / (1 + overlaps))


def test_summary_by_hand():
    tp, fp, fn = np.array([(2, 1, 1), (0, 0, 3), (0, 0, 0), (0, 7, 0), (0, 0, 0)]).T
    summary = summarise(tp, fp, fn)
    assert summary == pytest.approx(
        {
            "dice": (2 / 3 + 0 + 1 + 0 + 1) / 5,
            "iou": (1 / 2 + 0 + 1 + 0 + 1) / 5,
            "dice_positive": 1 / 3,
            "iou_positive": 1 / 4,
            "dice_negative": 2 / 3,
            "n_images": 5,
            "n_positive": 2,
        }
    )


def test_summary_is_json_even_without_positives_or_negatives():
    none, three = np.zeros(1, int), np.full(1, 3)
    without_positives = json.loads(json.dumps(summarise(none, none, none), allow_nan=False))
    assert (without_positives["dice"], without_positives["dice_positive"]) == (1.0, None)
    without_negatives = json.loads(json.dumps(summarise(three, none, none), allow_nan=False))
    assert (without_negatives["dice_positive"], without_negatives["dice_negative"]) == (1.0, None)
    with pytest.raises(InputError, match="no images"):
        summarise(none[:0], none[:0], none[:0])


def test_all_empty_scores_the_share_of_negatives():
    summary = all_empty(np.array([0, 12, 0, 0]))
    assert (summary["dice"], summary["dice_positive"], summary["dice_negative"]) == (0.75, 0.0, 1.0)
    assert (summary["n_images"], summary["n_positive"]) == (4, 1)


@pytest.mark.slow
def test_the_challenge_s_baseline_and_the_ceiling_of_removal(shared):
    """Perfect predictions of all 12,047 label masks, with 2048 pixels counted at 1024, 512 or 256 pixels a side.

    `remove_small` scales the threshold with the image; 2048 pixels at half the side are 8192 native ones.
    """
    codes: dict[str, list[str]] = {}
    with gzip.open(shared / "data" / "train-rle-12047.csv.gz", "rt") as file:
        for image_id, code in list(csv.reader(file, skipinitialspace=True))[1:]:
            codes.setdefault(image_id, []).append(code)

    expected = {1024: 0.9769, 512: 0.8933, 256: 0.8018}
    truth_area = np.zeros(len(codes), int)
    kept_area = {size: np.zeros(len(codes), int) for size in expected}
    for n, rows in enumerate(codes.values()):
        if rows == ["-1"]:
            continue
        truth = rle.union(rows, 1024, 1024)
        for size in expected:
            tp, _, fn = counts(remove_small(truth, 2048 * (1024 // size) ** 2, "image"), truth)
            truth_area[n], kept_area[size][n] = tp + fn, tp

    baseline = all_empty(truth_area)
    assert (baseline["n_images"], baseline["n_positive"]) == (12047, 2669)
    assert round(baseline["dice"], 4) == 0.7785
    assert np.sum((truth_area > 0) & (kept_area[1024] == 0)) == 278
    ceiling = {}
    for size, kept in kept_area.items():
        perfect = summarise(kept, np.zeros_like(kept), truth_area - kept)
        assert perfect["dice_negative"] == 1.0
        ceiling[size] = round(perfect["dice"], 4)
    print(f"all empty {baseline['dice']:.4f}; ceiling {ceiling}")
    assert ceiling == expected
