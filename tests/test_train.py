"""A stage trains: averaging and its statistics, resuming to the same bits, devices, and what it refuses."""

import dataclasses
import functools
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import REPOSITORY, as_typed, assert_same, epoch_records, load_config, shrink, train_interrupted

from jaxpneumo.data import dataset, partition, splits
from jaxpneumo.data.source import train_batches
from jaxpneumo.process.errors import DONE, InputError, TrainingError
from jaxpneumo.run import checkpoint
from jaxpneumo.run.config import Loss
from jaxpneumo.run.network import make_model
from jaxpneumo.run.sharding import check_batch_size
from jaxpneumo.run.state import create_train_state, initialise, update_average
from jaxpneumo.train import compiled, loop, stages
from jaxpneumo.train.feed import StageData
from jaxpneumo.train.optimizer import make_optimizer
from jaxpneumo.train.stages import _read_split, train
from jaxpneumo.train.step import make_statistics_call, make_train_step, unpack


def small(prepared, **stage1):
    """Exp4, shrunk, three epochs in stage 1."""
    config = shrink(load_config("exp4"), prepared)
    config.model.dtype = "float32"
    config.stage1.epochs = 3
    config.stage1.swa_epochs = 2
    config.stage1.update(stage1)
    return config


def test_average_is_the_mean_of_the_states_it_saw():
    variables = {"params": {"w": jnp.array([1.0, -2.0])}, "batch_stats": {}}
    state = create_train_state(variables, make_optimizer())
    for value in ([1.0, -2.0], [3.0, 0.0], [8.0, 5.0]):
        state = update_average(dataclasses.replace(state, params={"w": jnp.array(value)}))
    np.testing.assert_allclose(state.swa_params["w"], [4.0, 1.0], rtol=1e-6)
    assert state.swa_count == 3


def test_masks_are_unpacked_on_the_device():
    mask = np.random.default_rng(0).integers(0, 2, (2, 8, 16), np.uint8)
    image = np.full((2, 8, 16), 51, np.uint8)
    unpacked_image, unpacked_mask = unpack({"image": image, "mask": np.packbits(mask, axis=-1)})
    np.testing.assert_array_equal(unpacked_mask, mask)
    np.testing.assert_allclose(unpacked_image, 0.2)


def test_train_step_is_adam_on_the_gradient(prepared):
    config = small(prepared)
    model, optimizer = make_model(as_typed(config).model), make_optimizer()
    state = create_train_state(initialise(model, 0), optimizer)
    batch = next(train_batches(prepared, 32, np.arange(8), 4, 0))
    after, metrics = jax.jit(make_train_step(model, optimizer, Loss("image")))(state, batch, jnp.float32(1e-3))
    assert after.step == 1
    assert metrics["loss"] == pytest.approx(float(metrics["bce"] + metrics["dice_loss"]))
    # Adam's first step moves every parameter with a gradient by the learning rate.
    moved = jnp.abs(after.params["segmentation_head"]["bias"] - state.params["segmentation_head"]["bias"])
    np.testing.assert_allclose(moved, 1e-3, rtol=1e-3)


def test_statistics_call_gives_the_batchs_own_mean_and_variance(prepared):
    config = small(prepared)
    settings = as_typed(config).model
    model = make_model(settings)
    variables = initialise(model, 0)
    batch = next(train_batches(prepared, 32, np.arange(8), 4, 0))
    zeros = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
    call = jax.jit(make_statistics_call(model))
    feed = jax.tree.map(lambda x: x[None], batch)
    (statistics, count), stop = call(variables["params"], (zeros, np.int32(0)), {}, feed, np.array([False, True]))
    assert (count, stop) == (1, True)
    grey = batch["image"].astype(np.float32) / 255
    np.testing.assert_allclose(statistics["encoder"]["bn_data"]["mean"], np.full(3, grey.mean()), rtol=1e-4)
    np.testing.assert_allclose(statistics["encoder"]["bn_data"]["var"], np.full(3, grey.var()), rtol=1e-3)


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory):
    """The folder of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    train(as_typed(small(prepared)), folder)
    return folder


def test_result_is_the_average_with_its_own_statistics(prepared, whole):
    """Stage 1's result is the mean of the two last epochs' weights, and stage 2 starts from it."""
    config = small(prepared)
    template = initialise(make_model(as_typed(config).model), 0)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    final, progress = checkpoint.restore_final(whole / "stage1", template, sharding)
    with checkpoint.open_checkpoints(whole / "stage1") as manager:
        model = {"model": checkpoint._abstract(template, sharding)}
        steps = [functools.partial(manager.restore, step) for step in manager.all_steps()]
        epochs = [checkpoint._restore(restore, model)["model"] for restore in steps]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *(epoch["params"] for epoch in epochs))
    for a, b in zip(jax.tree.leaves(final["params"]), jax.tree.leaves(mean), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    assert progress["weights"] == "average of the last 2 epochs"
    own = final["batch_stats"]["encoder"]["bn_data"]["mean"]
    assert np.abs(own - epochs[-1]["batch_stats"]["encoder"]["bn_data"]["mean"]).max() > 0

    images, _ = dataset.open_arrays(prepared, 32)
    assert 0.5 < float(own[0]) / (images.mean() / 255) < 2


@pytest.mark.long
def test_a_network_that_outlines_nothing_is_told(prepared, tmp_path, caplog):
    """Once while it trains, also over a restart, and once of its result; a network that outlines something is not."""
    config = small(prepared, epochs=loop.COLLAPSED_AFTER + 1)
    del config.stage2
    config.predict.threshold = 1.0  # which no probability reaches
    train_interrupted(config, tmp_path / "run", epoch=2)
    train(as_typed(config), tmp_path / "run")
    warnings = [record.message for record in caplog.records if "outline" in record.message]
    assert len(warnings) == 2
    assert f"stage1 outlined nothing in {loop.COLLAPSED_AFTER} epochs in a row, although" in warnings[0]
    assert "the result of stage1 outlines nothing" in warnings[1]
    assert {record["validation_outlined"] for record in epoch_records(tmp_path / "run/stage1")} == {0.0}
    caplog.clear()
    config.predict.threshold = 1e-9
    train(as_typed(config), tmp_path / "other")
    assert {record["validation_outlined"] for record in epoch_records(tmp_path / "other/stage1")} == {1.0}
    assert "outline" not in caplog.text


def test_same_seed_gives_the_same_bits_also_in_two_parts(prepared, whole, tmp_path):
    """A run stopped after an epoch and started again ends where the uninterrupted one ends."""
    config = small(prepared)
    train_interrupted(config, tmp_path / "parts", epoch=1)
    parts = train(as_typed(config), tmp_path / "parts")
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    assert_same(checkpoint.restore_final(whole / "stage2", parts, device)[0], parts)
    for stage in ("stage1", "stage2"):
        assert epoch_records(whole / stage) == epoch_records(tmp_path / "parts" / stage)


@pytest.mark.slow  # test_kills.py has the like; this one reads what the command says
def test_killed_process_goes_on_from_its_last_checkpoint(prepared, tmp_path):
    """SIGKILL in stage 2, then the same command again: the bits of an uninterrupted run."""
    command = [
        *(sys.executable, "-m", "jaxpneumo.main", f"--config={REPOSITORY}/configs/exp4.py"),
        *(f"--workdir={tmp_path / 'run'}", f"--config.data.directory={prepared}"),
        *("--config.model.depths=(1,1,1,1)", "--config.model.width=8", "--config.model.dtype=float32"),
        *("--config.stage1.size=32", "--config.stage1.batch_size=4", "--config.stage1.epochs=1"),
        *("--config.stage1.swa_epochs=1", "--config.stage2.size=64", "--config.stage2.batch_size=4"),
        *("--config.stage2.epochs=6", "--config.predict.size=64", "--config.predict.batch_size=4"),
        "--config.checkpoint_seconds=0",
    ]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run/stage2/checkpoints/10").is_dir() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "run/stage2/final").exists()

    again = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    assert "stage1 is complete" in again.stderr
    assert "stage2 goes on after epoch" in again.stderr
    # What takes long at first is said before it begins.
    bar, finished = (again.stderr.index(words) for words in ("compiling, once]", "stage2 is complete"))
    assert bar < finished
    subprocess.run([*command, f"--workdir={tmp_path / 'whole'}"], cwd=REPOSITORY, env=environment, check=True)
    assert epoch_records(tmp_path / "run/stage2") == epoch_records(tmp_path / "whole/stage2")
    for name in ("evaluation/summary.json", "evaluation/metrics.csv", "predictions/submission.csv"):
        a, b = ((tmp_path / run / name).read_text() for run in ("run", "whole"))
        assert a.replace('"workdir": "run"', "") == b.replace('"workdir": "whole"', "")


def test_loss_that_is_not_finite_stops_with_words(prepared, tmp_path):
    """With a rate that a config may not have: train_stage itself does not ask."""
    config = as_typed(small(prepared))
    stage = dataclasses.replace(config.stages[0], learning_rate=1e30)
    data = StageData(str(prepared), np.arange(14), np.arange(14, 24))
    variables = initialise(make_model(config.model), 0)
    with pytest.raises(TrainingError, match=r"stage1 epoch 1/3: the loss became .* learning_rate"):
        loop.train_stage(config, stage, data, tmp_path / "stage1", variables)
    assert not (tmp_path / "stage1/final").exists()


def test_without_averaging_the_best_epoch_is_the_result(prepared, tmp_path):
    config = small(prepared, swa_epochs=0, learning_rate=0.01, epochs=6)
    del config.stage2
    config.predict.size = 32
    train(as_typed(config), tmp_path)
    records = epoch_records(tmp_path / "stage1")
    _, best = max((record["validation_iou"], record["epoch"] + 1) for record in records)
    _, progress = checkpoint.restore_final(
        tmp_path / "stage1",
        initialise(make_model(as_typed(config).model), 0),
        jax.sharding.SingleDeviceSharding(jax.devices()[0]),
    )
    kept = {int(path.name) for path in (tmp_path / "stage1/checkpoints").iterdir()}
    steps = records[0]["step"]
    assert kept == {best * steps, 5 * steps, 6 * steps}, "the newest two and the best"
    assert progress["weights"] == f"epoch {best}, the best validation IoU"
    assert progress["validation_iou"] == pytest.approx(records[best - 1]["validation_iou"])


def test_batch_size_must_divide_over_devices(prepared, tmp_path):
    assert jax.device_count() == 2
    config = small(prepared, batch_size=3)
    with pytest.raises(InputError, match=r"stage1\.batch_size=3 .* 2 devices .* --config\.stage1\.batch_size=4"):
        train(as_typed(config), tmp_path)
    check_batch_size(8, 4, "stage1")


def test_a_later_stages_batch_larger_than_the_data_is_refused_before_anything_is_trained(prepared, tmp_path):
    config = small(prepared)
    config.stage2.batch_size = 200
    with pytest.raises(InputError, match=r"stage2\.batch_size=200 is more than the 14 training images"):
        train(as_typed(config), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_all_stages_are_compiled_before_the_first_is_trained(prepared, tmp_path, monkeypatch):
    """Afterwards no stage compiles a program for itself."""
    events = []
    compile_programs, train_stage = compiled.compile_programs, loop.train_stage

    def compiling(programs):
        before = set(compiled._kept)
        found = compile_programs(programs)
        events.append(len(set(compiled._kept) - before))
        return found

    def training(*arguments):
        events.append(arguments[1].name)
        return train_stage(*arguments)

    monkeypatch.setattr(compiled, "_kept", {})
    for module in (compiled, loop):
        monkeypatch.setattr(module, "compile_programs", compiling)
    monkeypatch.setattr(stages, "train_stage", training)
    train(as_typed(small(prepared)), tmp_path)
    assert events[0] > 0
    assert events[1:] == ["stage1", 0, "stage2", 0]


def test_folder_of_another_config_is_refused(prepared, tmp_path):
    config = small(prepared)
    del config.stage2
    config.predict.size = 32
    train(as_typed(config), tmp_path)
    config.predict.threshold = 0.3  # may change: nothing that is trained depends on it
    train(as_typed(config), tmp_path)
    config.stage1.learning_rate = 0.1
    config.seed = 5
    with pytest.raises(InputError, match=r"differ in seed, stage1\.learning_rate"):
        train(as_typed(config), tmp_path)


def test_config_problems_are_told_all_at_once(prepared, tmp_path):
    config = small(prepared, schedule="steps")
    del config.loss.dice
    del config.predict.tta
    with pytest.raises(
        InputError, match=r"loss\.dice is missing; predict\.tta is missing; --config\.stage1\.schedule must be"
    ):
        train(as_typed(config), tmp_path)


def test_an_unknown_augmentation_engine_is_refused(prepared, tmp_path):
    config = small(prepared)
    config.augment.engine = "gpu"
    with pytest.raises(InputError, match=r'augment\.engine must be "device" or "host", not \'gpu\''):
        train(as_typed(config), tmp_path)
    del config.augment.flip
    with pytest.raises(InputError, match=r"augment\.flip is missing; --config\.augment\.engine must be"):
        train(as_typed(config), tmp_path)


def fold_of(prepared, file, fold):
    config = small(prepared)
    del config.stage2
    config.stage1.epochs, config.stage1.swa_epochs, config.predict.size = 1, 0, 32
    config.data.split, config.data.fold = str(file), fold
    config.data.resident = "off"  # streamed input has one program for training parts of any size
    return as_typed(config)


@pytest.mark.long
def test_each_fold_validates_once(prepared, tmp_path):
    file = tmp_path / "folds.json"
    command = ["--data", str(prepared), "--method", "patient", "--folds", "3", "--output", str(file)]
    assert partition.main(command) == DONE
    index = dataset.read_index(prepared)
    validated = []
    for fold in range(3):
        train(fold_of(prepared, file, fold), tmp_path / f"run_fold{fold}")
        own = json.loads((tmp_path / f"run_fold{fold}/splits.json").read_text())
        assert (own["part_of"], own["method"], own["file"]) == ({"fold": fold, "folds": 3}, "patient", "folds.json")
        assert sorted(own["train"] + own["validation"]) == sorted(index.image_id)
        validated += own["validation"]
    assert sorted(validated) == sorted(index.image_id)
    # The run goes on with its own copy of the split, and not in the folder of another fold.
    file.unlink()
    train(fold_of(prepared, file, 2), tmp_path / "run_fold2")
    with pytest.raises(InputError, match=r"differ in data\.fold"):
        train(fold_of(prepared, file, 1), tmp_path / "run_fold2")


def told_of_split(config, own, caplog) -> str:
    caplog.clear()
    with caplog.at_level(logging.WARNING, "jaxpneumo"):
        _read_split(as_typed(config), own)
    return "\n".join(record.getMessage() for record in caplog.records)


def test_a_splits_file_of_the_data_that_is_not_used_is_told(prepared, tmp_path, caplog):
    data = shutil.copytree(prepared, tmp_path / "data")
    config = small(data)
    config.data.validation_fraction = load_config("exp4").data.validation_fraction
    assert "is not used" not in told_of_split(config, None, caplog)  # `prepare` made the very same
    assert partition.main(["--data", str(data), "--method", "patient", "--overwrite"]) == DONE
    way_out = f"To train on it, start with --config.data.split={data}/splits.json."
    told = told_of_split(config, None, caplog)
    assert "splits.json (split by patient) is not used, as data.split is random" in told
    assert way_out in told
    shutil.copy(data / "splits.json", tmp_path / "own.json")
    assert "is not used" not in told_of_split(config, tmp_path / "own.json", caplog)  # a run that goes on
    config.data.split = str(data / "splits.json")
    assert told_of_split(config, None, caplog) == ""
    assert partition.main(["--data", str(data), "--method", "random", "--seed", "5", "--overwrite"]) == DONE
    config.data.split = "patient"
    assert told_of_split(config, None, caplog) == ""
    command = ["--data", str(data), "--method", "patient", "--folds", "3", "--seed", "1", "--overwrite"]
    assert partition.main(command) == DONE
    assert "--config.data.fold=0, or another fold" in told_of_split(config, None, caplog)


def test_patients_on_both_sides_are_a_warning(prepared, caplog):
    index = dataset.read_index(prepared)
    config = small(prepared)
    train_rows, validation_rows, _ = splits.split_rows(index, "random", config.data.validation_fraction, 0)
    shared = np.isin(index.patient[validation_rows], index.patient[train_rows]).sum()
    told = told_of_split(config, None, caplog)
    assert shared
    assert f"{shared} of {len(validation_rows)} validation images (" in told
    config.data.split = "patient"
    assert told_of_split(config, None, caplog) == ""


def test_folds_that_cannot_be_are_refused_before_anything_is_written(prepared, tmp_path):
    index, file, run = dataset.read_index(prepared), tmp_path / "folds.json", tmp_path / "run"
    splits.write_folds(file, [index.image_id[:12], index.image_id[12:]], "mine", None)
    for where, fold, words in (
        (file, 2, "has the folds 0 to 1, not 2"),
        (file, -1, "data.fold must be a whole number from 0 to 999, not -1"),
        ("random", 1, "random split has no folds"),
    ):
        with pytest.raises(InputError, match=words):
            train(fold_of(prepared, where, fold), run)
    splits.write_folds(file, [index.image_id[:12], np.array([*index.image_id[12:], "1.2.3"])], "mine", None)
    for fold in (0, 1):
        with pytest.raises(InputError, match=r"1\.2\.3 first: they were not prepared, or have no label"):
            train(fold_of(prepared, file, fold), run)
    config = small(prepared)
    config.data.validation_fraction = 0.0
    with pytest.raises(InputError, match="leaves 24 training and 0 validation images"):
        train(as_typed(config), run)
    assert not run.exists()
