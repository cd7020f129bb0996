"""The papers' tables: their figures as the configs quote them, ours where there is a run."""

import os
import shutil
import subprocess

import pytest
from helpers import REPOSITORY, as_typed, load_config

from jaxpneumo.evaluate import tables
from jaxpneumo.process.atomic import write_json
from jaxpneumo.process.errors import DONE, InputError
from jaxpneumo.process.files import read_json


def test_figures_are_those_that_the_configs_quote():
    study = (REPOSITORY / "configs/augmentation_study.py").read_text()
    for words in ("validation IoU", "test Dice"):
        rows = tables.TABLES[f"Augmentation study, {words}"]
        for arm in ("none", "A1", "A2", "A1+A2", "A3", "A4"):
            by_mode = {row.mode: f"{row.paper:.4f}"[1:] for row in rows if row.run == f"augmentation_study_{arm}"}
            figures = " ".join(by_mode[mode] for mode in ("plain", "tta", "removal", "tta_removal"))
            line = next(line for line in study.splitlines() if line.startswith(f"    {arm} "))
            assert f"{words} {figures}" in line
    exp5 = (REPOSITORY / "configs/exp5.py").read_text()
    quoted = [row for title, rows in tables.TABLES.items() if "experiments" in title for row in rows]
    quoted += tables.TABLES["Test Dice of exp5, round 2 (private part)"]
    for row in quoted:
        if row.run.startswith("exp5"):
            assert f"{row.paper:.4f}"[1:] in exp5
    dice, iou = tables.TABLES["Single U-Net of Jakhar, Kaur and Gupta"]
    quoted = f"Dice {dice.paper:.3f}, IoU {iou.paper:.3f}".replace("0.", ".")
    assert quoted in (REPOSITORY / "configs/unet256.py").read_text()


def test_without_runs_every_row_says_so(tmp_path, capsys):
    assert tables.main(["--runs", str(tmp_path)]) == DONE
    lines = capsys.readouterr().out.splitlines()
    rows = sum(len(table) for table in tables.TABLES.values())
    assert len(tables.TABLES) == 7
    assert sum(line.endswith("no run yet") for line in lines) == rows == 73
    with pytest.raises(InputError, match="is not a folder"):
        tables.main(["--runs", str(tmp_path / "absent")])


def test_a_run_fills_its_rows(evaluated, tmp_path):
    run = shutil.copytree(evaluated, tmp_path / "runs/augmentation_study_A1")
    shutil.copytree(evaluated, tmp_path / "runs/exp4")
    shutil.rmtree(tmp_path / "runs/exp4/evaluation")
    shutil.copytree(evaluated, tmp_path / "runs/exp3")
    shutil.rmtree(tmp_path / "runs/exp3/stage1/final")
    assert tables.main(["--runs", str(tmp_path / "runs"), "--output", str(tmp_path / "tables.json")]) == DONE
    result = read_json(tmp_path / "tables.json")
    summary = read_json(run / "evaluation/summary.json")
    rows = {row["label"]: row for row in result["Augmentation study, validation IoU"]}
    for words, mode in (("A1 no TTA", "plain"), ("A1 TTA + R-TH", "tta_removal")):
        assert rows[words]["ours"] == summary["scores"][mode]["iou"]
        assert rows[words]["interval"] == summary["intervals"]["scores"][mode]["iou"]
        assert "SYNTHETIC" in rows[words]["of"]
        assert "split by patient, validation part" in rows[words]["of"]
    assert rows["A2 TTA"]["ours"] is None
    experiments = {row["label"]: row["of"] for row in result["Validation IoU of the experiments, round 1"]}
    assert experiments["exp4 TTA"] == "not evaluated"
    assert experiments["exp3 TTA"] == "unfinished run"
    assert "not evaluated on test images" in result["Augmentation study, test Dice"][4]["of"]
    shutil.copytree(run / "evaluation", run / "evaluation-test")
    again = tables.collect(tmp_path / "runs")["Augmentation study, test Dice"][4]
    assert again["ours"] == summary["scores"]["plain"]["dice"]
    assert f"{again['ours']:.4f}" in tables.text({"x": [again]})


def test_a_run_that_was_trained_again_has_no_figure_before_it_is_evaluated_again(evaluated, tmp_path):
    run = shutil.copytree(evaluated, tmp_path / "runs/exp4")
    path, summary = run / "evaluation/summary.json", read_json(run / "evaluation/summary.json")
    write_json(path, {**summary, "run": {**summary["run"], "workdir": "exp4", "model": "0" * 64}})
    os.utime(run / "stage1/final", (later := path.stat().st_mtime + 60, later))
    rows = tables.collect(tmp_path / "runs")["Validation IoU of the experiments, round 1"]
    told = {(row["ours"], row["of"]) for row in rows if row["run"] == "exp4"}
    assert told == {(None, "evaluated before it was trained again")}


def as_shipped(name, workdir):
    """Gives a run the shipped config of an experiment, as training would have saved it."""
    write_json(workdir / "config.json", as_typed(load_config(name)).to_dict())


def test_a_run_that_is_not_trained_as_its_config_says_is_marked(evaluated, tmp_path):
    run = shutil.copytree(evaluated, tmp_path / "runs/exp1")
    rows = tables.collect(tmp_path / "runs")["Validation IoU of the experiments, round 1"]
    differs = next(row for row in rows if row["label"] == "exp1 TTA")["differs"]
    assert {"model.width is 8, not 64", "stage1.size is 32, not 256", "predict.size is 32, not 256"} <= {*differs}
    text = tables.text({"x": rows})
    assert "exp1 TTA *" in text
    assert "\n* exp1 is not configs/exp1.py: " in text
    as_shipped("exp1", run)
    assert tables.differences(run) == []


@pytest.mark.parametrize("run", ["exp5", "exp5_round2", "augmentation_study_A1+A2", "unet256"])
def test_every_run_of_the_tables_has_its_config(run, tmp_path):
    """With epochs of its own it differs in these, and where its data lie does not count."""
    file = tables.config_of(run).replace(".py", "")
    config = load_config(file)
    config.data.directory, config.stage1.epochs = "elsewhere", 7
    (tmp_path / run).mkdir()
    write_json(tmp_path / run / "config.json", as_typed(config).to_dict())
    (told,) = tables.differences(tmp_path / run)
    assert told.startswith("stage1.epochs is 7, not ")


def test_the_study_refuses_an_arm_that_there_is_not_before_any_is_trained():
    command = ["bash", str(REPOSITORY / "launch/augmentation_study.sh")]
    environment = {**os.environ, "ARMS": "none A9"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stdout == ""
    assert "there is no arm A9; ARMS holds some of none A1 A2 A1+A2 A3 A4" in result.stderr


def test_the_study_refuses_what_is_no_override():
    script = str(REPOSITORY / "launch/augmentation_study.sh")
    result = subprocess.run(["bash", script, "--workdir=x"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "usage" in result.stderr
