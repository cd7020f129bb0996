"""Each part of the loss on values worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpneumo.run.config import Loss
from jaxpneumo.train.losses import (
    lovasz_hinge,
    segmentation_loss,
    soft_dice_loss,
    soften_borders,
    symmetric_lovasz_hinge,
)

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
        return segmentation_loss(logits, mask, weight, Loss(dice))[0]

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
    loss, parts = segmentation_loss(logits, mask, jnp.ones(1), Loss("image"))
    assert parts["bce"] == pytest.approx(by_hand, rel=1e-5)
    assert loss == pytest.approx(float(parts["bce"] + parts["dice_loss"]))


def test_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match='"batch", "image" or "positive"'):
        soft_dice_loss(PROBABILITY, MASK, ONES, "pixel")


def loss_of(logits, mask, **settings):
    loss = Loss("batch", **settings)
    return jax.device_get(segmentation_loss(jnp.asarray(logits), jnp.asarray(mask), jnp.ones(len(mask)), loss))


def test_the_loss_is_the_weighted_sum_of_its_parts():
    """The first place's 3 : 1 : 4, and Lovász beside it."""
    rng = np.random.default_rng(0)
    logits, mask = rng.normal(size=(2, 8, 8)).astype(np.float32), (rng.random((2, 8, 8)) < 0.3).astype(np.float32)
    total, parts = loss_of(logits, mask, bce_weight=3.0, dice_weight=1.0, focal_weight=4.0, lovasz_weight=0.5)
    weights = {"bce": 3.0, "dice_loss": 1.0, "focal_loss": 4.0, "lovasz_loss": 0.5}
    assert parts.keys() == weights.keys()
    assert total == pytest.approx(sum(weights[name] * part for name, part in parts.items()))
    assert loss_of(logits, mask)[1].keys() == {"bce", "dice_loss"}, "parts without a weight are not computed"


def test_focal_loss_weighs_a_pixel_by_its_distance_from_the_truth():
    logits = np.array([[[0.0, 2.0], [-1.0, 3.0]]], np.float32)
    mask = np.array([[[0.0, 1.0], [0.0, 0.0]]], np.float32)
    p = 1 / (1 + np.exp(-logits))
    of_truth = np.where(mask == 1, p, 1 - p)
    by_hand = (-((1 - of_truth) ** 2) * np.log(of_truth)).mean()
    assert loss_of(logits, mask, focal_weight=1.0)[1]["focal_loss"] == pytest.approx(by_hand, rel=1e-5)
    flat = loss_of(logits, mask, focal_weight=1.0, focal_gamma=0.0)[1]
    assert flat["focal_loss"] == pytest.approx(flat["bce"], rel=1e-5)


def test_lovasz_hinge_of_a_decided_prediction_is_twice_its_jaccard_loss():
    """With logits of 1 and -1 a wrong pixel has hinge 2 and a right one 0: every mask, every prediction of 4 pixels."""
    pictures = ((np.arange(16)[:, None] >> np.arange(4)) & 1).reshape(16, 2, 2).astype(np.float32)
    for mask in pictures:
        union = np.maximum(pictures, mask).sum((1, 2))
        jaccard = np.where(union, np.minimum(pictures, mask).sum((1, 2)) / np.maximum(union, 1), 1.0)
        found = jax.vmap(lambda logits, mask=mask: lovasz_hinge(logits, jnp.asarray(mask)))(2 * pictures - 1)
        np.testing.assert_allclose(found, 2 * (1 - jaccard), atol=1e-6)
        mirrored = jax.vmap(lambda logits, mask=mask: lovasz_hinge(-logits, 1 - jnp.asarray(mask)))(2 * pictures - 1)
        both = jax.vmap(lambda logits, mask=mask: symmetric_lovasz_hinge(logits, jnp.asarray(mask)))(2 * pictures - 1)
        np.testing.assert_allclose(both, (found + mirrored) / 2, atol=1e-6)


@pytest.mark.parametrize("settings", [{"focal_weight": 1.0, "focal_gamma": 0.5}, {"lovasz_weight": 1.0}, {"border": 1}])
def test_gradients_are_finite_where_the_prediction_is_certain(settings):
    logits, mask = jnp.array([[[200.0, -200.0], [0.0, 1.0]]]), jnp.array([[[1.0, 0.0], [0.0, 1.0]]])
    gradient = jax.grad(lambda x: segmentation_loss(x, mask, jnp.ones(1), Loss("batch", **settings))[0])(logits)
    assert np.isfinite(gradient).all()


def test_borders_are_softened_for_the_cross_entropy_and_not_for_the_dice():
    mask = np.zeros((1, 5, 5), np.float32)
    mask[0, :, 3:] = 1
    np.testing.assert_allclose(soften_borders(jnp.asarray(mask), 1)[0, 2], [0, 0, 1 / 3, 2 / 3, 1], atol=1e-6)
    np.testing.assert_array_equal(soften_borders(jnp.asarray(mask), 0), mask)
    logits = 4 * mask - 2
    hard, soft = loss_of(logits, mask)[1], loss_of(logits, mask, border=1)[1]
    assert soft["dice_loss"] == hard["dice_loss"]
    # In each of five rows two pixels with logits of 2 and -2 are a third of the way towards the other value.
    assert soft["bce"] == pytest.approx(hard["bce"] + 5 * 2 * (2 / 3) / 25, rel=1e-5)


def test_smooth_is_the_same_on_both_sides_of_the_fraction():
    assert soft_dice_loss(PROBABILITY, MASK, ONES, "batch", smooth=3.0) == pytest.approx(1 - (2 * 1 + 3) / (6 + 1 + 3))
