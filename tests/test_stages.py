"""Stages: any number of them, each with its own warm-up, frozen encoder, losses, start and share of positive images."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import as_typed, assert_same, epoch_records, load_config, shrink, train_interrupted

from jaxpneumo.data import dataset
from jaxpneumo.process.errors import InputError
from jaxpneumo.run import checkpoint
from jaxpneumo.run.config import Loss
from jaxpneumo.run.network import make_model, stage_result
from jaxpneumo.run.state import create_train_state, initialise, variable_shapes
from jaxpneumo.train.feed import StageData, training_feed, training_order
from jaxpneumo.train.optimizer import Plateau, learning_rate_fn, make_optimizer
from jaxpneumo.train.sampling import sampled_order, shares
from jaxpneumo.train.stages import train
from jaxpneumo.train.step import make_train_step


def three_stages(prepared):
    """Exp5, shrunk, with a third stage as the challenge's winners had: losses 3 : 1 : 4, fewer and fewer positives."""
    config = shrink(load_config("exp5"), prepared)
    config.model.dtype = "float32"
    config.stage3 = config.stage1.copy_and_resolve_references()
    config.stage3.update(epochs=3, swa_epochs=2, learning_rate=1e-3)
    config.stage3.unlock()
    config.stage3.update(warmup_epochs=1, frozen_encoder_epochs=1, positive_share=0.8, final_positive_share=0.2)
    config.stage3.update(bce_weight=3.0, dice_weight=1.0, focal_weight=4.0)
    config.predict.size = 32
    return config


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory):
    """An uninterrupted run of three stages."""
    folder = tmp_path_factory.mktemp("whole")
    train(as_typed(three_stages(prepared)), folder)
    return folder


def result(folder, stage):
    config = as_typed(three_stages(folder))
    template = variable_shapes(make_model(config.model))
    return checkpoint.restore_final(folder / stage, template, jax.sharding.SingleDeviceSharding(jax.devices()[0]))[0]


@pytest.mark.long
def test_a_third_stage_follows_the_second_and_a_kill_changes_no_bit(prepared, whole, tmp_path):
    config = three_stages(prepared)
    train_interrupted(config, tmp_path, epoch=1, stage="stage3")
    assert_same(train(as_typed(config), tmp_path), result(whole, "stage3"))
    assert epoch_records(tmp_path / "stage3") == epoch_records(whole / "stage3")


@pytest.mark.long
def test_the_log_says_what_each_epoch_was_trained_with(whole):
    records = epoch_records(whole / "stage3")
    assert [record["positive_share"] for record in records] == pytest.approx([0.8, 0.5, 0.2])
    assert [record["learning_rate"] for record in records] == pytest.approx([5e-4, 1e-3, 5e-4])
    for record in records:
        parts = 3 * record["train_bce"] + record["train_dice_loss"] + 4 * record["train_focal_loss"]
        assert record["train_loss"] == pytest.approx(parts, rel=1e-5)
    assert "positive_share" not in epoch_records(whole / "stage1")[0]


@pytest.mark.long
def test_a_stage_can_start_from_another_runs_result(prepared, whole, tmp_path):
    config = three_stages(prepared)
    del config.stage2, config.stage3
    config.stage1.learning_rate = 1e-12
    config.stage1.unlock()
    config.stage1.start_from = str(whole)
    found = train(as_typed(config), tmp_path)["params"]
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(result(whole, "stage3")["params"]), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-9)
    with pytest.raises(InputError, match="nowhere is not a run"):
        stage_result(tmp_path / "nowhere", None, {})
    config.stage1.start_from = str(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"--config\.stage1\.start_from=.*nowhere is not a folder"):
        train(as_typed(config), tmp_path / "new")


def test_a_frozen_encoder_stays_and_the_decoder_learns():
    config = as_typed(shrink(load_config("exp5"), "nowhere"))
    model, optimizer = make_model(dataclasses.replace(config.model, dtype="float32")), make_optimizer()
    rng = np.random.default_rng(0)
    batch = {"image": jnp.asarray(rng.integers(0, 256, (2, 32, 32)), jnp.uint8), "weight": jnp.ones(2)}
    batch["mask"] = jnp.asarray(rng.integers(0, 256, (2, 32, 4)), jnp.uint8)
    state = create_train_state(initialise(model, 0), optimizer)
    step = jax.jit(make_train_step(model, optimizer, Loss("batch")))
    frozen, moved = (step(state, batch, jnp.float32(1e-3), jnp.float32(factor))[0] for factor in (0.0, 1.0))
    assert_same(frozen.params["encoder"], state.params["encoder"])
    assert_same(frozen.params["decoder"], moved.params["decoder"])
    assert_same(frozen.batch_stats, moved.batch_stats)
    for before, after in zip(jax.tree.leaves(state.params), jax.tree.leaves(moved.params), strict=True):
        assert (np.asarray(before) != np.asarray(after)).any()


def test_the_rate_rises_and_then_follows_its_schedule():
    stage = as_typed(load_config("exp5")).stages[0]
    stage = dataclasses.replace(stage, epochs=6, learning_rate=1.0, warmup_epochs=2)
    rates = [learning_rate_fn(stage, epoch, Plateau(1.0)) for epoch in range(6)]
    cosine = [0.5 * (1 + np.cos(np.pi * epoch / 4)) for epoch in range(4)]
    assert rates == pytest.approx([1 / 3, 2 / 3, *cosine])


class TestShares:
    POSITIVE = np.arange(50) % 5 == 0  # 10 of 50

    def test_every_epoch_has_exactly_its_share(self):
        wanted = [0.8, 0.5, 0.22, 0.0, 1.0]
        order = sampled_order(self.POSITIVE, wanted, 40, seed=3).reshape(5, 40)
        assert self.POSITIVE[order].sum(axis=1).tolist() == [32, 20, 9, 0, 40]

    def test_no_image_is_drawn_twice_more_often_than_another_of_its_kind(self):
        order = sampled_order(self.POSITIVE, [0.8, 0.5, 0.2] * 7, 40, seed=3)
        times = np.bincount(order, minlength=50)
        for kind in (self.POSITIVE, ~self.POSITIVE):
            assert np.ptp(times[kind]) <= 1

    def test_the_seed_decides(self):
        one, again, other = (sampled_order(self.POSITIVE, [0.5] * 3, 40, seed=seed) for seed in (1, 1, 2))
        assert (one == again).all()
        assert (one != other).any()

    def test_the_share_of_an_epoch_lies_on_a_line(self):
        stage = as_typed(load_config("exp5")).stages[0]
        assert shares(stage) is None
        stage = dataclasses.replace(stage, epochs=4, positive_share=0.8)
        assert shares(stage) == pytest.approx([0.8] * 4)
        assert shares(dataclasses.replace(stage, final_positive_share=0.2)) == pytest.approx([0.8, 0.6, 0.4, 0.2])

    def test_resident_and_streamed_input_have_the_same_order_from_any_start(self, prepared):
        """Counted in the batches themselves: 6 of an epoch's 8 images have a finding, then 4, then 2."""
        stage = dataclasses.replace(
            *(as_typed(shrink(load_config("exp5"), prepared)).stages[0],),
            **{"epochs": 3, "batch_size": 4, "positive_share": 0.75, "final_positive_share": 0.25},
        )
        config = as_typed(shrink(load_config("exp5"), prepared))
        data, mesh = StageData(str(prepared), np.arange(11), np.arange(11, 24)), jax.make_mesh((2,), ("data",))
        order = training_order(data, stage, seed=0)
        positive = dataset.read_index(str(prepared)).positive[:11]
        resident = {"image": jnp.zeros(()), "mask": jnp.zeros(())}
        images, _ = dataset.open_arrays(str(prepared), stage.size)
        for start in (0, 3):
            with (
                training_feed(config, data, stage, resident, None, [1] * (6 - start), start, mesh, order) as places,
                training_feed(config, data, stage, {}, None, [1] * (6 - start), start, mesh, order) as records,
            ):
                found = [np.asarray(call["index"])[0] for call in places]
                pictures = [np.asarray(call["image"])[0] for call in records]
            np.testing.assert_array_equal(np.concatenate(found), order[4 * start :])
            np.testing.assert_array_equal(np.concatenate(pictures), images[order[4 * start :]])
        counts = positive[order].reshape(3, 8).sum(axis=1)
        assert counts.tolist() == [6, 4, 2]

    def test_a_share_of_images_that_there_are_none_of_is_refused_before_training(self, prepared, tmp_path):
        config = three_stages(prepared)
        index = dataset.read_index(str(prepared))
        config.data.split = str(tmp_path / "split.json")
        parts = {"train": index.image_id[~index.positive], "validation": index.image_id[index.positive]}
        (tmp_path / "split.json").write_text(str({k: v.tolist() for k, v in parts.items()}).replace("'", '"'))
        with pytest.raises(InputError, match="stage3: no training image with pneumothorax can be drawn"):
            train(as_typed(config), tmp_path / "run")
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("warmup_epochs", 4, "stage3.warmup_epochs must be at most stage3.epochs, 3, not 4"),
        ("frozen_encoder_epochs", 4, "stage3.frozen_encoder_epochs must be at most stage3.epochs, 3, not 4"),
        ("positive_share", None, "stage3.final_positive_share needs stage3.positive_share"),
        ("positive_share", 1.5, "stage3.positive_share must be a number from 0 to 1, or None, not 1.5"),
        ("focal_weight", -1.0, "stage3.focal_weight must be a number from 0 to 1000, or None, not -1.0"),
    ],
)
def test_what_a_stage_cannot_have(prepared, key, value, message):
    config = three_stages(prepared)
    with config.ignore_type():
        config.stage3[key] = value
    with pytest.raises(InputError) as caught:
        as_typed(config)
    assert message in str(caught.value)
