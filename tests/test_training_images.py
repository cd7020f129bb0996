"""Scores of images that a run was trained on, or may have been: told everywhere, and nowhere taken for its figure."""

import json
import shutil

import pytest

from jaxpneumo.evaluate import evaluate, tables, thresholds
from jaxpneumo.evaluate.summary_text import table
from jaxpneumo.export.export import main as export
from jaxpneumo.export.import_folder import main as import_folder
from jaxpneumo.predict import saved_thresholds
from jaxpneumo.predict.certainty import bands_of
from jaxpneumo.predict.infer import load_predictor
from jaxpneumo.process.atomic import write_json
from jaxpneumo.process.errors import DONE, InputError
from jaxpneumo.process.files import read_json
from jaxpneumo.report.report import write_report
from jaxpneumo.run.config import read_config

TOLD = "14 of these images were used for training: the scores are better than on new images."
UNKNOWN = "It is not known which of these images it was trained on"


@pytest.fixture(scope="module")
def run(evaluated, tmp_path_factory):
    """A run named as the paper's, whose evaluation is of its training part."""
    folder = shutil.copytree(evaluated, tmp_path_factory.mktemp("trained") / "exp5")
    arguments = ["--workdir", str(folder), "--part", "train", "--output", str(folder / "evaluation")]
    assert evaluate.main(arguments) == DONE
    return folder


@pytest.fixture(scope="module")
def imported(evaluated, prepared, tmp_path_factory):
    """A shared folder, and the run that was made of it, scored on all images."""
    folder = tmp_path_factory.mktemp("imported")
    assert export(["--workdir", str(evaluated), "--format", "folder", "--output", str(folder / "shared")]) == DONE
    assert import_folder([str(folder / "shared"), "--output", str(folder / "exp4")]) == DONE
    whole = ["--data", str(prepared), "--part", "all", "--output"]
    for name, output in (("exp4", "exp4/evaluation"), ("shared", "scores")):
        assert evaluate.main(["--workdir", str(folder / name), *whole, str(folder / output)]) == DONE
    return folder


def test_the_evaluation_counts_them(run):
    summary = read_json(run / "evaluation/summary.json")
    assert (summary["n_images"], summary["split"]["images_in_training"]) == (14, 14)
    assert "validation_images_with_patient_in_training" not in summary["split"]
    assert TOLD in table(summary)


def test_the_papers_tables_have_no_figure_of_them(run):
    rows = tables.collect(run.parent)["Validation IoU of the experiments, round 1"]
    (row,) = (row for row in rows if row["label"] == "exp5 TTA")
    assert (row["ours"], row["interval"], row["all_empty"]) == (None, None, None)
    assert row["of"].startswith("no figure: 14 of its images are TRAINING images (SYNTHETIC data ")


def test_the_report_has_a_banner_and_claims_no_patients_apart(run):
    page = write_report(run)[0].read_text()
    assert f"<strong>TRAINING IMAGES</strong> {TOLD}" in page
    assert "no patient on both sides" not in page
    assert "have their patient in training" not in page


def test_a_shared_folder_says_so_and_gives_no_score_to_programs(run, tmp_path):
    assert export(["--workdir", str(run), "--format", "folder", "--output", str(tmp_path / "out")]) == DONE
    card, metadata = (tmp_path / "out/README.md").read_text(), read_json(tmp_path / "out/metadata.json")
    assert f"**{TOLD}**" in card
    assert "patient is in training" not in card
    assert "model-index" not in card
    assert metadata["eval_metrics"] == {}
    assert metadata["jaxpneumo"]["evaluation"]["images_in_training"] == 14


def test_limits_from_them_are_not_called_calibrated(run):
    limits = read_json(run / "evaluation/calibration.json")
    write_json(run / "evaluation/calibration.json", {**limits, "top_mean": {"uncertain": {"low": 0.1, "high": 0.7}}})
    predictor = load_predictor(run)
    assert not bands_of(predictor).calibrated
    write_json(run / "evaluation/calibration.json", limits)


def test_thresholds_chosen_on_them_say_so_when_chosen_and_when_used(run, capsys):
    assert thresholds.main(["--workdir", str(run), "--rule", "image"]) == DONE
    assert "Chosen on 14 images of the train part, 14 of them TRAINING images." in capsys.readouterr().out
    settings = read_config(run).predict
    told = saved_thresholds.origin(settings, [run], "image", load_predictor(run).model_id, [1.0])
    assert told.endswith("chosen for this run, on 14 images of the train part, 14 of them TRAINING images.")


def test_an_older_evaluation_of_the_training_part_is_known_by_its_part(run):
    summary = read_json(run / "evaluation/summary.json")
    del summary["split"]["images_in_training"]
    assert TOLD in table(summary)


def test_imported_runs_and_shared_folders_are_scored_on_all_images_and_say_what_nobody_knows(imported, capsys):
    for name in ("exp4/evaluation", "scores"):
        summary = read_json(imported / name / "summary.json")
        assert (summary["n_images"], summary["split"]["images_in_training"]) == (24, None)
        assert UNKNOWN in table(summary)
    rows = tables.collect(imported)["Validation IoU of the experiments, round 1"]
    (row,) = (row for row in rows if row["label"] == "exp4 TTA")
    assert row["of"].endswith("it may have been trained on them")
    assert not bands_of(load_predictor(imported / "exp4")).calibrated
    assert thresholds.main(["--workdir", str(imported / "exp4")]) == DONE
    assert "Chosen on 24 images of a whole data set, which it may have been trained on." in capsys.readouterr().out


@pytest.mark.parametrize("part", ["train", "validation"])
def test_an_imported_run_has_no_parts(imported, prepared, tmp_path, part):
    arguments = ["--workdir", str(imported / "exp4"), "--data", str(prepared), "--output", str(tmp_path)]
    with pytest.raises(InputError, match=r"exp4 was imported and has no split: give --part all\."):
        evaluate.main([*arguments, "--part", part])


def test_a_gate_may_be_an_imported_run(run, imported, tmp_path, capsys):
    arguments = ["--workdir", str(run), "--gate", str(imported / "exp4"), "--output", str(tmp_path / "out")]
    assert evaluate.main(arguments) == DONE
    assert "It is not known which of these images the gate was trained on." in capsys.readouterr().out
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["gate"]["images_in_training"] is None
    again = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation"))
    shutil.copytree(tmp_path / "out", again / "evaluation")
    assert "It is not known which of these images it was trained on." in write_report(again)[0].read_text()
