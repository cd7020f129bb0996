"""The training loss on logits: a weighted sum of cross-entropy, soft Dice, focal and Lovász losses.

The papers' criterion is cross-entropy plus soft Dice, each with weight 1. The challenge's first place weighs
cross-entropy, Dice and focal loss 3 : 1 : 4.
"""

import jax
import jax.numpy as jnp
import optax

from jaxpneumo.run.config import Loss


def segmentation_loss(
    logits: jax.Array, mask: jax.Array, weight: jax.Array, loss: Loss
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The weighted sum of a config's losses.

    Args:
      logits: float32 (B, H, W).
      mask: float32 (B, H, W), 0 or 1.
      weight: float32 (B,), 0 for an example that only fills the batch.
      loss: the kinds and their weights. Losses of weight 0 are not computed, except cross-entropy and Dice.

    Returns:
      The loss and its parts without their weights: {"bce", "dice_loss"} and those of "focal_loss" and "lovasz_loss"
      that have a weight; all scalars.
    """
    target = soften_borders(mask, loss.border)
    pixel_bce = optax.sigmoid_binary_cross_entropy(logits, target)
    bce = _mean(pixel_bce.mean((1, 2)), weight)
    dice = soft_dice_loss(jax.nn.sigmoid(logits), mask, weight, loss.dice, loss.smooth)
    total, parts = loss.bce_weight * bce + loss.dice_weight * dice, {"bce": bce, "dice_loss": dice}
    if loss.focal_weight:
        parts["focal_loss"] = _mean(focal(logits, target, loss.focal_gamma).mean((1, 2)), weight)
        total += loss.focal_weight * parts["focal_loss"]
    if loss.lovasz_weight:
        function = symmetric_lovasz_hinge if loss.lovasz == "symmetric" else lovasz_hinge
        parts["lovasz_loss"] = _mean(jax.vmap(function)(logits, mask), weight)
        total += loss.lovasz_weight * parts["lovasz_loss"]
    return total, parts


def classification_loss(finding: jax.Array, mask: jax.Array, weight: jax.Array) -> jax.Array:
    """Cross-entropy of the images' logits (B,): whether the mask (B, H, W) shows anything. `weight` as above."""
    label = (mask.sum((1, 2)) > 0).astype(finding.dtype)
    return _mean(optax.sigmoid_binary_cross_entropy(finding, label), weight)


def soft_dice_loss(
    probability: jax.Array, mask: jax.Array, weight: jax.Array, reduction: str, smooth: float = 1.0
) -> jax.Array:
    """One minus the soft Dice coefficient.

    Args:
      probability: (B, H, W) in [0, 1].
      mask: (B, H, W), 0 or 1.
      weight: (B,), 0 for an example that only fills the batch.
      reduction: "batch": one coefficient over all pixels of the batch (the challenge's public kernels); "image": one
        coefficient an image, then their mean; "positive": the same over the images with a finding, 0 without any.
      smooth: pixels added to both sides of the fraction.

    Raises:
      ValueError: the reduction is none of these.
    """
    intersection = (probability * mask).sum((1, 2)) * weight
    total = (probability.sum((1, 2)) + mask.sum((1, 2))) * weight
    if reduction == "batch":
        return 1.0 - (2.0 * intersection.sum() + smooth) / (total.sum() + smooth)
    dice = (2.0 * intersection + smooth) / (total + smooth)
    if reduction == "image":
        return 1.0 - _mean(dice, weight)
    if reduction == "positive":
        return _mean(1.0 - dice, (mask.sum((1, 2)) > 0) * weight)
    raise ValueError(f'loss.dice must be "batch", "image" or "positive", not {reduction!r}')


def focal(logits: jax.Array, target: jax.Array, gamma: float) -> jax.Array:
    """Cross-entropy of each pixel, times (distance of probability and target) ** gamma (Lin et al. 2017, eq. 4)."""
    distance = jnp.abs(jax.nn.sigmoid(logits) - target)
    # The tiny addition keeps the gradient of a power below 1 finite at a distance of 0.
    return (distance + 1e-12) ** gamma * optax.sigmoid_binary_cross_entropy(logits, target)


def lovasz_hinge(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """The convex surrogate of one image's Jaccard loss (Berman et al. 2018, alg. 1); logits and mask (H, W)."""
    signs = 2.0 * mask - 1.0
    errors = (1.0 - logits * signs).ravel()
    order = jnp.argsort(-errors)
    errors, truth = errors[order], mask.ravel()[order]
    found, missed = jnp.cumsum(1.0 - truth), truth.sum() - jnp.cumsum(truth)
    jaccard_loss = 1.0 - missed / (truth.sum() + found)
    steps = jnp.diff(jaccard_loss, prepend=0.0)
    return jax.nn.relu(errors) @ steps


def symmetric_lovasz_hinge(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean of the Lovász hinges of the finding and of the background."""
    return (lovasz_hinge(logits, mask) + lovasz_hinge(-logits, 1.0 - mask)) / 2.0


def soften_borders(mask: jax.Array, pixels: int) -> jax.Array:
    """The mean of the mask over a square that reaches `pixels` to each side: borders get values between 0 and 1."""
    if not pixels:
        return mask
    side = 2 * pixels + 1
    edges = ((0, 0), (pixels, pixels), (pixels, pixels))
    padded = jnp.pad(mask, edges, mode="edge")
    return jax.lax.reduce_window(padded, 0.0, jax.lax.add, (1, side, side), (1, 1, 1), "VALID") / side**2


def _mean(values: jax.Array, weight: jax.Array) -> jax.Array:
    """The weighted mean of the examples' values (B,); 0 if all weights are 0."""
    return (values * weight).sum() / jnp.maximum(weight.sum(), 1.0)
