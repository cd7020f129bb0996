"""Evaluation: the 2x2 of TTA and removal at native size, from counts, beside the all-empty baseline."""

import csv
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from jaxpneumo.data import dataset, prepare, rle
from jaxpneumo.evaluate import compare, tables
from jaxpneumo.evaluate import evaluate as module
from jaxpneumo.evaluate.results import nothing_found, read_metrics
from jaxpneumo.predict.infer import load_predictor, predict_masks
from jaxpneumo.predict.postprocess import remove_small
from jaxpneumo.predict.submission import read_submission
from jaxpneumo.process.errors import DONE, InputError
from jaxpneumo.process.files import read_json
from jaxpneumo.report import report
from jaxpneumo.score.metrics import all_empty, counts, dice
from jaxpneumo.score.threshold_counts import read_counts


@pytest.fixture(scope="module")
def workdir(evaluated):
    return evaluated


@pytest.fixture(scope="module")
def summary(workdir):
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
    predictor = load_predictor(workdir)
    predictor = replace(predictor, settings=replace(predictor.settings, removal_threshold=0))
    ((_, masks),) = predict_masks(predictor, stream, (0, 1))
    for mode, view in (("plain", 0), ("tta", 1)):
        assert float(row[f"{mode}_dice"]) == pytest.approx(float(dice(*counts(masks[view].unpack(), truth))), abs=0.01)
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


def test_a_run_that_finds_nothing_is_told(summary):
    """However high its mean Dice is: images without a finding score 1."""
    assert nothing_found(summary) == ""
    mode = summary["run"]["mode"]
    empty = summary | {"scores": summary["scores"] | {mode: summary["scores"][mode] | {"sensitivity": 0.0}}}
    assert f"any of the {summary['n_positive']} images with pneumothorax" in module.table(empty)
    assert nothing_found(empty | {"n_positive": 0}) == ""


def test_what_makes_it_find_nothing_is_told(summary):
    """Of a network that predicts nothing, of a removal rule that leaves nothing, and of a gate."""

    def told(mode, **sensitivities):
        scores = {name: summary["scores"]["plain"] | {"sensitivity": value} for name, value in sensitivities.items()}
        return nothing_found(summary | {"run": {"mode": mode}, "scores": scores})

    assert told("tta_removal", tta=0.0, tta_removal=0.0).endswith("or the thresholds may be too high.")
    words = "Without the removal rule something is outlined: choose thresholds with `jaxpneumo thresholds`."
    assert told("tta_removal", tta=0.5, tta_removal=0.0).endswith(words)
    assert told("removal", plain=0.5, removal=0.0).endswith(words)
    gated = told("removal_gated", plain=0.5, removal=0.5, removal_gated=0.0)
    assert gated.endswith("Without the gate or the classifier's threshold something is outlined.")


def test_the_text_names_a_triplet_a_rule_and_the_regions_as_the_report_does(summary):
    text = module.table(summary | {"top": {"threshold": 0.8, "area": 700}})
    assert "TTA + rule" in text
    assert "TTA + removal" not in text
    assert "labelled regions that were met" in text
    assert "predicted regions that are real" in text


def test_batch_size_does_not_change_the_scores(workdir, summary, tmp_path):
    arguments = ["--workdir", str(workdir), "--batch-size", "2", "--output", str(tmp_path)]
    assert module.main(arguments) == DONE
    again = json.loads((tmp_path / "summary.json").read_text())
    assert again["n_images"] == summary["n_images"]
    for mode, scores in summary["scores"].items():
        assert again["scores"][mode]["dice"] == pytest.approx(scores["dice"], abs=1e-3)


def test_another_data_set_is_scored_whole(workdir, prepared, tmp_path, capsys):
    arguments = ["--workdir", str(workdir), "--data", str(prepared), "--part", "all"]
    assert module.main([*arguments, "--output", str(tmp_path / "all")]) == DONE
    summary = read_json(tmp_path / "all/summary.json")
    assert summary["n_images"] == 24
    trained = len(read_json(workdir / "splits.json")["train"])
    assert summary["split"]["images_in_training"] == trained
    assert f"{trained} of these images were used for training" in capsys.readouterr().out


@pytest.mark.parametrize(
    "option",
    [
        *(("--part", "train"), ("--part", "all"), ("--data", "elsewhere"), ("--tta", "False")),
        *(("--thresholds", "image"), ("--gate", "another")),
    ],
)
def test_scores_that_are_not_the_runs_own_need_a_folder_of_their_own(workdir, option):
    """Other commands read WORKDIR/evaluation as the run's own."""
    before = (workdir / "evaluation/summary.json").stat()
    with pytest.raises(InputError, match=rf"with {' '.join(option)}, give --output FOLDER"):
        module.main(["--workdir", str(workdir), *option])
    assert (workdir / "evaluation/summary.json").stat() == before


def test_what_is_the_runs_own_anyway_may_be_said(workdir, prepared, tmp_path):
    run = shutil.copytree(workdir, tmp_path / "run")
    own = ["--part", "validation", "--data", str(prepared), "--tta", "True", "--replicates", "100"]
    assert module.main(["--workdir", str(run), *own]) == DONE
    assert read_json(run / "evaluation/summary.json")["intervals"]["replicates"] == 100


def test_an_interrupted_evaluation_is_none(workdir, tmp_path, monkeypatch):
    """Not the summary of an earlier one beside its own files."""
    run = shutil.copytree(workdir, tmp_path / "run")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_write_gallery", interrupted)
    with pytest.raises(KeyboardInterrupt):
        module.main(["--workdir", str(run)])
    assert not (run / "evaluation/summary.json").exists()
    with pytest.raises(InputError, match="was not evaluated"):
        compare.compare(run, workdir, None, 100, 0)


def test_data_of_another_size_or_no_data_are_refused(workdir, tmp_path):
    other = ["--data", str(tmp_path), "--part", "all", "--output", str(tmp_path / "out")]
    with pytest.raises(InputError, match="jaxpneumo prepare"):
        module.main(["--workdir", str(workdir), *other])


def test_every_score_has_an_interval_around_it_and_both_baselines_beside_it(summary):
    intervals = summary["intervals"]
    assert (intervals["unit"], intervals["level"], intervals["seed"]) == ("patient", 0.95, 0)
    assert intervals["clusters"] > 1
    pairs = [(scores, intervals["scores"][mode]) for mode, scores in summary["scores"].items()]
    pairs += [(summary[name], intervals[name]) for name in ("all_empty", "mean_shape")]
    pairs += [(group["scores"], group["intervals"]) for group in summary["strata"]]
    pairs += [(s, intervals["image_level"][v][n]) for v, by in summary["image_level"].items() for n, s in by.items()]
    checked = 0
    for scores, ends in pairs:
        assert {name for name, value in scores.items() if isinstance(value, float)} <= ends.keys()
        for name, pair in ends.items():
            if pair is not None:
                assert pair[0] - 1e-9 <= scores[name] <= pair[1] + 1e-9, name
                checked += 1
    assert checked > 50
    assert summary["mean_shape_made_from"]["images"] > 0
    assert summary["mean_shape"]["dice_negative"] == 0


def test_the_expected_calibration_error_has_no_interval_and_texts_say_so(summary):
    """It cannot be below 0, so it is biased upwards, and more so in replicates, which leave out the truth."""
    for view, by_name in summary["image_level"].items():
        for name, scores in by_name.items():
            assert 0 <= scores["expected_calibration_error"] <= 1
            assert summary["intervals"]["image_level"][view][name]["expected_calibration_error"] is None
    assert "the expected calibration error has no interval: " in summary["intervals"]["without_interval"]
    error = summary["image_level"]["tta"]["top_mean"]["expected_calibration_error"]
    assert f"expected calibration error {error:.4f} (no interval)" in module.table(summary)


def test_no_interval_is_without_width_and_rates_of_0_and_1_have_the_exact_one(workdir, summary):
    """As SciPy computes it, with the patients that have such images as trials; baselines' fixed scores have none."""
    table = read_metrics(workdir / "evaluation/metrics.csv")
    positive = table["truth_area"].astype(int) > 0
    trials = {name: len(set(table["patient"][positive])) for name in ("sensitivity", "dice_positive", "iou_positive")}
    trials |= {name: len(set(table["patient"][~positive])) for name in ("specificity", "dice_negative")}
    exact = 0
    for mode, scores in summary["scores"].items():
        for name, n in trials.items():
            if scores[name] in (0, 1):
                ends = binomtest(int(scores[name] * n), n).proportion_ci(0.95, "exact")
                assert summary["intervals"]["scores"][mode][name] == pytest.approx([ends.low, ends.high], abs=1e-12)
                exact += 1
    assert exact > 0
    assert summary["intervals"]["all_empty"]["dice_positive"] is None
    assert summary["intervals"]["mean_shape"]["dice_negative"] is None
    for ends in found(summary["intervals"]):
        assert ends[0] < ends[1]
    for group in summary["strata"]:
        patients = min(group["n_images"], summary["intervals"]["clusters"])
        assert patients > 1 or not list(found(group["intervals"]))


def found(intervals: dict) -> Iterator[list[float]]:
    """All intervals that there are, at any depth."""
    for value in intervals.values():
        if isinstance(value, dict):
            yield from found(value)
        elif isinstance(value, list):
            yield value


def test_images_of_one_patient_have_no_intervals(workdir, radiographs, tmp_path, capsys):
    """Neither in the summary nor in any text that is made of it, which say so instead."""
    # So few that their one patient is believed. Training images would have no figure in the papers' tables.
    few = sorted(read_json(workdir / "splits.json")["validation"])
    (tmp_path / "patients.csv").write_text("ImageId,patient\n" + "".join(f"{image_id},P\n" for image_id in few))
    one, labels = tmp_path / "one", tmp_path / "labels.csv"
    lines = (radiographs / "labels.csv").read_text().splitlines()
    labels.write_text("\n".join(line for line in lines if line.split(",")[0] in ("ImageId", *few)))
    prepare.prepare(radiographs, labels, one, (32,), tmp_path / "patients.csv", workers=1, quiet=True)
    runs = [shutil.copytree(workdir, tmp_path / "runs" / name) for name in ("exp4", "exp5")]
    for run in runs:
        (run / "evaluation/thresholds.json").unlink()
        arguments = ["--workdir", str(run), "--data", str(one), "--part", "all", "--output", str(run / "evaluation")]
        assert module.main([*arguments]) == DONE
    assert "[no intervals: all images are of one patient]" in capsys.readouterr().out
    summary = read_json(runs[0] / "evaluation/summary.json")
    assert summary["intervals"]["clusters"] == 1
    assert summary["scores"]["plain"]["dice"] is not None
    assert not list(found(summary["intervals"]))
    assert not any(list(found(group["intervals"])) for group in summary["strata"])

    result = compare.compare(*runs, None, 200, 0)
    assert {(score["interval"], score["p"]) for score in result["scores"].values()} == {(None, None)}
    assert compare.table(result).endswith("No intervals and no p values: all images are of one patient.")
    row = next(line for line in tables.text(tables.collect(tmp_path / "runs")).splitlines() if "exp4 TTA" in line)
    assert "no interval" in row
    page = report.write_report(runs[0], one)[0].read_text()
    assert "There are no intervals: all images are of one patient" in page
    assert "the difference has no interval, for all images are of one patient" in page


def test_groups_by_regions_are_of_the_measured_ones(workdir, summary):
    """Not of the rows of the label csv: a mask file has one, and a region may be drawn in several."""
    with open(workdir / "evaluation/metrics.csv") as file:
        lesions = [int(row["lesions"]) for row in csv.DictReader(file)]
    groups = {each["group"]: each["n_images"] for each in summary["strata"] if each["stratum"] == "regions"}
    several = sum(count > 1 for count in lesions)
    assert groups == {"single": lesions.count(1)} | ({"several": several} if several else {})


def test_table_of_images_joins_the_index_and_agrees_with_the_summary(workdir, summary, prepared):
    table = read_metrics(workdir / "evaluation/metrics.csv")
    index = dataset.read_index(prepared)
    rows = table["row"].astype(int)
    for name in ("patient", "sex", "view", "source", "sha256"):
        np.testing.assert_array_equal(table[name], getattr(index, name)[rows])
    for name in ("height", "width", "mask_area", "label_rows"):
        np.testing.assert_array_equal(table[name].astype(int), getattr(index, name)[rows])
    np.testing.assert_array_equal(table["truth_area"].astype(int), index.mask_area[rows])
    positive = index.positive[rows]
    for view in ("plain", "tta"):
        for name in ("maximum", "top_mean"):
            score = table[f"{view}_{name}"].astype(float)
            assert roc_auc_score(positive, score) == pytest.approx(
                summary["image_level"][view][name]["auroc"], abs=0.01
            )
    for mode, scores in summary["scores"].items():
        found = table[f"{mode}_area"].astype(int) > 0
        assert found[positive].mean() == pytest.approx(scores["sensitivity"])
        lesions, detected = (table[name].astype(int).sum() for name in ("lesions", f"{mode}_lesions_detected"))
        assert detected / lesions == pytest.approx(scores["lesion_sensitivity"])
        pixels, mm = (table[f"{mode}_hausdorff95_{unit}"] for unit in ("px", "mm"))
        np.testing.assert_array_equal(pixels != "", found & positive)
        if found[positive].any():
            distances = pixels[pixels != ""].astype(float)
            assert distances.mean() == pytest.approx(scores["hausdorff95_px"], abs=1e-3)
            assert mm[pixels != ""].astype(float) == pytest.approx(0.139 * distances, abs=1e-3)


def test_strata_divide_the_images(summary):
    strata = summary["strata"]
    assert {group["stratum"] for group in strata} >= {"sex", "view", "age", "mask size", "regions"}
    for name, total in (("sex", "n_images"), ("view", "n_images"), ("age", "n_images"), ("regions", "n_positive")):
        assert sum(group["n_images"] for group in strata if group["stratum"] == name) == summary[total]
    dice = sum(group["scores"]["dice"] * group["n_images"] for group in strata if group["stratum"] == "sex")
    assert dice / summary["n_images"] == pytest.approx(summary["scores"][summary["run"]["mode"]]["dice"])


def test_counts_at_levels_are_those_of_the_masks(workdir, prepared):
    """At the run's own threshold, 0.3, and against masks thresholded anew at another one."""
    counts = read_counts(workdir / "evaluation/levels.npz")
    table = read_metrics(workdir / "evaluation/metrics.csv")
    k = int(np.argmin(np.abs(counts.thresholds - 0.3)))
    np.testing.assert_array_equal(counts.area[:, k], table["tta_area"].astype(int))
    np.testing.assert_array_equal(counts.tp[:, k], table["tta_tp"].astype(int))
    predictor = load_predictor(workdir)
    settings = replace(predictor.settings, threshold=float(counts.thresholds[3]), removal_threshold=0)
    predictor = replace(predictor, settings=settings)
    images, _ = dataset.open_arrays(prepared, 32)
    index, labels = dataset.read_index(prepared), dataset.read_labels(prepared)
    stream = [(n, images[int(row)], (128, 128)) for n, row in enumerate(table["row"])]
    for n, masks in predict_masks(predictor, stream, (1,)):
        truth = rle.decode(labels[str(index.image_id[int(table["row"][n])])], 128, 128)
        mask = masks[1].unpack()
        assert counts.area[n, 3] == masks[1].area == mask.sum()
        assert counts.tp[n, 3] == (mask & truth).sum()
        for m, area in enumerate(counts.areas):
            kept = remove_small(mask, int(area), "component")
            assert counts.component_area[n, 3, m] == kept.sum()
            assert counts.component_tp[n, 3, m] == (kept & truth).sum()


def test_surfaces_and_calibration_are_left_for_the_report(workdir, summary):
    surfaces = read_json(workdir / "evaluation/thresholds.json")["surfaces"]
    assert np.array(surfaces["image"]).shape == np.array(surfaces["component"]).shape == (20, 20)
    calibration = read_json(workdir / "evaluation/calibration.json")
    assert calibration["view"] == "tta"
    for name in ("maximum", "top_mean"):
        assert sum(b["n_images"] for b in calibration[name]["reliability"]) == summary["n_images"]


def test_too_few_replicates_are_refused(workdir):
    with pytest.raises(InputError, match="--replicates: 10 cannot be used; give a whole number from 100"):
        module.main(["--workdir", str(workdir), "--replicates", "10"])
