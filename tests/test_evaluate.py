"""Evaluation: the 2x2 of TTA and removal at native size, from counts, beside the all-empty baseline."""

import csv
import json

import numpy as np
import pytest
from conftest import load_config, shrink

from jaxpneumo.data import dataset, rle
from jaxpneumo.errors import DONE, InputError
from jaxpneumo.evaluate import evaluate as module
from jaxpneumo.evaluate.metrics import all_empty, counts, dice
from jaxpneumo.files import read_json
from jaxpneumo.predict.infer import load_predictor, predict_masks
from jaxpneumo.predict.submission import read_submission
from jaxpneumo.train.run import train


@pytest.fixture(scope="module")
def workdir(prepared, tmp_path_factory):
    """A finished one-stage run of a tiny network on a patient-grouped split."""
    folder = tmp_path_factory.mktemp("run")
    config = shrink(load_config("exp2"), prepared)
    config.data.split = "patient"
    config.data.validation_fraction = 0.4
    config.model.dtype = "float32"
    config.stage1.learning_rate = 0.01
    config.predict.threshold = 0.3
    config.predict.removal_threshold = 20000
    train(config, folder)
    return folder


@pytest.fixture(scope="module")
def summary(workdir):
    assert module.main(["--workdir", str(workdir), "--quiet"]) == DONE
    return read_json(workdir / "evaluation/summary.json")


def test_summary_says_what_was_scored_and_how(workdir, summary, prepared):
    split = read_json(workdir / "splits.json")
    assert summary["n_images"] == len(split["validation"])
    assert summary["split"]["method"] == "patient"
    assert summary["split"]["part"] == "validation"
    assert summary["data"]["synthetic"] is True
    assert summary["input_size"] == 32
    assert summary["scored_at"] == ["128x128"]
    assert (summary["threshold"], summary["removal"]) == (0.3, {"threshold": 20000, "rule": "image"})
    index = dataset.read_index(prepared)
    validation = np.isin(index.image_id, split["validation"])
    assert summary["n_positive"] == index.positive[validation].sum()
    assert summary["all_empty"] == all_empty(index.mask_area[validation])
    assert set(summary["scores"]) == {"plain", "tta", "removal", "tta_removal"}
    assert "not a medical device" in summary["note"]


def test_scores_are_the_means_of_the_per_image_table(workdir, summary):
    with open(workdir / "evaluation/metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["ImageId"] for row in rows] == sorted(read_json(workdir / "splits.json")["validation"])
    for mode, scores in summary["scores"].items():
        assert np.mean([float(row[f"{mode}_dice"]) for row in rows]) == pytest.approx(scores["dice"], abs=1e-5)
        assert np.mean([float(row[f"{mode}_iou"]) for row in rows]) == pytest.approx(scores["iou"], abs=1e-5)
        positives = [float(row[f"{mode}_dice"]) for row in rows if int(row["truth_area"])]
        assert np.mean(positives) == pytest.approx(scores["dice_positive"], abs=1e-5)


def test_dice_is_against_the_label_files_mask_at_native_size(workdir, summary, prepared):
    """One image worked out beside the program, from its probability to its Dice."""
    index, labels = dataset.read_index(prepared), dataset.read_labels(prepared)
    images, _ = dataset.open_arrays(prepared, 32)
    with open(workdir / "evaluation/metrics.csv") as file:
        row = next(row for row in csv.DictReader(file) if int(row["truth_area"]))
    truth = rle.decode(labels[row["ImageId"]], 128, 128)
    assert truth.sum() == int(row["truth_area"])
    stream = [(0, images[int(row["row"])], (128, 128))]
    ((_, masks),) = predict_masks(load_predictor(workdir), stream, (0, 1))
    for mode, view in (("plain", 0), ("tta", 1)):
        assert float(row[f"{mode}_dice"]) == pytest.approx(float(dice(*counts(masks[view], truth))), abs=0.01)
        kept = int(row[f"{mode}_area"]) >= 20000 * 128 * 128 / 1024**2
        removed = "removal" if mode == "plain" else "tta_removal"
        assert int(row[f"{removed}_area"]) == (int(row[f"{mode}_area"]) if kept else 0)
    assert str(index.image_id[int(row["row"])]) == row["ImageId"]


def test_files_for_a_person_are_there(workdir, summary):
    codes = read_submission(workdir / "evaluation/submission.csv")
    assert len(codes) == summary["n_images"]
    assert (workdir / "evaluation/gallery.png").stat().st_size > 10_000
    text = module.table(summary)
    assert "SYNTHETIC" in text
    assert "all empty" in text
    assert f"{summary['scores']['tta_removal']['dice']:.4f}" in text


def test_batch_size_does_not_change_the_scores(workdir, summary, tmp_path):
    arguments = ["--workdir", str(workdir), "--quiet", "--batch-size", "2", "--output", str(tmp_path)]
    assert module.main(arguments) == DONE
    again = json.loads((tmp_path / "summary.json").read_text())
    assert again["n_images"] == summary["n_images"]
    for mode, scores in summary["scores"].items():
        assert again["scores"][mode]["dice"] == pytest.approx(scores["dice"], abs=1e-3)


def test_another_data_set_is_scored_whole(workdir, prepared, tmp_path):
    arguments = ["--workdir", str(workdir), "--quiet", "--data", str(prepared), "--part", "all"]
    assert module.main([*arguments, "--output", str(tmp_path / "all")]) == DONE
    assert read_json(tmp_path / "all/summary.json")["n_images"] == 24


def test_data_of_another_size_or_no_data_are_refused(workdir, tmp_path):
    with pytest.raises(InputError, match="jaxpneumo prepare"):
        module.main(["--workdir", str(workdir), "--data", str(tmp_path), "--part", "all"])
