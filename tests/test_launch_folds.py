"""launch/folds.sh: one run a fold, or the fold of a Slurm array's task; wrong use is refused in words."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import REPOSITORY

from jaxpneumo.data import partition
from jaxpneumo.process.errors import DONE

SCRIPT = str(REPOSITORY / "launch/folds.sh")


@pytest.fixture
def folds(tmp_path):
    file = tmp_path / "folds.json"
    file.write_text(json.dumps({"folds": [["a"], ["b"], ["c"]]}))
    return file


@pytest.fixture
def launch(tmp_path):
    """Runs the script with a python that writes down how it is called, and returns the result and the calls."""
    python = tmp_path / "bin/python"
    python.parent.mkdir()
    calls = tmp_path / "calls"
    calls.touch()
    python.write_text(
        f'#!/usr/bin/env bash\nif [[ $1 == -c ]]; then exec {sys.executable} "$@"; fi\necho "$@" >> {calls}\n'
    )
    python.chmod(0o755)

    def run(*arguments, **environment):
        calls.write_text("")
        result = subprocess.run(
            ["bash", SCRIPT, *map(str, arguments)],
            env={**os.environ, "PATH": f"{python.parent}:{os.environ['PATH']}", **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        return result, calls.read_text().splitlines()

    return run


def test_the_script_is_valid_bash():
    subprocess.run(["bash", "-n", SCRIPT], check=True)


def test_all_folds_one_after_the_other(launch, folds):
    result, calls = launch("configs/exp5.py", folds, "--config.stage1.epochs=2", SLURM_ARRAY_TASK_ID="")
    assert result.returncode == 0, result.stderr
    common = f"--config.data.split={folds} --config.data.fold="
    assert calls == [
        f"-m jaxpneumo.main --config=configs/exp5.py --workdir=runs/exp5_fold{k} {common}{k} --config.stage1.epochs=2"
        for k in range(3)
    ]


def test_chosen_folds_names_and_array_tasks(launch, folds):
    _, calls = launch("configs/augmentation_study.py:A1", folds, RUNS="study", FOLDS="0 2", SLURM_ARRAY_TASK_ID="")
    assert [call.split("--workdir=")[1].split()[0] for call in calls] == [
        "study/augmentation_study_A1_fold0",
        "study/augmentation_study_A1_fold2",
    ]
    _, calls = launch("configs/exp5.py", folds, NAME="first", SLURM_ARRAY_TASK_ID="1")
    assert [call.split("--workdir=")[1].split()[0] for call in calls] == ["runs/first_fold1"]


def test_wrong_use_is_refused(launch, folds, tmp_path):
    for arguments in ([], ["configs/exp5.py"], ["configs/exp5.py", folds, "--workdir=x"], [folds, "configs/exp5.py"]):
        result, calls = launch(*arguments)
        assert (result.returncode, calls) == (2, [])
        assert "usage" in result.stderr
    for flag in ("--config.data.fold=1", "--config.data.split=patient"):
        result, calls = launch("configs/exp5.py", folds, flag)
        assert (result.returncode, calls) == (2, [])
        assert f"leave {flag} away; the folds are those of {folds}" in result.stderr
    result, calls = launch("configs/exp5.py", tmp_path / "none.json")
    assert (result.returncode, calls) == (2, [])
    assert "there is no file" in result.stderr


@pytest.mark.parametrize(
    "content",
    ['{"train": [], "validation": []}', '{"folds": []}', '{"folds": 5}', "[]", "not JSON", "", "\udcff"],
)
def test_a_file_without_folds_is_answered_in_one_line(launch, folds, content):
    folds.write_text(content, errors="surrogateescape")
    result, calls = launch("configs/exp5.py", folds, SLURM_ARRAY_TASK_ID="")
    assert (result.returncode, calls) == (2, [])
    assert result.stderr.startswith(f"launch/folds.sh: {folds} has no folds; make some with `jaxpneumo split --folds")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("chosen", [{"FOLDS": "0 3"}, {"FOLDS": "one"}, {"FOLDS": "-1"}, {"SLURM_ARRAY_TASK_ID": "3"}])
def test_a_fold_that_the_file_has_not_is_refused_before_any_is_trained(launch, folds, chosen):
    result, calls = launch("configs/exp5.py", folds, **{"SLURM_ARRAY_TASK_ID": "", **chosen})
    assert (result.returncode, calls) == (2, [])
    assert "has the folds 0 to 2." in result.stderr


def test_an_environment_without_python_is_said(folds, tmp_path):
    for name in ("bash", "dirname", "basename"):
        (tmp_path / name).symlink_to(shutil.which(name))
    command = [str(tmp_path / "bash"), SCRIPT, "configs/exp5.py", str(folds)]
    result = subprocess.run(command, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("launch/folds.sh: there is no python on the PATH")


@pytest.mark.slow
def test_a_tiny_run_of_two_folds(prepared, tmp_path):
    """The real command, twice: the second start finds everything done."""
    file = tmp_path / "folds.json"
    command = ["--data", str(prepared), "--method", "patient", "--folds", "2", "--output", str(file)]
    assert partition.main(command) == DONE
    small = {"stage1.size": 32, "stage1.batch_size": 4, "stage1.epochs": 1, "stage1.swa_epochs": 0, "model.width": 8}
    small |= {"predict.size": 32, "predict.batch_size": 4, "model.depths": "(1, 1, 1, 1)", "data.directory": prepared}
    flags = [f"--config.{name}={value}" for name, value in small.items()]
    environment = {**os.environ, "RUNS": str(tmp_path / "runs"), "PYTHONPATH": str(REPOSITORY)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    for _ in range(2):
        subprocess.run(["bash", SCRIPT, "configs/exp2.py", str(file), *flags], env=environment, check=True)
    validated = []
    for fold in range(2):
        run = tmp_path / f"runs/exp2_fold{fold}"
        assert (run / "report.html").is_file()
        assert len((run / "stage1/log.jsonl").read_text().splitlines()) == 1
        own = json.loads((run / "splits.json").read_text())
        assert own["part_of"] == {"fold": fold, "folds": 2}
        validated += own["validation"]
    assert len(validated) == len(set(validated)) == 24
