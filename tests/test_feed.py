"""The input path: resident and streamed input train alike, nothing is moved or compiled behind the loop's back."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import as_typed, epoch_records, load_config, shrink

from jaxpneumo.augment import device
from jaxpneumo.data import dataset
from jaxpneumo.data.source import train_batches
from jaxpneumo.process.errors import InputError
from jaxpneumo.run.config import Loss
from jaxpneumo.run.network import make_model
from jaxpneumo.run.sharding import make_mesh, place, place_flag, replicated, split_calls
from jaxpneumo.run.state import create_train_state, initialise
from jaxpneumo.train import feed, loop
from jaxpneumo.train.feed import StageData, load_resident, load_validation, plan_calls, prefetch, remaining
from jaxpneumo.train.loop import train_stage
from jaxpneumo.train.losses import segmentation_loss
from jaxpneumo.train.optimizer import make_optimizer
from jaxpneumo.train.step import make_train_call, make_train_step, unpack

ROWS, VALIDATION = np.arange(3, 23), np.arange(3)
EPOCHS, STEPS = 3, 5


@pytest.fixture
def config(prepared):
    """Exp3, shrunk: 20 images in 5 steps, no augmentation, the last epoch averaged."""
    config = shrink(load_config("exp3"), prepared)
    config.model.dtype = "float32"
    config.augment.update(flip=0.0, intensity=0.0, distortion=0.0, crop=0.0)
    config.stage1.update(epochs=EPOCHS, swa_epochs=1)
    return config


def run(config, folder, resident):
    config.data.resident = resident
    config = as_typed(config)
    data = StageData(config.data.directory, ROWS, VALIDATION)
    return train_stage(config, config.stages[0], data, folder, initialise(make_model(config.model), 0))


@pytest.mark.parametrize(
    ("steps", "calls"),
    [(169, [13] * 13), (160, [16] * 10), (677, [16] * 42 + [5]), (5, [5]), (1, [1]), (17, [16, 1])],
)
def test_an_epoch_is_few_different_calls(steps, calls):
    assert plan_calls(steps, 16) == calls
    assert plan_calls(steps, 1) == [1] * steps
    assert plan_calls(steps) == [1] * steps, "the CPU takes a step a call"


def test_what_is_left_of_an_epoch():
    calls = [4, 4, 2]
    assert [sum(remaining(calls, done)) for done in range(11)] == list(range(10, -1, -1))
    assert remaining(calls, 4) == [4, 2]
    assert remaining(calls, 5) == [3, 2]
    assert remaining(calls, 10) == []


def test_items_are_asked_for_ahead():
    asked = []
    items = prefetch((asked.append(i) or i for i in range(5)), 2)
    assert next(items) == 0
    assert asked == [0, 1, 2]
    assert list(items) == [1, 2, 3, 4]


@pytest.mark.slow
def test_compiled_and_plain_loops_train_alike(config, prepared, tmp_path, monkeypatch):
    run(config, tmp_path / "on", "on")
    records = epoch_records(tmp_path / "on")

    # Several steps in one compiled loop. Another program rounds otherwise, and Adam's first steps magnify that by the
    # learning rate: with a tenth of it the bound holds on processors with and without AVX-512.
    config.stage1.learning_rate /= 10
    run(config, tmp_path / "slow", "on")
    slow = epoch_records(tmp_path / "slow")
    monkeypatch.setattr(feed, "STEPS_PER_CALL_CPU", STEPS)
    run(config, tmp_path / "calls", "on")
    for record, other in zip(slow, epoch_records(tmp_path / "calls"), strict=True):
        assert other == pytest.approx(record, rel=2e-3)

    # no feed, no calls, one device
    model, optimizer = make_model(as_typed(config).model), make_optimizer()
    state = create_train_state(initialise(model, 0), optimizer)
    step = jax.jit(make_train_step(model, optimizer, Loss(config.loss.dice)))
    batches = train_batches(prepared, 32, ROWS, 4, config.seed)
    losses = []
    for _ in range(STEPS):
        state, metrics = step(state, next(batches), jnp.float32(records[0]["learning_rate"]))
        losses.append(float(metrics["loss"]))
    batches.close()
    assert np.mean(losses) == pytest.approx(records[0]["train_loss"], rel=2e-3)


@pytest.mark.long
@pytest.mark.parametrize("resident", ["on", "off"])
def test_epochs_move_nothing_unasked_and_compile_nothing_again(config, resident, tmp_path, monkeypatch):
    """Only explicit transfers are allowed within an epoch, and all is compiled before the first."""
    train_epoch, compiled, at_start = loop.run_epoch, [], []

    def guarded(*arguments):
        at_start.append(len(compiled))
        with jax.transfer_guard("disallow"):
            result = train_epoch(*arguments)
        at_start.append(len(compiled))
        return result

    def count(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(duration)

    monkeypatch.setattr(loop, "run_epoch", guarded)
    # A threshold that no other test has: the validation's program at least was not compiled before.
    config.predict.threshold = 0.31 if resident == "on" else 0.32
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        run(config, tmp_path, resident)
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert len(at_start) == 2 * EPOCHS
    assert at_start[0] > 0, "the stage's programs were counted"
    assert at_start[0] == at_start[-1], "from the first epoch on nothing is compiled"


@pytest.mark.long
def test_any_number_of_devices_augments_alike(config, prepared):
    """Global random keys: two devices and one, streamed and resident, one step a call and two."""
    model, optimizer = make_model(as_typed(config).model), make_optimizer()
    batches = train_batches(prepared, 32, ROWS, 4, 0)
    two = jax.tree.map(lambda *x: np.stack(x), next(batches), next(batches))
    batches.close()
    augment = device.make_augment(flip=0.5, intensity=0.5, distortion=0.5, crop=0.5, size=32)
    step = make_train_step(model, optimizer, Loss("image"), augment, seed=7)
    one_device = jax.jit(step)
    state = create_train_state(initialise(model, 0), optimizer)
    expected = []
    for i in range(2):
        state, metrics = one_device(state, {key: value[i] for key, value in two.items()}, np.float32(1e-3))
        expected.append(float(metrics["loss"]))
    image, mask = unpack({key: value[0] for key, value in two.items()})
    plain = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    logits, _ = plain(initialise(model, 0), image)
    assert abs(float(segmentation_loss(logits, mask, np.ones(4), Loss("image"))[0]) - expected[0]) > 1e-4, "it augments"

    mesh = make_mesh()
    assert mesh.size == 2
    state = place(jax.device_get(create_train_state(initialise(model, 0), optimizer)), replicated(mesh))
    call = jax.jit(make_train_call(step), out_shardings=replicated(mesh))
    rates = place(np.array([1e-3, 1.0], np.float32), replicated(mesh))
    _, metrics = call(state, {}, place(two, split_calls(mesh)), rates, place_flag(True, mesh))
    np.testing.assert_allclose(metrics["loss"], expected, rtol=2e-4)
    assert metrics["stop"]


def test_memory_decides_and_the_log_says_so(config, prepared, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    data, mesh = StageData(prepared, ROWS, VALIDATION), make_mesh()

    def load(setting, host_engine=False):
        caplog.clear()
        return load_resident(setting, host_engine, data, 32, mesh), caplog.text

    arrays, text = load("auto")
    assert "Input lies on the device (20 training images, 0.0 MiB a device)" in text
    assert {key: (value.shape, value.dtype) for key, value in arrays.items()} == {
        "image": ((20, 32, 32), np.uint8),
        "mask": ((20, 32, 4), np.uint8),
    }
    assert arrays["image"].sharding.is_fully_replicated
    monkeypatch.setattr(feed, "_free_memory", lambda: 4 * 20 * 32 * 36 - 1)
    arrays, text = load("auto")
    assert arrays == {}
    assert (
        "streamed to the device (20 training images, 0.0 MiB a device): more than a quarter of the 0 MiB free" in text
    )
    assert load("on")[0].keys() == {"image", "mask"}
    assert 'data.resident="off"' in load("off")[1]
    assert load("auto", host_engine=True)[1].endswith("the host augments\n")
    with pytest.raises(InputError, match=r"--config\.augment\.engine=device"):
        load("on", host_engine=True)


def test_the_same_rule_holds_for_the_validation_part(prepared, monkeypatch, caplog):
    """On the device, an empty image comes after the others and fills batches."""
    caplog.set_level(logging.INFO)
    data, mesh = StageData(prepared, ROWS, VALIDATION), make_mesh()
    arrays = load_validation("auto", data, 32, mesh)
    assert "Validation lies on the device (3 validation images, 0.0 MiB a device)" in caplog.text
    images, masks = dataset.open_arrays(prepared, 32)
    for found, expected in ((arrays["image"], images), (arrays["mask"], masks)):
        np.testing.assert_array_equal(found, [*expected[VALIDATION], np.zeros_like(expected[0])])
    monkeypatch.setattr(feed, "_free_memory", lambda: 4 * 3 * 32 * 36 - 1)
    assert load_validation("auto", data, 32, mesh) == load_validation("off", data, 32, mesh) == {}
    assert load_validation("on", data, 32, mesh)
