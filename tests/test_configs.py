"""The shipped configs are the papers' experiments, and each of them runs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import REPOSITORY, as_typed, load_config, shrink

from jaxpneumo import main
from jaxpneumo.predict.submission import read_submission
from jaxpneumo.process.errors import DONE

ARMS = ["none", "A1", "A2", "A1+A2", "A3", "A4"]
EXPERIMENTS = ["exp1", "exp2", "exp3", "exp4", "exp5"]


@pytest.mark.parametrize(
    ("name", "validation", "stage1", "stage2", "threshold"),
    [
        ("exp1", 0.2, (40, 50), None, 0.5),
        ("exp2", 0.1, (40, 35), None, 0.55),
        ("exp3", 0.1, (40, 35), (14, 10), 0.55),
        ("exp4", 0.1, (40, 60), (14, 29), 0.75),
        ("exp5", 0.1, (64, 100), (16, 70), 0.75),
    ],
)
def test_experiments_have_the_papers_values(name, validation, stage1, stage2, threshold):
    config = load_config(name)
    assert config.data.validation_fraction == validation
    assert config.model.encoder == "resnet34_preact"
    assert (config.stage1.size, config.stage1.batch_size, config.stage1.epochs) == (256, *stage1)
    assert ("stage2" in config) == (stage2 is not None)
    if stage2:
        assert (config.stage2.size, config.stage2.batch_size, config.stage2.epochs) == (512, *stage2)
        assert (config.stage1.swa_epochs, config.stage2.swa_epochs) == (5, 3)
    assert config.stage1.learning_rate == 1e-3
    assert config.predict.threshold == threshold
    assert config.predict.removal_threshold == 2048
    assert config.predict.removal_rule == "image"


def test_experiment_1_is_the_base_line():
    config = load_config("exp1")
    assert config.model.input_convolution
    assert config.stage1.swa_epochs == 0
    assert (config.stage1.schedule, config.stage1.plateau_factor, config.stage1.plateau_patience) == ("plateau", 0.2, 5)


def test_the_fast_one_is_experiment_5_with_four_times_the_batch_and_twice_the_rate():
    papers, fast = load_config("exp5").to_dict(), load_config("exp5_fast").to_dict()
    for stage, warmup in (("stage1", 5), ("stage2", 3)):
        assert fast[stage].pop("batch_size") == 4 * papers[stage].pop("batch_size")
        assert fast[stage].pop("learning_rate") == 2 * papers[stage].pop("learning_rate")
        assert fast[stage].pop("warmup_epochs") == warmup
    assert fast == papers


def test_study_arms_switch_groups_on():
    groups = ("flip", "intensity", "distortion", "crop")
    augment = {arm: load_config(f"augmentation_study:{arm}").augment for arm in ARMS}
    chances = {arm: tuple(augment[arm][group] for group in groups) for arm in ARMS}
    assert chances == {
        "none": (0.0, 0.0, 0.0, 0.0),
        "A1": (0.5, 0.0, 0.0, 0.0),
        "A2": (0.0, 0.3, 0.0, 0.0),
        "A1+A2": (0.5, 0.3, 0.0, 0.0),
        "A3": (0.0, 0.0, 0.3, 0.0),
        "A4": (0.0, 0.0, 0.0, 0.25),
    }
    assert {augment[arm].engine for arm in ARMS} == {"device"}
    with pytest.raises(ValueError, match="none, A1, A2"):
        load_config("augmentation_study:A5")


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("configs/*.py")), ids=lambda p: p.stem)
def test_docstrings_give_the_command(path):
    assert re.search(rf"python -m jaxpneumo.main --config=configs/{path.stem}\.py", path.read_text())


LONG = ("exp1", "exp5")
SLOW = (
    "exp3",
    "exp4",
    "exp5_fast",
    "quickstart",
    "unet256",
    "winner",
    "x5:decide",
    *(f"augmentation_study:{arm}" for arm in ARMS),
)


@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(name, marks=pytest.mark.long) for name in LONG),
        *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW),
    ],
)
def test_runs_one_shrunk_epoch_a_stage(name, prepared, tmp_path):
    """Each program of another network, size or augmentation is compiled anew: one of a kind is quick enough."""
    config = shrink(load_config(name), prepared)
    assert main.run(config, tmp_path) == DONE
    assert_complete(tmp_path, [stage for stage in config if stage.startswith("stage")])


@pytest.mark.long
def test_experiment_3_takes_experiment_2s_weights(evaluated, prepared, tmp_path):
    config = shrink(load_config("exp3"), prepared)
    config.init_from = str(evaluated)  # exp2, shrunk
    main.run(config, tmp_path / "exp3")
    assert not (tmp_path / "exp3/stage1").exists()
    assert_complete(tmp_path / "exp3", ["stage2"])


def assert_complete(workdir, stages):
    """All that a run writes is there, of one epoch a stage."""
    for stage in stages:
        records = [json.loads(line) for line in (workdir / stage / "log.jsonl").read_text().splitlines()]
        assert [record["epoch"] for record in records] == [0]
        assert records[0]["train_loss"] > 0
        assert (workdir / stage / "final").is_dir()
        assert (workdir / stage / "progress.png").is_file()
    summary = json.loads((workdir / "evaluation/summary.json").read_text())
    assert set(summary["scores"]) == {"plain", "tta", "removal", "tta_removal"}
    assert summary["n_images"] == len(read_submission(workdir / "predictions/submission.csv"))
    assert "not a medical device" in (workdir / "report.html").read_text()


def test_the_winners_recipe_draws_fewer_and_fewer_positives_and_grows():
    config = as_typed(load_config("winner:resnet50"))
    assert config.model.encoder == "resnet50"
    assert [stage.size for stage in config.stages] == [512, 1024, 1024, 1024]
    shares = [(stage.positive_share, stage.final_positive_share) for stage in config.stages]
    assert shares == [(0.8, 0.6), (0.8, 0.8), (0.6, 0.6), (0.4, 0.4)]
    assert [stage.frozen_encoder_epochs for stage in config.stages] == [0, 1, 0, 0]
    assert (config.loss.bce_weight, config.loss.dice_weight, config.loss.focal_weight) == (3.0, 1.0, 4.0)
    assert (config.predict.top_threshold, config.predict.top_area, config.predict.threshold) == (0.75, 2000, 0.3)
    with pytest.raises(ValueError, match="resnet34, resnet50"):
        load_config("winner:vgg")


def test_the_second_places_steps_share_split_and_network():
    decide, outline = (as_typed(load_config(f"x5:{step}")) for step in ("decide", "outline"))
    assert (decide.data, decide.model) == (outline.data, outline.model)
    assert outline.stages[0].positive_share == outline.stages[0].final_positive_share == 1.0
    assert outline.stages[0].start_from == "runs/x5_decide"
    assert decide.predict.size <= outline.predict.size, "a gate's images are made smaller, never larger"
    with pytest.raises(ValueError, match="decide, outline"):
        load_config("x5:both")


@pytest.mark.slow
def test_the_winners_recipe_is_one_command(prepared, radiographs, tmp_path):
    """Two folds of one network, thresholds out of fold, the ensemble's submission; a second start trains nothing."""
    command = [str(REPOSITORY / "launch/winner.sh"), str(prepared), str(radiographs / "dicom")]
    command += ["--config.model.depths=(1,1,1,1)", "--config.model.width=8", "--config.model.dtype=float32"]
    for stage, size in (("stage1", 32), ("stage2", 64), ("stage3", 64), ("stage4", 64)):
        command += [f"--config.{stage}.size={size}", f"--config.{stage}.batch_size=4", f"--config.{stage}.epochs=1"]
        command += [f"--config.{stage}.swa_epochs=1", f"--config.{stage}.warmup_epochs=0"]
    command += ["--config.predict.size=64", "--config.predict.batch_size=4", "--config.predict.overlays=0"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "RUNS": str(tmp_path), "NETWORKS": "resnet34", "FOLDS": "2"}
    for _ in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == DONE, done.stdout + done.stderr[-3000:]
        assert len(read_submission(tmp_path / "winner/submission.csv")) == 24
    assert "stage4 is complete; its result is read from" in done.stderr
    assert (tmp_path / "winner_resnet34_fold1/thresholds/winner.json").is_file()
    assert "chosen for this ensemble of 2 runs, on 24 images out of fold." in done.stdout
