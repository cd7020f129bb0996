"""BCE + soft Dice loss, the papers' training criterion, on logits."""

import jax
import jax.numpy as jnp
import optax

_SMOOTH = 1.0


def soft_dice_loss(probability: jax.Array, mask: jax.Array, weight: jax.Array, reduction: str) -> jax.Array:
    """One minus the soft Dice coefficient with smooth 1.

    Args:
      probability: (B, H, W) in [0, 1].
      mask: (B, H, W), 0 or 1.
      weight: (B,), 0 for an example that only fills the batch.
      reduction: "batch": one coefficient over all pixels of the batch (the challenge's public kernels); "image": one
        coefficient an image, then their mean; "positive": the same over the images with a finding, 0 without any.

    Raises:
      ValueError: the reduction is none of these.
    """
    intersection = (probability * mask).sum((1, 2)) * weight
    total = (probability.sum((1, 2)) + mask.sum((1, 2))) * weight
    if reduction == "batch":
        return 1.0 - (2.0 * intersection.sum() + _SMOOTH) / (total.sum() + _SMOOTH)
    dice = (2.0 * intersection + _SMOOTH) / (total + _SMOOTH)
    if reduction == "image":
        return 1.0 - (dice * weight).sum() / jnp.maximum(weight.sum(), 1.0)
    if reduction == "positive":
        positive = (mask.sum((1, 2)) > 0) * weight
        return ((1.0 - dice) * positive).sum() / jnp.maximum(positive.sum(), 1.0)
    raise ValueError(f'loss.dice must be "batch", "image" or "positive", not {reduction!r}')


def bce_dice_loss(
    logits: jax.Array, mask: jax.Array, weight: jax.Array, dice: str
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Binary cross-entropy (mean over pixels) plus soft Dice loss.

    Args:
      logits: float32 (B, H, W).
      mask: float32 (B, H, W), 0 or 1.
      weight: float32 (B,), 0 for an example that only fills the batch.
      dice: the Dice reduction, of `soft_dice_loss`.

    Returns:
      The loss and its parts {"bce", "dice_loss"}, all scalars.
    """
    pixel_bce = optax.sigmoid_binary_cross_entropy(logits, mask).mean((1, 2))
    bce = (pixel_bce * weight).sum() / jnp.maximum(weight.sum(), 1.0)
    dice_loss = soft_dice_loss(jax.nn.sigmoid(logits), mask, weight, dice)
    return bce + dice_loss, {"bce": bce, "dice_loss": dice_loss}
