"""Devices and processes: any number of them trains alike, and a checkpoint of one number goes on with another."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import pytest
from helpers import REPOSITORY, assert_same, epoch_records
from jax.sharding import SingleDeviceSharding

from jaxpneumo.process.errors import DONE, STOPPED, InputError
from jaxpneumo.run import checkpoint
from jaxpneumo.run.config import read_config
from jaxpneumo.run.network import make_model
from jaxpneumo.run.sharding import start_processes
from jaxpneumo.run.state import variable_shapes

STEPS = 2  # 22 training images, batches of 8


def command(data: Path, workdir: Path) -> list[str]:
    """Exp2, shrunk: one stage of three epochs, the last averaged; then evaluation and prediction."""
    return [
        *(str(REPOSITORY / "launch/local.sh"), f"{REPOSITORY}/configs/exp2.py"),
        *(f"--workdir={workdir}", f"--config.data.directory={data}"),
        *("--config.model.depths=(1,1,1,1)", "--config.model.width=8", "--config.model.dtype=float32"),
        *("--config.stage1.size=32", "--config.stage1.batch_size=8", "--config.stage1.epochs=3"),
        *("--config.stage1.swa_epochs=1", "--config.predict.size=32", "--config.predict.batch_size=8"),
        "--config.predict.threshold=0.3",
    ]


def flags(devices: int) -> str:
    """The tests' own XLA flags, with another number of emulated devices."""
    return re.sub(r"(device_count)=\d+", rf"\1={devices}", os.environ["XLA_FLAGS"])


def start(data: Path, workdir: Path, devices: int, more: Sequence[str] = (), **environment: str) -> subprocess.Popen:
    """The command on `devices` emulated devices, with `more` arguments."""
    environment = (
        os.environ
        | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "XLA_FLAGS": flags(devices),
            "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        | environment
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command(data, workdir), *more], cwd=REPOSITORY, env=environment, **pipes)


def start_two(data: Path, workdir: Path) -> list[subprocess.Popen]:
    """Two processes of two devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    return [
        start(data, workdir, 2, JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(index))
        for index in range(2)
    ]


def finish(*processes: subprocess.Popen) -> list[int]:
    """Waits for all; what they wrote goes to the test's own output."""
    for process in processes:
        out, err = process.communicate()
        print(out, err[-3000:])
    return [process.returncode for process in processes]


def stop_after_an_epoch(processes: list[subprocess.Popen], workdir: Path, epochs: int) -> list[int]:
    """SIGTERM to the last of them once `epochs` epochs are in the log, which they have opened themselves."""
    log = workdir / "stage1/log.jsonl"
    before = log.stat().st_ino if log.exists() else 0
    while not (log.exists() and log.stat().st_ino != before and log.read_bytes().count(b"\n") >= epochs):
        assert processes[0].poll() is None, finish(*processes)
        time.sleep(0.002)
    processes[-1].send_signal(signal.SIGTERM)
    return finish(*processes)


@pytest.fixture(scope="module")
def one(prepared, tmp_path_factory) -> Path:
    """The run on one device."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    assert finish(start(prepared, workdir, 1)) == [DONE]
    return workdir


def assert_same_losses(run: Path, one: Path) -> None:
    """To float32 rounding, which Adam's first steps enlarge where gradients are tiny."""
    records, expected = epoch_records(run / "stage1"), epoch_records(one / "stage1")
    assert [record["epoch"] for record in records] == [0, 1, 2]
    for record, other in zip(records, expected, strict=True):
        assert record["train_loss"] == pytest.approx(other["train_loss"], rel=2e-3)
        assert record["learning_rate"] == other["learning_rate"]
    assert records[0]["train_loss"] == pytest.approx(expected[0]["train_loss"], rel=2e-4)


def assert_all_images_scored(run: Path, one: Path) -> None:
    summaries = [json.loads((each / "evaluation/summary.json").read_text()) for each in (run, one)]
    assert summaries[0]["n_images"] == summaries[1]["n_images"] == 2
    assert (run / "evaluation/metrics.csv").read_text().count("\n") == 1 + 2
    assert (run / "predictions/submission.csv").read_text().count("\n") == 1 + 2
    assert (run / "report.html").is_file()


@pytest.mark.long
def test_resident_and_streamed_input_train_alike_to_the_bit(prepared, tmp_path):
    """On two devices; with XLA's fusions as users have them, which the bits depend on."""
    as_users = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    for setting in ("on", "off"):
        run = start(prepared, tmp_path / setting, 2, [f"--config.data.resident={setting}"], **as_users)
        assert finish(run) == [DONE]
    on, off = tmp_path / "on", tmp_path / "off"
    assert epoch_records(on / "stage1") == epoch_records(off / "stage1")
    template, device = variable_shapes(make_model(read_config(on).model)), SingleDeviceSharding(jax.devices()[0])
    assert_same(*(checkpoint.restore_final(run / "stage1", template, device)[0] for run in (on, off)))


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 4, 8])
def test_other_numbers_of_devices_train_as_one(devices, prepared, one, tmp_path):
    assert finish(start(prepared, tmp_path / "run", devices)) == [DONE]
    assert_same_losses(tmp_path / "run", one)
    assert_all_images_scored(tmp_path / "run", one)


@pytest.mark.long
def test_two_processes_train_as_one(prepared, one, tmp_path):
    workdir = tmp_path / "run"
    assert finish(*start_two(prepared, workdir)) == [DONE, DONE]
    assert_same_losses(workdir, one)
    assert_all_images_scored(workdir, one)
    (start,) = json.loads((workdir / "provenance.json").read_text())["starts"]
    assert start["processes"] == 2


@pytest.mark.slow
def test_two_processes_stop_together_and_train_as_one(prepared, one, tmp_path):
    """SIGTERM to one of two stops both at the same step, saved; then both go on to the end."""
    workdir = tmp_path / "run"
    assert stop_after_an_epoch(start_two(prepared, workdir), workdir, 1) == [STOPPED, STOPPED]
    assert not (workdir / "stage1/final").exists()
    assert finish(*start_two(prepared, workdir)) == [DONE, DONE]
    assert_same_losses(workdir, one)
    assert_all_images_scored(workdir, one)
    starts = json.loads((workdir / "provenance.json").read_text())["starts"]
    assert [each["processes"] for each in starts] == [2, 2], "only the first writes"


@pytest.mark.parametrize("last", [pytest.param(4, marks=pytest.mark.long), pytest.param(8, marks=pytest.mark.slow)])
def test_a_checkpoint_goes_on_with_another_number_of_devices(last, prepared, one, tmp_path):
    """From 4 devices to 1 and to more again."""
    workdir = tmp_path / "run"
    assert stop_after_an_epoch([start(prepared, workdir, 4)], workdir, 1) == [STOPPED]
    assert stop_after_an_epoch([start(prepared, workdir, 1)], workdir, 1) == [STOPPED]
    assert finish(start(prepared, workdir, last)) == [DONE]
    assert_same_losses(workdir, one)
    assert_all_images_scored(workdir, one)


@pytest.mark.parametrize(
    "given",
    [
        {"JAX_COORDINATOR_ADDRESS": "node1:1234"},
        {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
        {"JAX_COORDINATOR_ADDRESS": "node1:1234", "JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"},
        {"JAX_COORDINATOR_ADDRESS": "node1:1234", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"},
    ],
)
def test_an_incomplete_environment_is_refused(given, monkeypatch):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="give all three, as in node1:1234, 2 and 0"):
        start_processes()


def test_one_process_needs_nothing(monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    start_processes()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    start_processes()
