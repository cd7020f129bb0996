"""The compiled functions of a stage: train step, evaluation step, BatchNorm statistics.

Batches arrive small, as uint8 images and bit-packed masks, and are unpacked on the device. All three are pure;
`loop.py` compiles them with the state's and the batch's shardings, under which BatchNorm, losses and sums are
over the global batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxpneumo.model.unet import UNet
from jaxpneumo.train.losses import bce_dice_loss
from jaxpneumo.train.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def unpack(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """uint8 (B, S, S) and bits (B, S, S/8) -> image float32 (B, S, S, 1) in [0, 1], mask float32 (B, S, S)."""
    image = batch["image"].astype(jnp.float32)[..., None] / 255.0
    return image, jnp.unpackbits(batch["mask"], axis=-1).astype(jnp.float32)


def make_train_step(
    model: UNet, optimizer: optax.GradientTransformation, dice: str
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]:
    """Builds train_step(state, batch, learning_rate) -> (state, {"loss", "bce", "dice_loss"})."""

    def train_step(state: TrainState, batch: Batch, learning_rate: jax.Array) -> tuple[TrainState, Metrics]:
        image, mask = unpack(batch)

        def loss_fn(params: Any) -> tuple[jax.Array, tuple[Any, Metrics]]:
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits, updated = model.apply(variables, image, train=True, mutable=["batch_stats"])
            loss, parts = bce_dice_loss(logits, mask, batch["weight"], dice)
            return loss, (updated["batch_stats"], {"loss": loss, **parts})

        (_, (batch_stats, metrics)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        direction, opt_state = optimizer.update(grads, state.opt_state, state.params)
        updates = jax.tree.map(lambda d: -learning_rate * d, direction)
        state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        return state, metrics

    return train_step


def make_eval_step(model: UNet, dice: str, threshold: float) -> Callable[[Any, Any, Batch], Metrics]:
    """Builds eval_step(params, batch_stats, batch) -> sums over the batch of loss, IoU, Dice and weight.

    IoU and Dice are per image at the stage's size, at probability `threshold`; empty on empty scores 1 (the
    challenge's rule). Divide the sums of all batches by the sum of the weights.
    """

    def eval_step(params: Any, batch_stats: Any, batch: Batch) -> Metrics:
        image, mask = unpack(batch)
        weight = batch["weight"]
        logits = model.apply({"params": params, "batch_stats": batch_stats}, image, train=False)
        loss, _ = bce_dice_loss(logits, mask, weight, dice)
        prediction = (jax.nn.sigmoid(logits) >= threshold).astype(jnp.float32)
        intersection = (prediction * mask).sum((1, 2))
        total = prediction.sum((1, 2)) + mask.sum((1, 2))
        empty = total == 0
        iou = jnp.where(empty, 1.0, intersection / jnp.where(empty, 1.0, total - intersection))
        dice_score = jnp.where(empty, 1.0, 2.0 * intersection / jnp.where(empty, 1.0, total))
        count = weight.sum()
        return {
            "loss": loss * count,
            "iou": (iou * weight).sum(),
            "dice": (dice_score * weight).sum(),
            "weight": count,
        }

    return eval_step


def make_statistics_step(model: UNet, momentum: float) -> Callable[[Any, Any, Batch], Any]:
    """Builds statistics_step(params, zero_stats, batch) -> the batch's own BatchNorm means and variances.

    Starting from statistics of zero, one update leaves (1 - momentum) times the batch's value, which is divided
    out again. The mean over many batches replaces the running statistics of averaged weights.
    """

    def statistics_step(params: Any, zero_stats: Any, batch: Batch) -> Any:
        image, _ = unpack(batch)
        _, updated = model.apply(
            {"params": params, "batch_stats": zero_stats}, image, train=True, mutable=["batch_stats"]
        )
        return jax.tree.map(lambda s: s / (1.0 - momentum), updated["batch_stats"])

    return statistics_step
