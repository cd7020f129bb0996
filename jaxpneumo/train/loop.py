"""The training of one stage, from top to bottom in one function: `train_stage`.

Which start wins, in this order:
  1. the stage's result is there (`final/`): nothing is trained, it is read;
  2. a checkpoint of the stage is there: go on from the newest;
  3. the variables given: the previous stage's averaged weights, pretrained or fresh ones.
"""

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxpneumo.augment.host import make_augment
from jaxpneumo.data.source import eval_batches, train_batches
from jaxpneumo.errors import InputError, TrainingError
from jaxpneumo.model.unet import ENCODERS, UNet
from jaxpneumo.progress import progress
from jaxpneumo.train import checkpoint
from jaxpneumo.train.log import MetricsLog
from jaxpneumo.train.optimizer import Plateau, learning_rate_fn, make_optimizer, reduce_on_plateau
from jaxpneumo.train.sharding import make_mesh, replicated, shard_batch, split
from jaxpneumo.train.state import TrainState, create_train_state, update_average
from jaxpneumo.train.step import make_eval_step, make_statistics_step, make_train_step

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageData:
    """Where a stage's images are: the prepared data set and the rows of each part."""

    directory: str
    train_rows: np.ndarray
    validation_rows: np.ndarray


def make_model(config: ConfigDict) -> UNet:
    """The network of `config.model`. Raises InputError for an unknown encoder or type."""
    model = config.model
    if model.encoder not in ENCODERS:
        raise InputError(f"model.encoder={model.encoder!r} is unknown: choose one of {', '.join(ENCODERS)}.")
    if model.dtype not in ("float32", "bfloat16"):
        raise InputError(f'model.dtype={model.dtype!r}: choose "float32" or "bfloat16".')
    return UNet(
        encoder=model.encoder,
        dtype=jnp.dtype(model.dtype),
        input_convolution=model.input_convolution,
        momentum=batch_norm_momentum(config),
        depths=tuple(model.depths),
        width=model.width,
    )


def batch_norm_momentum(config: ConfigDict) -> float:
    """The config's BatchNorm momentum, or the encoder's own where it is None."""
    given = config.model.momentum
    return ENCODERS[config.model.encoder].momentum if given is None else given


def train_stage(
    config: ConfigDict, name: str, data: StageData, directory: Path, variables: dict[str, Any]
) -> dict[str, Any]:
    """Trains one stage, or finishes it when an earlier start of the same command was stopped.

    Args:
      config: the run's config; `config[name]` holds the stage's literals.
      name: "stage1" or "stage2".
      data: the prepared data set and its rows.
      directory: the stage's folder: checkpoints/, final/, log.jsonl, tensorboard/, progress.png.
      variables: {"params", "batch_stats"} to start from.

    Returns:
      The stage's variables: the averaged weights with their own BatchNorm statistics, or without averaging
      the epoch with the best validation IoU.

    Raises:
      InputError: the batch size does not fit the devices or the data.
      TrainingError: the loss became infinite or not a number.
    """
    stage = config[name]
    mesh = make_mesh()
    everywhere, along_data = replicated(mesh), split(mesh)

    # --- what is there already
    if checkpoint.final_directory(directory).is_dir():
        logger.info("%s is complete: reading its result from %s", name, directory)
        return checkpoint.restore_final(directory, variables, everywhere)[0]

    # --- checks and data
    steps_per_epoch = len(data.train_rows) // stage.batch_size
    if steps_per_epoch == 0:
        raise InputError(
            f"{name}.batch_size={stage.batch_size} is more than the {len(data.train_rows)} training images: "
            f"use --config.{name}.batch_size={len(data.train_rows)} or less."
        )
    augment_settings = {k: v for k, v in config.augment.items() if k != "engine"}
    augment = make_augment(**augment_settings, size=stage.size) if any(augment_settings.values()) else None

    # --- model, optimizer, compiled functions
    model, optimizer = make_model(config), make_optimizer()
    train_step = jax.jit(
        make_train_step(model, optimizer, config.loss.dice),
        in_shardings=(everywhere, along_data, everywhere),
        out_shardings=(everywhere, everywhere),
        donate_argnums=0,
    )
    eval_step = jax.jit(
        make_eval_step(model, config.loss.dice, config.predict.threshold),
        in_shardings=(everywhere, everywhere, along_data),
        out_shardings=everywhere,
    )
    average_step = jax.jit(update_average, donate_argnums=0)

    # --- state: fresh, or the newest checkpoint's
    state = jax.device_put(create_train_state(variables, optimizer), everywhere)
    plateau = Plateau(stage.learning_rate)
    batches = _batches(config, data, stage, augment)
    start_epoch = 0
    with checkpoint.open_checkpoints(directory) as manager:
        if manager.latest_step() is not None:
            state, saved = checkpoint.restore(manager, manager.latest_step(), state, everywhere)
            start_epoch, plateau = saved["epoch"], Plateau(**saved["plateau"])
            batches.set_state(saved["batches"])
            logger.info("%s goes on after epoch %d of %d", name, start_epoch, stage.epochs)

        with MetricsLog(directory, start_epoch) as log:
            for epoch in range(start_epoch, stage.epochs):
                # --- one epoch of steps
                rate = learning_rate_fn(stage, epoch, plateau)
                started = time.perf_counter()
                state, train_metrics = _train_epoch(
                    train_step, state, batches, rate, steps_per_epoch, mesh,
                    f"{name} epoch {epoch + 1}/{stage.epochs}", stage.batch_size,
                )  # fmt: skip
                seconds = time.perf_counter() - started
                if epoch >= stage.epochs - stage.swa_epochs:
                    state = average_step(state)

                # --- validation, log, checkpoint: in this order, so that a resumed run repeats none of them
                scores = evaluate_rows(eval_step, state.params, state.batch_stats, data, stage, mesh)
                if stage.schedule == "plateau":
                    factor, patience = stage.plateau_factor, stage.plateau_patience
                    plateau = reduce_on_plateau(plateau, scores["validation_loss"], factor, patience)
                log.write(
                    {
                        "epoch": epoch,
                        "step": (epoch + 1) * steps_per_epoch,
                        "learning_rate": rate,
                        **train_metrics,
                        **scores,
                        "images_per_second": round(steps_per_epoch * stage.batch_size / seconds, 2),
                    }
                )
                logger.info(
                    "%s epoch %d/%d: loss %.4f, validation loss %.4f, IoU %.4f",
                    name, epoch + 1, stage.epochs, train_metrics["train_loss"],
                    scores["validation_loss"], scores["validation_iou"],
                )  # fmt: skip
                saved = {
                    "epoch": epoch + 1,
                    "plateau": plateau._asdict(),
                    "batches": batches.get_state(),
                    **scores,
                }
                checkpoint.save(manager, state, saved)
        batches.close()
        manager.wait_until_finished()

        # --- the stage's result
        if stage.swa_epochs:
            chosen = {"weights": f"average of the last {int(state.swa_count)} epochs"}
            batch_stats = _statistics(model, config, state, data, stage, mesh)
            result = {"params": state.swa_params, "batch_stats": batch_stats}
        else:
            best = manager.best_step()  # the newest of equals
            chosen = {"weights": f"epoch {best}, the best validation IoU"}
            result = checkpoint.restore_model(manager, best, variables, everywhere)
        scores = evaluate_rows(eval_step, result["params"], result["batch_stats"], data, stage, mesh)
        checkpoint.save_final(directory, result, {"stage": name, **chosen, **scores})
        logger.info("%s is complete (%s): validation IoU %.4f", name, chosen["weights"], scores["validation_iou"])
        return result


def _batches(config: ConfigDict, data: StageData, stage: ConfigDict, augment: Any) -> Any:
    """This process's share of the stage's endless training batches."""
    return train_batches(
        data.directory,
        stage.size,
        data.train_rows,
        stage.batch_size,
        config.seed,
        augment,
        config.data.workers,
        jax.process_index(),
        jax.process_count(),
    )


def _train_epoch(
    train_step: Any,
    state: TrainState,
    batches: Any,
    learning_rate: float,
    steps: int,
    mesh: Mesh,
    description: str,
    batch_size: int,
) -> tuple[TrainState, dict[str, float]]:
    """Takes one epoch of steps and returns the state and the means of their metrics."""
    rate = jax.device_put(jnp.float32(learning_rate), replicated(mesh))
    totals: dict[str, float] = {}
    pending = None
    with progress(None, total=steps * batch_size, description=description) as bar:

        def note(metrics: dict[str, jax.Array]) -> None:
            values = {key: float(value) for key, value in jax.device_get(metrics).items()}
            if not math.isfinite(values["loss"]):
                raise TrainingError(
                    f"{description}: the loss became {values['loss']}. Nothing was saved after the last finished "
                    "epoch; lower the stage's learning_rate or use --config.model.dtype=float32, then start the "
                    "same command again."
                )
            for key, value in values.items():
                totals[key] = totals.get(key, 0.0) + value
            bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)
            bar.update(batch_size)

        for _ in range(steps):
            state, metrics = train_step(state, shard_batch(next(batches), mesh), rate)
            # The step before is read while the device works on this one, so that neither waits.
            if pending is not None:
                note(pending)
            pending = metrics
        note(pending)
    return state, {f"train_{key}": total / steps for key, total in totals.items()}


def evaluate_rows(
    eval_step: Any, params: Any, batch_stats: Any, data: StageData, stage: ConfigDict, mesh: Mesh
) -> dict[str, float]:
    """Mean loss, IoU and Dice over the validation images at the stage's size, each image counted once."""
    totals: dict[str, float] = {}
    for batch in eval_batches(
        data.directory,
        stage.size,
        data.validation_rows,
        stage.batch_size,
        jax.process_index(),
        jax.process_count(),
    ):
        batch.pop("row")
        for key, value in jax.device_get(eval_step(params, batch_stats, shard_batch(batch, mesh))).items():
            totals[key] = totals.get(key, 0.0) + float(value)
    count = totals.pop("weight")
    return {f"validation_{key}": total / count for key, total in totals.items()}


def _statistics(
    model: UNet, config: ConfigDict, state: TrainState, data: StageData, stage: ConfigDict, mesh: Mesh
) -> Any:
    """BatchNorm statistics of the averaged weights: the mean over one pass of training data, not augmented.

    The running statistics belong to the weights of single epochs; averaged weights have none until then.
    """
    statistics_step = jax.jit(
        make_statistics_step(model, batch_norm_momentum(config)),
        in_shardings=(replicated(mesh), replicated(mesh), split(mesh)),
        out_shardings=replicated(mesh),
    )
    zeros = jax.tree.map(jnp.zeros_like, state.batch_stats)
    batches = _batches(config, data, stage, augment=None)
    steps = len(data.train_rows) // stage.batch_size
    mean = zeros
    bar = progress(range(steps), total=steps, unit="batch", description="BatchNorm statistics")
    for i in bar:
        batch = statistics_step(state.swa_params, zeros, shard_batch(next(batches), mesh))
        mean = jax.tree.map(lambda m, b, n=i + 1: m + (b - m) / n, mean, batch)
    batches.close()
    return mean
