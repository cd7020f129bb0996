"""The training of one stage, from top to bottom in one function: `train_stage`.

A stage starts from the first of these that exists:
  1. its result in `final/`: it is read, and the stage is not trained;
  2. its newest checkpoint;
  3. the given variables: the averaged weights of the stage before, pretrained weights or fresh ones.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxpneumo.augment import device
from jaxpneumo.data.source import eval_batches
from jaxpneumo.process.errors import InputError, Stopped, TrainingError
from jaxpneumo.process.progress import COMPILING, progress_bar
from jaxpneumo.process.stop import sigterm_deferred
from jaxpneumo.run import checkpoint
from jaxpneumo.run.config import Augment, Config, Stage
from jaxpneumo.run.sharding import is_first, make_mesh, place, place_flag, replicated, split
from jaxpneumo.run.state import TrainState
from jaxpneumo.train.compiled import stage_functions
from jaxpneumo.train.feed import (
    StageData,
    load_resident,
    plan_calls,
    prefetch,
    remaining,
    training_feed,
    training_order,
)
from jaxpneumo.train.log import MetricsLog
from jaxpneumo.train.optimizer import Plateau, learning_rate_fn, reduce_on_plateau
from jaxpneumo.train.sampling import shares

logger = logging.getLogger(__name__)

COLLAPSED_AFTER = 5  # warn after this many validations in a row without any outline; the first few are often so


@dataclass(frozen=True)
class StageRun:
    """What stays the same while a stage is trained.

    Attributes:
      config: the run's config.
      stage: the stage that is trained.
      data: the prepared data set and its rows.
      mesh: the devices.
      resident: the result of `load_resident`.
      calls: number of steps in each compiled call of an epoch.
      stop_requested: whether this process has been asked to stop.
    """

    config: Config
    stage: Stage
    data: StageData
    mesh: Mesh
    resident: dict[str, jax.Array]
    calls: list[int]
    stop_requested: Callable[[], bool]


@dataclass(frozen=True)
class Progress:
    """How far a stage is; its checkpoints hold this as JSON.

    Attributes:
      epoch: epochs finished.
      steps: steps taken of the next epoch.
      totals: sums of these steps' metrics.
      plateau: state of the schedule "plateau".
      empty: validations in a row that outlined nothing although there were findings.
    """

    epoch: int
    steps: int
    totals: dict[str, float]
    plateau: Plateau
    empty: int = 0

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "Progress":
        """Reads the result of `to_json`, also of earlier versions. Other keys are ignored."""
        plateau = Plateau(**saved["plateau"])
        return cls(saved["epoch"], saved["steps"], saved["totals"], plateau, saved.get("empty", 0))

    def to_json(self) -> dict[str, Any]:
        """The fields as plain dictionaries and numbers."""
        return {**vars(self), "plateau": self.plateau._asdict()}


def train_stage(
    config: Config, stage: Stage, data: StageData, directory: Path, variables: dict[str, Any]
) -> dict[str, Any]:
    """Trains one stage, or the rest of it if an earlier start of the same command was stopped.

    Args:
      config: the run's config.
      stage: the one of its stages to train.
      data: the prepared data set and its rows.
      directory: the stage's folder: checkpoints/, final/, log.jsonl, tensorboard/, progress.png.
      variables: {"params", "batch_stats"} to start from.

    Returns:
      The stage's variables: the averaged weights with their own BatchNorm statistics; if the stage does not average,
      the weights of the epoch with the best validation IoU.

    Raises:
      InputError: the batch size does not fit the devices or the data.
      TrainingError: the loss became infinite or not a number, or a checkpoint cannot be written.
      Stopped: SIGTERM came; the state is saved.
    """
    name, mesh = stage.name, make_mesh()
    everywhere = replicated(mesh)

    # --- what is there already
    if result := checkpoint.restore_result(directory, variables, everywhere):
        logger.info("%s is complete; its result is read from %s", name, directory)
        return result

    # --- checks and data
    steps_per_epoch = len(data.train_rows) // stage.batch_size
    if steps_per_epoch == 0:
        raise InputError(
            f"{name}.batch_size={stage.batch_size} is more than the {len(data.train_rows)} training images: "
            f"use --config.{name}.batch_size={len(data.train_rows)} or less."
        )
    calls = plan_calls(steps_per_epoch)
    on_host, on_device = augmentations(config.augment, stage.size)
    resident = load_resident(config.data.resident, on_host is not None, data, stage.size, mesh)
    order, positive_shares = training_order(data, stage, config.seed), shares(stage)

    # --- compiled functions
    functions = stage_functions(
        config.model, stage.loss(config.loss), config.seed, config.predict.threshold, on_device, mesh
    )

    # --- state: fresh, or the newest checkpoint's
    state = functions.create(place(jax.device_get(variables), everywhere))
    # Compile now, so that only the first epoch waits for compilation.
    average = functions.average.lower(state).compile()
    progress = Progress(0, 0, {}, Plateau(stage.learning_rate))
    with sigterm_deferred() as stop_requested, checkpoint.open_checkpoints(directory) as manager:
        run = StageRun(config, stage, data, mesh, resident, calls, stop_requested)
        restored = checkpoint.restore_newest(manager, state, everywhere)
        if restored is not None:
            state, progress = restored[0], Progress.from_json(restored[1])
            within = f" and {progress.steps} of the next one's {steps_per_epoch} steps" if progress.steps else ""
            logger.info("%s goes on after epoch %d of %d%s", name, progress.epoch, stage.epochs, within)
        elif (directory / "log.jsonl").exists():
            logger.warning("no undamaged checkpoint is left: %s starts from the beginning", name)
        first_epoch = progress.epoch
        lengths = [*remaining(calls, progress.steps), *(calls * (stage.epochs - first_epoch - 1))]
        taken = first_epoch * steps_per_epoch + progress.steps
        compiled: set[int] = set()
        with (
            training_feed(config, data, stage, resident, on_host, lengths, taken, mesh, order) as feed,
            MetricsLog(directory, first_epoch) if is_first() else nullcontext() as log,
        ):
            for epoch in range(first_epoch, stage.epochs):
                # --- one epoch, or the rest of one that was interrupted
                rate = learning_rate_fn(stage, epoch, progress.plateau)
                started, steps_before = time.perf_counter(), progress.steps
                rates = rate, float(epoch >= stage.frozen_encoder_epochs)
                state, progress, stopped = _train_epoch(run, functions.train, state, feed, rates, progress, compiled)
                seconds = time.perf_counter() - started

                # --- validation, log, checkpoint: the checkpoint comes last and marks the epoch as done
                if epoch == first_epoch:
                    logger.info("%s: validation (%s)", name, COMPILING)
                scores = None if stopped else _evaluate(run, functions.evaluate, state)
                if scores is None:
                    checkpoint.save(manager, epoch * steps_per_epoch + progress.steps, state, progress.to_json())
                    checkpoint.wait(manager)
                    raise Stopped
                if epoch >= stage.epochs - stage.swa_epochs:
                    state = average(state)
                plateau = progress.plateau
                if stage.schedule == "plateau":
                    factor, patience = stage.plateau_factor, stage.plateau_patience
                    plateau = reduce_on_plateau(plateau, scores["validation_loss"], factor, patience)
                record = {
                    "epoch": epoch,
                    "step": (epoch + 1) * steps_per_epoch,
                    "learning_rate": rate,
                    **({"positive_share": positive_shares[epoch]} if positive_shares else {}),
                    **{f"train_{key}": total / steps_per_epoch for key, total in progress.totals.items()},
                    **scores,
                    "images_per_second": round((progress.steps - steps_before) * stage.batch_size / seconds, 2),
                }
                if log is not None:
                    log.write(record)
                losses = record["train_loss"], scores["validation_loss"], scores["validation_iou"]
                described = "%s epoch %d/%d: loss %.4f, validation loss %.4f, IoU %.4f"
                logger.info(described, name, epoch + 1, stage.epochs, *losses)
                empty = progress.empty + 1 if scores.get("validation_outlined") == 0 else 0
                if empty == COLLAPSED_AFTER:
                    logger.warning("%s", collapsed(f"{name} outlined nothing in {empty} epochs in a row", config))
                progress = Progress(epoch + 1, 0, {}, plateau, empty)
                checkpoint.save(manager, (epoch + 1) * steps_per_epoch, state, {**progress.to_json(), **scores})
        checkpoint.wait(manager)

        # --- the stage's result
        if stage.swa_epochs:
            chosen = {"weights": f"average of the last {int(jax.device_get(state.swa_count))} epochs"}
            batch_stats = _statistics(run, functions.statistics, state)
            result = {"params": state.swa_params, "batch_stats": batch_stats}
        else:
            best, result = checkpoint.restore_best(manager, variables, everywhere)
            chosen = {"weights": f"epoch {best // steps_per_epoch}, the best validation IoU"}
        scores = _evaluate(run, functions.evaluate, replace(state, **result))
        if scores is None:
            raise Stopped
        checkpoint.save_final(directory, result, {"stage": name, **chosen, **scores})
        logger.info("%s is complete (%s): validation IoU %.4f", name, chosen["weights"], scores["validation_iou"])
        if scores.get("validation_outlined") == 0:
            logger.warning("%s", collapsed(f"the result of {name} outlines nothing", config))
        return result


def collapsed(what: str, config: Config) -> str:
    """The warning that a network predicts nothing, with the way out."""
    loss = "" if config.loss.dice == "batch" else "--config.loss.dice=batch, "
    return (
        f"{what}, although validation images show pneumothorax: it may have settled on predicting nothing. Ways out: "
        f"{loss}a lower learning rate, --config.model.pretrained, a lower --config.predict.threshold."
    )


def augmentations(settings: Augment, size: int) -> tuple[Any, Any]:
    """Returns (host augmentation, device augmentation); one of them at most is not None.

    Raises InputError if the host's library has another version than the one that the parameters were taken from.
    """
    probabilities = {group: getattr(settings, group) for group in ("flip", "intensity", "distortion", "crop")}
    if not any(probabilities.values()):
        return None, None
    if settings.engine == "host":
        from jaxpneumo.augment import host  # albumentations takes a second to import, and only this engine needs it

        return host.make_augment(**probabilities, size=size), None
    return None, device.make_augment(**probabilities, size=size)


def _train_epoch(
    run: StageRun,
    train_call: Any,
    state: TrainState,
    feed: Iterator[Any],
    rates: tuple[float, float],
    progress: Progress,
    compiled: set[int],
) -> tuple[TrainState, Progress, bool]:
    """Runs the remaining calls of an epoch, or stops early when a process is asked to stop.

    Args:
      run: what stays the same.
      train_call: the jitted call; each new number of steps triggers one compilation.
      state: the train state at the point that `progress` describes.
      feed: the input of one call after the other.
      rates: of this epoch, the learning rate and the encoder's factor.
      progress: how far the stage is.
      compiled: lengths of the calls so far; the bar says when another one is compiled. New ones are added.

    Returns:
      The state, the progress, and whether to stop.
    """
    stage, mesh = run.stage, run.mesh
    placed_rates = place(np.array(rates, np.float32), replicated(mesh))
    steps, totals, pending = progress.steps, dict(progress.totals), None
    description = f"{stage.name} epoch {progress.epoch + 1}/{stage.epochs}"
    if progress.empty >= COLLAPSED_AFTER:
        description += " (outlines nothing)"
    total, initial = sum(run.calls) * stage.batch_size, steps * stage.batch_size
    with progress_bar(None, total, description=description, quiet=not is_first(), initial=initial) as bar:

        def note(metrics: dict[str, jax.Array]) -> bool:
            values = jax.device_get(metrics)
            stop = bool(values.pop("stop"))
            for i, loss in enumerate(values["loss"].tolist()):
                if not math.isfinite(loss):
                    raise TrainingError(
                        f"{description}: the loss became {loss}. Nothing was saved after that; lower the stage's "
                        "learning_rate or use --config.model.dtype=float32, then start the same command again."
                    )
                for key, value in values.items():
                    totals[key] = totals.get(key, 0.0) + float(value[i])
                bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
                bar.update(stage.batch_size)
            return stop

        stop = False
        for length in remaining(run.calls, steps):
            if length not in compiled:
                bar.set_postfix_str(COMPILING)
                compiled.add(length)
            stop_flag = place_flag(run.stop_requested(), mesh)
            state, metrics = train_call(state, run.resident, next(feed), placed_rates, stop_flag)
            steps += length
            # The call before is read while the device works on this one, so that neither waits.
            stop = pending is not None and note(pending)
            pending = metrics
            if stop:
                break
        stop = (pending is not None and note(pending)) or stop
    return state, replace(progress, steps=steps, totals=totals), stop


def _evaluate(run: StageRun, eval_step: Any, state: TrainState) -> dict[str, float] | None:
    """Scores of the validation images at the stage's size, each image counts once; None: asked to stop.

    Mean loss, IoU and Dice; and where there are images with a finding, the share of them in which anything is outlined.
    """
    process = (jax.process_index(), jax.process_count())
    data, stage, mesh = run.data, run.stage, run.mesh
    batches = eval_batches(data.directory, stage.size, data.validation_rows, stage.batch_size, *process)
    keys = ("image", "mask", "weight")
    placed = prefetch(place({key: batch[key] for key in keys}, split(mesh)) for batch in batches)
    sums = (
        eval_step(state.params, state.batch_stats, batch, place_flag(run.stop_requested(), mesh)) for batch in placed
    )
    totals: dict[str, float] = {}
    for metrics in prefetch(sums, 1):
        for key, value in jax.device_get(metrics).items():
            totals[key] = totals.get(key, 0.0) + float(value)
        if totals["stop"]:
            return None
    count, positive, outlined = (totals.pop(key) for key in ("weight", "positive", "outlined"))
    del totals["stop"]
    scores = {f"validation_{key}": total / count for key, total in totals.items()}
    return scores | ({"validation_outlined": outlined / positive} if positive else {})


def _statistics(run: StageRun, statistics_call: Any, state: TrainState) -> Any:
    """BatchNorm statistics of the averaged weights: the mean over one pass of training data, not augmented.

    The running statistics belong to the weights of single epochs; averaged weights have no statistics of
    their own until this function computes them.
    Raises Stopped when a process is asked to stop: the last checkpoint holds everything.
    """
    mesh, everywhere = run.mesh, replicated(run.mesh)
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), state.batch_stats)
    carry = place((zeros, np.int32(0)), everywhere)
    with (
        training_feed(run.config, run.data, run.stage, run.resident, None, run.calls, 0, mesh) as feed,
        progress_bar(None, sum(run.calls), "batch", "BatchNorm statistics", quiet=not is_first()) as bar,
    ):
        bar.set_postfix_str(COMPILING)
        stop = place(np.bool_(False), everywhere)
        for length, part in zip(run.calls, feed, strict=True):
            before = stop
            carry, stop = statistics_call(
                state.swa_params, carry, run.resident, part, place_flag(run.stop_requested(), mesh)
            )
            if jax.device_get(before):
                raise Stopped
            bar.set_postfix_str("", refresh=False)
            bar.update(length)
    return carry[0]
