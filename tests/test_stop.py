"""SIGTERM and faults of a training stage: what was finished is kept, and the same command ends with the same bits."""

import json
import logging
import multiprocessing
import os
import resource
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import as_typed, assert_same, epoch_records, load_config, shrink

from jaxpneumo.process import errors
from jaxpneumo.process.errors import InputError, Stopped, TrainingError
from jaxpneumo.run import checkpoint
from jaxpneumo.run.network import make_model
from jaxpneumo.run.state import create_train_state, initialise
from jaxpneumo.train import epoch, loop
from jaxpneumo.train.feed import StageData
from jaxpneumo.train.loop import train_stage
from jaxpneumo.train.optimizer import make_optimizer

STEPS, EPOCHS = 3, 3


def make_config(prepared, epochs=EPOCHS, **changes):
    """Exp3, shrunk: 14 images in 3 steps, augmented, plateau schedule, the last two epochs averaged.

    The other 10 images validate, in 3 batches.
    """
    config = shrink(load_config("exp3"), prepared)
    config.model.dtype = "float32"
    config.stage1.update(epochs=epochs, swa_epochs=2, schedule="plateau", plateau_factor=0.5, plateau_patience=1)
    config.data.update(changes)
    return as_typed(config)


def run(config, folder):
    data = StageData(config.data.directory, np.arange(3, 17), np.r_[:3, 17:24])
    return train_stage(config, config.stages[0], data, folder, initialise(make_model(config.model), 0))


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory):
    """An uninterrupted run: its folder and its result."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, jax.device_get(run(make_config(prepared), folder))


def assert_ends_as(whole, config, folder):
    """Started again, the stage in `folder` ends with the result, the averages, the scores and the log of `whole`."""
    assert_same(whole[1], run(config, folder))
    assert epoch_records(whole[0]) == epoch_records(folder)
    ends = []
    for each in (whole[0], folder):
        with checkpoint.open_checkpoints(each) as manager:
            template = {"model": None, "training": None}
            ends.append(manager.restore(STEPS * EPOCHS, args=_everything(template)))
    assert_same(ends[0]["training"], ends[1]["training"])
    assert ends[0]["progress"]["progress"] == ends[1]["progress"]["progress"]


def _everything(items):
    arguments = {name: checkpoint.ocp.args.StandardRestore() for name in items}
    return checkpoint.ocp.args.Composite(**arguments, progress=checkpoint.ocp.args.JsonRestore())


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def before_epoch(monkeypatch):
    """`before_epoch(number, action)`: what is to happen when that epoch, counted from 1, is about to begin."""
    train_epoch, actions = loop.run_epoch, {}

    def wrapped(*arguments):
        progress = next(each for each in arguments if isinstance(each, loop.Progress))
        actions.pop(progress.epoch + 1, lambda: None)()
        return train_epoch(*arguments)

    monkeypatch.setattr(loop, "run_epoch", wrapped)
    return actions.__setitem__


def steps_saved(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.mark.long
def test_sigterm_in_an_epoch_saves_within_it(prepared, whole, tmp_path, before_epoch):
    config = make_config(prepared)
    handler = signal.getsignal(signal.SIGTERM)
    before_epoch(2, terminate)
    with pytest.raises(Stopped):
        run(config, tmp_path)
    assert steps_saved(tmp_path) == ["3", "5"], "the epoch's end, and the second step after it"
    before_epoch(3, terminate)
    with pytest.raises(Stopped):
        run(config, tmp_path)
    assert signal.getsignal(signal.SIGTERM) == handler
    assert_ends_as(whole, config, tmp_path)


@pytest.fixture
def before_batch(monkeypatch):
    """`before_batch(number)`: SIGTERM comes when that batch of a validation, counted from 1, is about to begin."""
    validate = epoch.validate

    def at(number):
        def terminated(run, *arguments):
            def calls():
                for i, call in enumerate(run.validation_calls(), start=1):
                    if i == number:
                        terminate()
                    yield call

            return validate(replace(run, validation_calls=calls), *arguments)

        monkeypatch.setattr(epoch, "validate", terminated)

    yield at
    monkeypatch.setattr(epoch, "validate", validate)


def test_sigterm_in_validation_saves_the_steps_before_it(prepared, whole, tmp_path, before_batch):
    config = make_config(prepared)
    for _ in range(2):  # the second time, the checkpoint of the first is replaced
        before_batch(1)
        with pytest.raises(Stopped):
            run(config, tmp_path)
        assert steps_saved(tmp_path) == ["3"]
        assert not (tmp_path / "log.jsonl").read_text()
    before_batch(None)
    assert_ends_as(whole, config, tmp_path)


def test_sigterm_in_the_last_batch_of_a_validation_ends_the_epoch(prepared, whole, tmp_path, before_batch):
    config = make_config(prepared)
    before_batch(STEPS)
    with pytest.raises(Stopped):
        run(config, tmp_path)
    assert steps_saved(tmp_path) == ["3"]
    assert len(epoch_records(tmp_path)) == 1
    assert "validation_iou" in json.loads((tmp_path / "checkpoints/3/progress/metadata").read_text())["progress"]
    before_batch(None)
    assert_ends_as(whole, config, tmp_path)


def test_sigterm_in_the_batch_norm_pass(prepared, whole, tmp_path, monkeypatch):
    config = make_config(prepared)
    statistics = loop.statistics
    monkeypatch.setattr(loop, "statistics", lambda *arguments: [terminate(), statistics(*arguments)][1])
    with pytest.raises(Stopped):
        run(config, tmp_path)
    assert steps_saved(tmp_path)[-1] == "9"
    assert not (tmp_path / "final").exists()
    monkeypatch.setattr(loop, "statistics", statistics)
    assert_ends_as(whole, config, tmp_path)


def test_sigterm_in_a_save_and_again_in_the_save_it_asks_for(prepared, whole, tmp_path, monkeypatch, before_epoch):
    config = make_config(prepared)
    save, saved = checkpoint.save, threading.Event()

    def terminated(manager, *arguments):
        save(manager, *arguments)
        assert manager.is_saving_in_progress()
        terminate()
        terminate()
        saved.set()

    monkeypatch.setattr(checkpoint, "save", terminated)
    before_epoch(2, lambda: saved.wait(60))
    with pytest.raises(Stopped):
        run(config, tmp_path)
    assert steps_saved(tmp_path) == ["3", "5"]
    monkeypatch.setattr(checkpoint, "save", save)
    assert_ends_as(whole, config, tmp_path)


def test_a_stop_has_its_own_exit_code(capsys):
    def verb(arguments):
        raise Stopped

    assert errors.exit_code(verb, []) == errors.STOPPED == 75
    assert "saved; the same command goes on" in capsys.readouterr().err


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def largest(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


DAMAGES = {
    "arrays cut off": lambda folder: cut(largest(folder / "model")),
    "a bit of the optimizer flipped": lambda folder: flip_a_bit(largest(folder / "training")),
    "progress cut off": lambda folder: cut(folder / "progress/metadata"),
    "progress changed": lambda folder: (folder / "progress/metadata").write_text(
        (folder / "progress/metadata").read_text().replace('"epochs_since_best":', '"epochs_since_best":1')
    ),
    "metric cut off": lambda folder: cut(folder / "metrics/metrics"),
    "arrays missing": lambda folder: shutil.rmtree(folder / "model"),
}


@pytest.fixture(scope="module")
def interrupted(prepared, tmp_path_factory):
    """A run that was stopped in its last epoch: checkpoints after 3, 6 (kept as the best or not) and 8 steps."""
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.MonkeyPatch.context() as patch:
        train_epoch = loop.run_epoch

        def stopped_in_the_last(*arguments):
            if next(each for each in arguments if isinstance(each, loop.Progress)).epoch == 2:
                terminate()
            return train_epoch(*arguments)

        patch.setattr(loop, "run_epoch", stopped_in_the_last)
        with pytest.raises(Stopped):
            run(make_config(prepared), folder)
    assert steps_saved(folder)[-2:] == ["6", "8"]
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside(damage, prepared, interrupted, tmp_path, caplog):
    """Found whatever is wrong with it; the one before is restored (that it is trained on is tested below)."""
    folder = tmp_path / "run"
    shutil.copytree(interrupted, folder)
    newest = max((path for path in (folder / "checkpoints").iterdir() if (path / "metrics").exists()), key=_number)
    for path in (folder / "checkpoints").iterdir():
        if _number(path) > _number(newest):
            shutil.rmtree(path)
    DAMAGES[damage](newest)
    config = make_config(prepared)
    model, optimizer = make_model(config.model), make_optimizer()
    state = create_train_state(initialise(model, 0), optimizer)
    with checkpoint.open_checkpoints(folder) as manager:
        restored = checkpoint.restore_newest(manager, state, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    assert f"{newest} is damaged" in caplog.text
    assert f"set aside as {newest.name}.damaged" in caplog.text
    assert newest.with_name(f"{newest.name}.damaged").is_dir()
    if restored is None:
        assert not [name for name in steps_saved(folder) if name.isdecimal()]
    else:
        assert restored[1]["epoch"] * STEPS == int(restored[0].step) < _number(newest)


def _number(path: Path) -> int:
    return int(path.name)


@pytest.mark.long
def test_after_damage_the_bits_are_the_same(prepared, whole, interrupted, tmp_path, caplog):
    """First with the one before, then with none; then the result itself is damaged."""
    caplog.set_level(logging.INFO)
    config, folder = make_config(prepared), tmp_path / "run"
    shutil.copytree(interrupted, folder)
    cut(largest(folder / "checkpoints/8/model"))
    assert_ends_as(whole, config, folder)
    assert "8.damaged" in caplog.text
    assert "stage1 goes on after epoch 2 of 3" in caplog.text

    flip_a_bit(largest(folder / "final/model"))
    template = initialise(make_model(config.model), 0)
    with pytest.raises(InputError, match=r"final .*damaged: .*checksum.* makes the result from the last checkpoint"):
        checkpoint.restore_final(folder, template, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    assert_ends_as(whole, config, folder)
    assert (folder / "final.damaged").is_dir()

    shutil.rmtree(folder / "final")
    for path in (folder / "checkpoints").iterdir():
        if path.name.isdecimal():
            cut(path / "progress/metadata")
    caplog.clear()
    assert_ends_as(whole, config, folder)
    assert "no undamaged checkpoint is left: stage1 starts from the beginning" in caplog.text


def test_a_folder_of_checkpoints_that_cannot_be_read(prepared, tmp_path):
    (tmp_path / "checkpoints").write_text("not a folder")
    with pytest.raises(InputError, match=r"checkpoints cannot be read: Not a directory\. Put it right, or move it"):
        run(make_config(prepared), tmp_path)
    (tmp_path / "checkpoints").unlink()
    (tmp_path / "checkpoints").symlink_to(tmp_path / "checkpoints")
    with pytest.raises(InputError, match=r"checkpoints cannot be read: Too many levels of symbolic links"):
        run(make_config(prepared), tmp_path)


@pytest.mark.long
def test_a_full_disk_is_told_and_costs_nothing(prepared, whole, tmp_path, before_epoch):
    config, limits = make_config(prepared), resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        while "3" not in steps_saved(tmp_path):  # it is written beside the training
            time.sleep(0.01)
        # Less than the arrays of a checkpoint need, and more than the log.
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))

    before_epoch(3, fill)
    try:
        with pytest.raises(TrainingError, match=r"checkpoints cannot be written: the disk is full.*make room, then"):
            run(config, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "3" in steps_saved(tmp_path)
    assert_ends_as(whole, config, tmp_path)


def test_a_full_disk_elsewhere_is_told_too(tmp_path, capsys):
    def verb(arguments):
        with open("/dev/full", "w") as file:
            file.write("x")
        return 0

    assert errors.exit_code(verb, []) == errors.FAILED
    assert "jaxpneumo: No space left on device" in capsys.readouterr().err


@pytest.mark.long
def test_data_that_go_away_in_the_run(prepared, tmp_path, before_epoch):
    """They are missed where they are streamed."""
    data, alone = tmp_path / "data", tmp_path / "alone"
    shutil.copytree(prepared, data)
    config = make_config(prepared, directory=str(data), resident="off")
    whole = alone, jax.device_get(run(config, alone))
    before_epoch(2, lambda: data.rename(tmp_path / "elsewhere"))
    with pytest.raises(InputError, match=r"data is not a prepared data set"):
        run(config, tmp_path / "run")
    (tmp_path / "elsewhere").rename(data)
    assert_ends_as(whole, config, tmp_path / "run")


@pytest.mark.long
def test_a_reading_process_that_is_killed(prepared, tmp_path, before_epoch):
    others = set(multiprocessing.active_children())

    def kill_reader():
        (reader,) = set(multiprocessing.active_children()) - others
        reader.kill()

    # More epochs than what has been read ahead.
    config = make_config(prepared, epochs=20, resident="off", workers=1)
    before_epoch(2, kill_reader)
    with pytest.raises(TrainingError, match=r"data cannot be read any more: .*exit code -9.* --config\.data\.workers"):
        run(config, tmp_path)
    assert "3" in steps_saved(tmp_path) or len(steps_saved(tmp_path)) == 2


def test_the_progress_saved_is_json(interrupted):
    saved = json.loads((interrupted / "checkpoints/8/progress/metadata").read_text())
    assert saved["progress"]["epoch"] == 2
    assert saved["progress"]["steps"] == 2
    assert saved["progress"]["totals"].keys() == {"loss", "bce", "dice_loss"}
