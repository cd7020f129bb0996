"""The compiled functions of a stage: train step, several of them in a call, evaluation step, BatchNorm statistics.

Batches arrive small: as uint8 images and bit-packed masks, or as rows of a training part on the device. The device
unpacks and augments them. All functions are pure. `loop.py` compiles them with the shardings of state and batch, so
that BatchNorm, losses and sums are over the global batch.

`stop` has one flag a device, true if its process has been asked to stop. It passes through the compiled functions, so
that all processes see it at the same step without another exchange.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from jaxpneumo.augment.device import DeviceAugment
from jaxpneumo.model.unet import UNet
from jaxpneumo.run.config import Loss
from jaxpneumo.run.state import TrainState
from jaxpneumo.train.losses import classification_loss, segmentation_loss

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
Outputs = tuple[jax.Array, jax.Array | None]  # of `UNet.outputs`


def unpack(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """uint8 (B, S, S) and bits (B, S, S/8) -> image float32 (B, S, S, 1) in [0, 1], mask float32 (B, S, S)."""
    image = batch["image"].astype(jnp.float32)[..., None] / 255.0
    return image, jnp.unpackbits(batch["mask"], axis=-1).astype(jnp.float32)


def _loss(
    logits: jax.Array, finding: jax.Array | None, mask: jax.Array, weight: jax.Array, loss: Loss
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`segmentation_loss`, and with a classifier its loss."""
    value, parts = segmentation_loss(logits, mask, weight, loss)
    if finding is None:
        return value, parts
    own = classification_loss(finding, mask, weight)
    return value + loss.classification * own, {**parts, "classification_loss": own}


def make_train_step(
    model: UNet,
    optimizer: optax.GradientTransformation,
    loss: Loss,
    augment: DeviceAugment | None = None,
    seed: int = 0,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Builds train_step(state, batch, learning_rate, encoder_factor=1.0) -> (state, {"loss" and its parts}).

    The encoder's parameters move at `encoder_factor` times the learning rate; 0 keeps them as they are, while Adam's
    moments and the BatchNorm statistics go on.

    With `augment`, each image of the global batch has its own random key, made from `seed`, the state's step and its
    place in the batch: any number of devices and processes draws alike.
    """

    def prepare(state: TrainState, batch: Batch) -> tuple[jax.Array, jax.Array]:
        if augment is None:
            return unpack(batch)
        image, mask = batch["image"], jnp.unpackbits(batch["mask"], axis=-1)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step), len(image))
        image, mask = augment(keys, image, mask)
        return image[..., None] / 255.0, mask

    def train_step(
        state: TrainState, batch: Batch, learning_rate: jax.Array, encoder_factor: jax.Array | float = 1.0
    ) -> tuple[TrainState, Metrics]:
        image, mask = prepare(state, batch)

        def loss_fn(params: Any) -> tuple[jax.Array, tuple[Any, Metrics]]:
            variables = {"params": params, "batch_stats": state.batch_stats}
            outputs, updated = model.apply(variables, image, train=True, mutable=["batch_stats"], method="outputs")
            logits, finding = cast(Outputs, outputs)
            value, parts = _loss(logits, finding, mask, batch["weight"], loss)
            return value, (updated["batch_stats"], {"loss": value, **parts})

        (_, (batch_stats, metrics)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        direction, opt_state = optimizer.update(grads, state.opt_state, state.params)
        encoder_rate = learning_rate * encoder_factor
        updates = {
            part: jax.tree.map(partial(jnp.multiply, -(encoder_rate if part == "encoder" else learning_rate)), own)
            for part, own in cast(dict[str, Any], direction).items()
        }
        state = replace(
            state,
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        return state, metrics

    return train_step


def make_train_call(
    train_step: Callable[..., tuple[TrainState, Metrics]],
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Builds train_call(state, resident, feed, rates, stop) -> (state, metrics), of several steps.

    `rates` are the learning rate and the encoder's factor, as `make_train_step` has them, of shape (2,).
    `feed` holds k stacked batches, or their places in `resident` (`feed.py`). The metrics are those of train_step, of
    shape (k,), and "stop": whether any process was asked to.
    """

    def train_call(
        state: TrainState, resident: Batch, feed: Batch, rates: jax.Array, stop: jax.Array
    ) -> tuple[TrainState, Metrics]:
        def body(state: TrainState, element: Batch) -> tuple[TrainState, Metrics]:
            return train_step(state, take_batch(resident, element), *rates)

        state, metrics = _scan(body, state, feed)
        return state, {**metrics, "stop": stop.any()}

    return train_call


def take_batch(resident: Batch, element: Batch) -> Batch:
    """The batch of one step: `element` itself, or the images of `resident` at its "index", with its weight or 1."""
    if not resident:
        return element
    batch = {key: value[element["index"]] for key, value in resident.items()}
    if "weight" in element:
        return {**batch, "weight": element["weight"]}
    # Behind a barrier, or the compiler drops products with 1 and sums in another order than with streamed weights.
    return {**batch, "weight": jax.lax.optimization_barrier(jnp.ones(element["index"].shape, jnp.float32))}


def _scan(body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, feed: Batch) -> tuple[Any, Any]:
    # One step is left outside of a loop: on the CPU, XLA's loops run convolutions many times slower.
    if len(jax.tree.leaves(feed)[0]) > 1:
        return jax.lax.scan(body, carry, feed)
    carry, output = body(carry, jax.tree.map(lambda x: x[0], feed))
    return carry, jax.tree.map(lambda x: x[None], output)


def make_eval_step(model: UNet, loss: Loss, threshold: float) -> Callable[..., Metrics]:
    """Builds eval_step(params, batch_stats, batch) -> sums over the batch.

    The sums are of loss, IoU, Dice and weight, of the images with a finding ("positive") and of those among them in
    which something is outlined. IoU and Dice are per image at the stage's size, at probability `threshold`; empty on
    empty scores 1 (the challenge's rule). Divide the sums of all batches by the sum of the weights.
    """

    def eval_step(params: Any, batch_stats: Any, batch: Batch) -> Metrics:
        image, mask = unpack(batch)
        weight = batch["weight"]
        variables = {"params": params, "batch_stats": batch_stats}
        logits, finding = cast(Outputs, model.apply(variables, image, train=False, method="outputs"))
        value, _ = _loss(logits, finding, mask, weight, loss)
        prediction = (jax.nn.sigmoid(logits) >= threshold).astype(jnp.float32)
        intersection = (prediction * mask).sum((1, 2))
        total = prediction.sum((1, 2)) + mask.sum((1, 2))
        empty = total == 0
        iou = jnp.where(empty, 1.0, intersection / jnp.where(empty, 1.0, total - intersection))
        dice_score = jnp.where(empty, 1.0, 2.0 * intersection / jnp.where(empty, 1.0, total))
        count, positive = weight.sum(), (mask.sum((1, 2)) > 0) * weight
        return {
            "loss": value * count,
            "iou": (iou * weight).sum(),
            "dice": (dice_score * weight).sum(),
            "outlined": ((prediction.sum((1, 2)) > 0) * positive).sum(),
            "positive": positive.sum(),
            "weight": count,
        }

    return eval_step


def make_eval_call(eval_step: Callable[..., Metrics]) -> Callable[..., Metrics]:
    """Builds eval_call(params, batch_stats, resident, feed, stop) -> the sums of k batches, each of shape (k,), "stop".

    `feed` holds k stacked batches, or their places in `resident` and weights (`feed.py`).
    """

    def eval_call(params: Any, batch_stats: Any, resident: Batch, feed: Batch, stop: jax.Array) -> Metrics:
        def body(carry: None, element: Batch) -> tuple[None, Metrics]:
            return carry, eval_step(params, batch_stats, take_batch(resident, element))

        _, sums = _scan(body, None, feed)
        return {**sums, "stop": stop.any()}

    return eval_call


def make_statistics_call(model: UNet) -> Callable[..., tuple[Any, jax.Array]]:
    """Builds statistics_call(params, (mean, count), resident, feed, stop) -> ((mean, count), stop).

    `mean` is over the BatchNorm means and variances of `count` batches, each by its own, and becomes that over these
    and those of `feed`. With momentum 0 an update leaves the batch's own value. The mean over many batches replaces the
    running statistics of averaged weights.
    """
    forgetful = model.clone(momentum=0.0)

    def statistics_call(
        params: Any, carry: tuple[Any, jax.Array], resident: Batch, feed: Batch, stop: jax.Array
    ) -> tuple[tuple[Any, jax.Array], jax.Array]:
        def body(carry: tuple[Any, jax.Array], element: Batch) -> tuple[tuple[Any, jax.Array], None]:
            mean, count = carry[0], carry[1] + 1
            image, _ = unpack(take_batch(resident, element))
            _, updated = forgetful.apply(
                {"params": params, "batch_stats": mean}, image, train=True, mutable=["batch_stats"]
            )
            own = updated["batch_stats"]
            return (jax.tree.map(lambda m, s: m + (s - m) / count, mean, own), count), None

        carry, _ = _scan(body, carry, feed)
        return carry, stop.any()

    return statistics_call
