"""BCE + soft Dice on values worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpneumo.train.losses import bce_dice_loss, soft_dice_loss

# Two 2x2 images: the first half right, the second (empty truth) all wrong.
PROBABILITY = jnp.array([[[1.0, 1.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]])
MASK = jnp.array([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
ONES = jnp.ones(2)


def test_image_reduction_is_the_mean_of_each_images_loss():
    first = 1 - (2 * 1 + 1) / (2 + 1 + 1)
    second = 1 - (0 + 1) / (4 + 0 + 1)
    assert soft_dice_loss(PROBABILITY, MASK, ONES, "image") == pytest.approx((first + second) / 2)


def test_batch_reduction_pools_all_pixels():
    assert soft_dice_loss(PROBABILITY, MASK, ONES, "batch") == pytest.approx(1 - (2 * 1 + 1) / (6 + 1 + 1))


def test_positive_reduction_leaves_images_without_a_finding_to_the_cross_entropy():
    first = 1 - (2 * 1 + 1) / (2 + 1 + 1)
    assert soft_dice_loss(PROBABILITY, MASK, ONES, "positive") == pytest.approx(first)
    assert soft_dice_loss(PROBABILITY[1:], MASK[1:], jnp.ones(1), "positive") == 0


def test_empty_prediction_on_empty_truth_costs_nothing():
    zeros = jnp.zeros((1, 4, 4))
    for reduction in ("image", "batch", "positive"):
        assert soft_dice_loss(zeros, zeros, jnp.ones(1), reduction) == 0


@pytest.mark.parametrize("dice", ["image", "batch", "positive"])
def test_padding_changes_neither_loss_nor_gradient(dice):
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(3, 8, 8)), jnp.float32)
    mask = jnp.asarray(rng.random((3, 8, 8)) < 0.3, jnp.float32)
    padded = jnp.concatenate([logits, jnp.full((2, 8, 8), 7.0)])
    padded_mask = jnp.concatenate([mask, jnp.ones((2, 8, 8))])
    weight = jnp.array([1.0, 1.0, 1.0, 0.0, 0.0])

    def loss(logits, mask, weight):
        return bce_dice_loss(logits, mask, weight, dice)[0]

    value, gradient = jax.value_and_grad(loss)(logits, mask, jnp.ones(3))
    value_padded, gradient_padded = jax.value_and_grad(loss)(padded, padded_mask, weight)
    np.testing.assert_allclose(value_padded, value, rtol=1e-6)
    np.testing.assert_allclose(gradient_padded[:3], gradient, rtol=1e-5, atol=1e-9)
    np.testing.assert_array_equal(gradient_padded[3:], 0)


def test_bce_is_the_mean_over_pixels():
    logits = jnp.array([[[0.0, 2.0], [-1.0, 3.0]]])
    mask = jnp.array([[[0.0, 1.0], [0.0, 0.0]]])
    p = 1 / (1 + np.exp(-np.asarray(logits)))
    by_hand = -np.where(np.asarray(mask) == 1, np.log(p), np.log(1 - p)).mean()
    loss, parts = bce_dice_loss(logits, mask, jnp.ones(1), "image")
    assert parts["bce"] == pytest.approx(by_hand, rel=1e-5)
    assert loss == pytest.approx(float(parts["bce"] + parts["dice_loss"]))


def test_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match='"batch", "image" or "positive"'):
        soft_dice_loss(PROBABILITY, MASK, ONES, "pixel")
