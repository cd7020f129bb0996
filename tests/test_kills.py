"""A run of two stages that is killed at any moment, again and again, ends byte for byte as one left alone.

Each trial is a chain: the command is started, killed with SIGKILL at a moment drawn by a seed, started again, and so
on, and at last left to end. A moment is something seen in the run's folder and a short time after it, so that kills
fall into steps, saves, the BatchNorm pass, the change of stages, evaluation and prediction.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import REPOSITORY, as_typed, assert_same, epoch_records, load_config, shrink

from jaxpneumo import main
from jaxpneumo.process.errors import DONE
from jaxpneumo.run import checkpoint
from jaxpneumo.run.config import read_config
from jaxpneumo.run.network import make_model
from jaxpneumo.run.state import variable_shapes

EPOCHS = {"stage1": 2, "stage2": 3}
STEPS = 5  # 22 training images, batches of 4


def command(data: Path, workdir: Path, seconds: float = 0) -> list[str]:
    """The command, which saves a state at most every `seconds`; 0 saves each epoch."""
    return [
        *(sys.executable, "-m", "jaxpneumo.main", f"--config={REPOSITORY}/configs/exp4.py"),
        *(f"--workdir={workdir}", f"--config.data.directory={data}"),
        *("--config.model.depths=(1,1,1,1)", "--config.model.width=8", "--config.model.dtype=float32"),
        *("--config.stage1.size=32", "--config.stage1.batch_size=4", f"--config.stage1.epochs={EPOCHS['stage1']}"),
        *("--config.stage1.swa_epochs=2", "--config.stage2.size=64", "--config.stage2.batch_size=4"),
        *(f"--config.stage2.epochs={EPOCHS['stage2']}", "--config.stage2.swa_epochs=2"),
        *("--config.predict.size=64", "--config.predict.batch_size=4", f"--config.checkpoint_seconds={seconds}"),
    ]


def start(command: list[str]) -> subprocess.Popen:
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, **pipes)


def finish(process: subprocess.Popen, expected: int = DONE) -> None:
    """Waits for the end, which is as expected."""
    errors = process.communicate()[1].decode()
    assert process.returncode == expected, errors


def newest(folder: Path) -> float:
    """Steps of a stage's newest checkpoint; half a step more while another is being written."""
    names = [path.name for path in folder.glob("checkpoints/*")]
    whole = max([int(name) for name in names if name.isdecimal()], default=0)
    return whole + 0.5 * any(name.endswith("tmp") for name in names)


def moments(run: Path) -> list[Callable[[], bool]]:
    """What can be seen of a run, in the order in which it comes."""
    seen = [lambda: (run / "config.json").exists()]
    for stage, epochs in EPOCHS.items():
        folder = run / stage
        for epoch in range(epochs):
            seen += [
                lambda f=folder, n=epoch: (
                    (f / "log.jsonl").exists() and (f / "log.jsonl").read_bytes().count(b"\n") > n
                ),
                lambda f=folder, n=epoch: newest(f) >= n * STEPS + 0.5,
                lambda f=folder, n=epoch: newest(f) >= (n + 1) * STEPS,
            ]
        seen += [lambda f=folder: any(f.glob("final*")), lambda f=folder: (f / "final").is_dir()]
    return [
        *seen,
        lambda: (run / "evaluation/metrics.csv").exists(),
        lambda: (run / "evaluation/summary.json").exists(),
    ]


def kill_often(data: Path, workdir: Path, kills: int, seed: int, seconds: float = 0) -> list[str]:
    """Starts and kills a run `kills` times, then lets it end. Returns what the kills met, in words."""
    rng = np.random.default_rng(seed)
    seen = moments(workdir)
    met = []
    for moment in np.sort(rng.choice(len(seen), kills, replace=False)):
        delay = rng.uniform(0, 0.6)
        process = start(command(data, workdir, seconds))
        while process.poll() is None and not seen[moment]():
            time.sleep(0.002)
        time.sleep(delay)
        process.kill()
        finish(process, -signal.SIGKILL)
        met.append(f"moment {moment} and {delay:.2f} s")
    finish(start(command(data, workdir, seconds)))
    return met


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory) -> Path:
    """The same run, left alone."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    finish(start(command(prepared, workdir)))
    return workdir


def assert_same_run(one: Path, other: Path, stages: dict[str, int], steps: int) -> None:
    """Final parameters, averages, progress, logs, scores and predictions.

    `stages` has the epochs of each; an epoch has so many `steps`.
    """
    template = variable_shapes(make_model(read_config(one).model))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for stage, epochs in stages.items():
        ends = [checkpoint.restore_final(run / stage, template, device) for run in (one, other)]
        assert_same(ends[0][0], ends[1][0])
        assert ends[0][1] == ends[1][1]
        assert epoch_records(one / stage) == epoch_records(other / stage)
        assert len(epoch_records(one / stage)) == epochs
        states = []
        for run in (one, other):
            with checkpoint.open_checkpoints(run / stage) as manager:
                arguments = {"training": checkpoint.ocp.args.StandardRestore()}
                states.append(manager.restore(epochs * steps, args=checkpoint.ocp.args.Composite(**arguments)))
        assert_same(states[0]["training"]["swa_params"], states[1]["training"]["swa_params"])
        assert_same(states[0]["training"], states[1]["training"])
    for name in ("evaluation/summary.json", "evaluation/metrics.csv", "predictions/submission.csv", "splits.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.long
def test_a_killed_command_ends_as_a_run_of_this_process(prepared, tmp_path):
    """Exp2, shrunk: SIGKILL after the first of three epochs, then the same command again."""
    config = shrink(load_config("exp2"), prepared)
    config.model.dtype = "float32"
    config.stage1.update(epochs=3, swa_epochs=2)
    killed, alone = tmp_path / "killed/run", tmp_path / "alone/run"
    flags = [f"--config.{key}={value}" for key, value in changes(config, load_config("exp2"))]
    line = [sys.executable, "-m", "jaxpneumo", "train", f"--config={REPOSITORY}/configs/exp2.py"]
    line += [f"--workdir={killed}", *flags]
    process, log = start(line), killed / "stage1/log.jsonl"
    while process.poll() is None and not (log.exists() and log.read_bytes()):
        time.sleep(0.002)
    process.kill()
    finish(process, -signal.SIGKILL)
    assert not (killed / "stage1/final").exists()
    finish(start(line))
    assert main.run(config, alone) == DONE
    assert read_config(killed) == read_config(alone) == as_typed(config)
    assert_same_run(alone, killed, {"stage1": 3}, steps=3)


def changes(config, shipped, prefix: str = "") -> list[tuple[str, object]]:
    """What differs between a config and the shipped one, key by key."""
    found = []
    for key, value in config.items():
        if isinstance(value, type(config)):
            found += changes(value, shipped[key], f"{prefix}{key}.")
        elif value != shipped.get(key):
            found.append((prefix + key, value))
    return found


@pytest.mark.long
def test_three_kills(prepared, whole, tmp_path):
    met = kill_often(prepared, tmp_path / "run", kills=3, seed=0)
    assert len(met) == 3
    assert_same_run(whole, tmp_path / "run", EPOCHS, STEPS)


@pytest.mark.long
def test_a_kill_between_checkpoints_loses_what_came_after_the_last(prepared, whole, tmp_path):
    """Two epochs of stage 2 are in the log and none is saved: they are trained and logged again."""
    run = tmp_path / "run"
    process = start(command(prepared, run, seconds=3600))
    log = run / "stage2/log.jsonl"
    while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") >= 2):
        time.sleep(0.002)
    process.kill()
    finish(process, -signal.SIGKILL)
    assert len(list((run / "stage1/checkpoints").iterdir())) == 1, "only the stage's end"
    assert newest(run / "stage2") < EPOCHS["stage2"] * STEPS
    finish(start(command(prepared, run, seconds=3600)))
    assert_same_run(whole, run, EPOCHS, STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(9))
def test_forty_five_kills(seed, prepared, whole, tmp_path):
    """Nine chains of five; in every other, a state is saved at most every two seconds."""
    met = kill_often(prepared, tmp_path / "run", kills=5, seed=seed, seconds=2 * (seed % 2))
    print(f"seed {seed}: {'; '.join(met)}")
    assert_same_run(whole, tmp_path / "run", EPOCHS, STEPS)
