"""What is written beside the training: in order, errors are told, and how often it is saved changes no bit."""

import os
import signal
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import as_typed, assert_same, epoch_records, load_config, shrink

from jaxpneumo.process.errors import Stopped, TrainingError
from jaxpneumo.run import checkpoint
from jaxpneumo.run.config import Loss
from jaxpneumo.run.network import make_model
from jaxpneumo.run.sharding import make_mesh
from jaxpneumo.run.state import initialise
from jaxpneumo.train import loop
from jaxpneumo.train.background import MOST_JOBS, Background, background
from jaxpneumo.train.feed import StageData, load_validation, validation_feed
from jaxpneumo.train.log import MetricsLog, read_log
from jaxpneumo.train.loop import train_stage
from jaxpneumo.train.step import make_eval_call, make_eval_step

STEPS, EPOCHS = 2, 5
ROWS, VALIDATION = np.arange(8), np.arange(8, 18)


def make_config(prepared, seconds, **stage1):
    """Exp2, shrunk: five epochs of 2 steps, the last two averaged, saved at most every `seconds`."""
    config = shrink(load_config("exp2"), prepared)
    config.checkpoint_seconds = float(seconds)
    config.model.dtype = "float32"
    config.stage1.update({"epochs": EPOCHS, "swa_epochs": 2, **stage1})
    return as_typed(config)


def run(config, folder):
    data = StageData(config.data.directory, ROWS, VALIDATION)
    return jax.device_get(train_stage(config, config.stages[0], data, folder, initialise(make_model(config.model), 0)))


def whole_training(folder: Path, step: int):
    """What a checkpoint holds beside the model."""
    with checkpoint.open_checkpoints(folder) as manager:
        arguments = {"training": checkpoint.ocp.args.StandardRestore()}
        return manager.restore(step, args=checkpoint.ocp.args.Composite(**arguments))["training"]


def saved(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def give_many(work: Background) -> None:
    for i in range(MOST_JOBS):
        work.do(divmod, i, 1)


def interrupted_with_a_job_that_fails() -> None:
    with background() as work:
        work.do(divmod, 1, 0)
        raise KeyboardInterrupt


class TestJobs:
    def test_are_done_in_order_at_the_end_of_the_block_all(self):
        done, free = [], threading.Event()
        with background() as work:
            work.do(free.wait)
            for i in range(MOST_JOBS - 1):
                work.do(done.append, i)
            assert not done
            free.set()
        assert done == list(range(MOST_JOBS - 1))

    def test_an_error_is_told_and_ends_the_jobs(self):
        work, done, free = Background(), [], threading.Event()
        work.do(free.wait)
        work.do(divmod, 1, 0)
        work.do(done.append, 1)
        free.set()
        with pytest.raises(ZeroDivisionError):
            work.wait()
        work.close()
        assert not done

    def test_an_error_is_told_by_one_of_the_next_jobs_given(self):
        work = Background()
        work.do(divmod, 1, 0)
        with pytest.raises(ZeroDivisionError):
            give_many(work)
        work.close()

    def test_what_ended_the_block_is_told_and_not_the_job_that_failed(self):
        with pytest.raises(KeyboardInterrupt):
            interrupted_with_a_job_that_fails()

    def test_without_threads_they_are_done_where_they_are_given(self):
        done = []
        Background(threads=False).do(lambda: done.append(threading.current_thread()))
        assert done == [threading.main_thread()]


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory):
    """A run that saved each epoch: its folder and its result."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(make_config(prepared, 0), folder)


@pytest.mark.long
def test_how_often_it_is_saved_changes_no_bit(prepared, whole, tmp_path):
    assert_same(whole[1], run(make_config(prepared, 3600), tmp_path))
    assert epoch_records(whole[0]) == epoch_records(tmp_path)
    assert saved(whole[0])[-2:] == [8, 10], "each epoch: the newest two are kept"
    assert saved(tmp_path) == [10], "the stage's end"
    assert_same(whole_training(whole[0], 10), whole_training(tmp_path, 10))


@pytest.mark.long
def test_the_best_epoch_is_on_the_disk_before_what_comes_after_it(prepared, tmp_path, monkeypatch):
    """Without averaging: of many better and better epochs the best alone is written, at the stage's end."""
    steps, save = [], checkpoint.save
    monkeypatch.setattr(
        checkpoint, "save", lambda manager, step, *rest: [steps.append(step), save(manager, step, *rest)]
    )
    changes = {"swa_epochs": 0, "learning_rate": 0.01}
    result = run(make_config(prepared, 3600, **changes), tmp_path / "seldom")
    records = epoch_records(tmp_path / "seldom")
    _, best = max((record["validation_iou"], record["step"]) for record in records)
    assert steps == sorted({best, EPOCHS * STEPS}) == saved(tmp_path / "seldom")
    assert_same(result, run(make_config(prepared, 0, **changes), tmp_path / "often"))
    assert epoch_records(tmp_path / "often") == records


@pytest.mark.long
def test_a_stop_saves_the_best_epoch_too(prepared, tmp_path, monkeypatch):
    """Asked to stop in the last epoch: the best before it is on the disk, and the run ends as one left alone."""
    run_epoch, changes = loop.run_epoch, {"swa_epochs": 0, "learning_rate": 0.01}
    result = run(make_config(prepared, 0, **changes), tmp_path / "whole")

    def stopped_in_the_last(*arguments):
        if next(each for each in arguments if isinstance(each, loop.Progress)).epoch == EPOCHS - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return run_epoch(*arguments)

    monkeypatch.setattr(loop, "run_epoch", stopped_in_the_last)
    with pytest.raises(Stopped):
        run(make_config(prepared, 3600, **changes), tmp_path / "run")
    records = epoch_records(tmp_path / "run")
    assert len(records) == EPOCHS - 1
    _, best = max((record["validation_iou"], record["step"]) for record in records)
    assert saved(tmp_path / "run")[0] == best
    assert saved(tmp_path / "run")[1] > STEPS * (EPOCHS - 1)
    monkeypatch.setattr(loop, "run_epoch", run_epoch)
    assert_same(result, run(make_config(prepared, 3600, **changes), tmp_path / "run"))
    assert epoch_records(tmp_path / "run") == epoch_records(tmp_path / "whole")


@pytest.mark.long
def test_an_epochs_line_is_in_the_log_before_its_checkpoint(prepared, tmp_path, monkeypatch):
    save, lines = checkpoint.save, []

    def look(manager, step, *rest):
        lines.append((step, [record["step"] for record in read_log(tmp_path / "log.jsonl")]))
        save(manager, step, *rest)

    monkeypatch.setattr(checkpoint, "save", look)
    run(make_config(prepared, 0), tmp_path)
    assert [step for step, _ in lines] == [2, 4, 6, 8, 10]
    for step, logged in lines:
        assert step in logged


@pytest.mark.long
def test_an_epoch_that_cannot_be_logged_is_not_saved(prepared, tmp_path, monkeypatch):
    """The log's file is one on a full disk."""
    write = MetricsLog.write

    def full(log, record):
        if record["epoch"] == 2:
            log._file = open("/dev/full", "a")  # noqa: SIM115
        write(log, record)

    monkeypatch.setattr(MetricsLog, "write", full)
    with pytest.raises(OSError, match="No space left on device"):
        run(make_config(prepared, 0), tmp_path)
    assert saved(tmp_path) == [2, 4]


def test_after_a_loss_that_is_not_finite_nothing_is_saved_and_before_it_all(prepared, tmp_path, monkeypatch):
    """The third epoch's steps are far too long."""
    monkeypatch.setattr(loop, "learning_rate_fn", lambda stage, epoch, plateau: 1e30 if epoch == 2 else 1e-3)
    with pytest.raises(TrainingError, match=r"stage1 epoch 3/5: the loss became"):
        run(make_config(prepared, 0), tmp_path)
    assert saved(tmp_path) == [2, 4]
    assert len(epoch_records(tmp_path)) == 2


def test_a_call_of_several_batches_scores_each_as_alone(prepared):
    """On the device or streamed: the sums of every batch, the last of them filled."""
    config = make_config(prepared, 0)
    model, stage = make_model(config.model), config.stages[0]
    variables, data = initialise(model, 0), StageData(config.data.directory, ROWS, VALIDATION)
    step = make_eval_step(model, Loss("batch"), 0.5)
    call, alone = jax.jit(make_eval_call(step)), jax.jit(step)
    mesh, stop = make_mesh(), np.array([False, False])
    resident = load_validation("on", data, stage.size, mesh)
    given = variables["params"], variables["batch_stats"]
    (streamed,), (placed,) = (list(validation_feed(data, stage, each, [3], mesh)) for each in ({}, resident))
    expected = [alone(*given, jax.tree.map(lambda x, i=i: x[i], streamed)) for i in range(3)]
    for found in (call(*given, {}, streamed, stop), call(*given, resident, placed, stop)):
        assert not found["stop"]
        assert np.asarray(found["weight"]).tolist() == [4, 4, 2]
        for key, values in found.items():
            if key != "stop":
                np.testing.assert_allclose(values, [each[key] for each in expected], rtol=2e-5)
