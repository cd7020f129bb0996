"""The training of one stage, from top to bottom in one function: `train_stage`.

Which start wins, in this order:
  1. the stage's result is there (`final/`): nothing is trained, it is read;
  2. a checkpoint of the stage is there: go on from the newest;
  3. the variables given: the previous stage's averaged weights, pretrained or fresh ones.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxpneumo.augment import device
from jaxpneumo.data.source import eval_batches
from jaxpneumo.model.unet import UNet
from jaxpneumo.process.errors import InputError, Stopped, TrainingError
from jaxpneumo.process.progress import COMPILING, progress
from jaxpneumo.process.stop import sigterm_deferred
from jaxpneumo.run import checkpoint
from jaxpneumo.run.config import Augment, Config, Stage
from jaxpneumo.run.network import batch_norm_momentum, make_model
from jaxpneumo.run.sharding import is_first, make_mesh, place, place_flag, replicated, split, split_calls
from jaxpneumo.run.state import TrainState, create_train_state, update_average
from jaxpneumo.train.feed import StageData, load_resident, plan_calls, prefetch, remaining, training_feed
from jaxpneumo.train.log import MetricsLog
from jaxpneumo.train.optimizer import Plateau, learning_rate_fn, make_optimizer, reduce_on_plateau
from jaxpneumo.train.step import make_eval_step, make_statistics_call, make_train_call, make_train_step

logger = logging.getLogger(__name__)


def train_stage(
    config: Config, stage: Stage, data: StageData, directory: Path, variables: dict[str, Any]
) -> dict[str, Any]:
    """Trains one stage, or finishes it when an earlier start of the same command was stopped.

    Args:
      config: the run's config.
      stage: the one of its stages to train.
      data: the prepared data set and its rows.
      directory: the stage's folder: checkpoints/, final/, log.jsonl, tensorboard/, progress.png.
      variables: {"params", "batch_stats"} to start from.

    Returns:
      The stage's variables: the averaged weights with their own BatchNorm statistics, or without averaging
      the epoch with the best validation IoU.

    Raises:
      InputError: the batch size does not fit the devices or the data.
      TrainingError: the loss became infinite or not a number, or a checkpoint cannot be written.
      Stopped: SIGTERM came; the state is saved.
    """
    name, mesh = stage.name, make_mesh()
    everywhere, along_data = replicated(mesh), split(mesh)

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

    # --- model, optimizer, compiled functions
    model, optimizer = make_model(config.model), make_optimizer()
    train_call = jax.jit(
        make_train_call(make_train_step(model, optimizer, config.loss.dice, on_device, config.seed)),
        in_shardings=(everywhere, everywhere, split_calls(mesh), everywhere, along_data),
        out_shardings=everywhere,
        donate_argnums=0,
    )
    eval_step = jax.jit(
        make_eval_step(model, config.loss.dice, config.predict.threshold),
        in_shardings=(everywhere, everywhere, along_data, along_data),
        out_shardings=everywhere,
    )
    create = jax.jit(lambda start: create_train_state(start, optimizer), out_shardings=everywhere)

    # --- state: fresh, or the newest checkpoint's
    state = create(place(jax.device_get(variables), everywhere))
    # Compiled now: no epoch but the first is to wait for a compilation.
    average_step = jax.jit(update_average, out_shardings=everywhere, donate_argnums=0).lower(state).compile()
    start = {"epoch": 0, "steps": 0, "totals": {}, "plateau": Plateau(stage.learning_rate)._asdict()}
    with sigterm_deferred() as stop_requested, checkpoint.open_checkpoints(directory) as manager:
        restored = checkpoint.restore_newest(manager, state, everywhere)
        if restored is not None:
            state, start = restored
            within = f" and {start['steps']} of the next one's {steps_per_epoch} steps" if start["steps"] else ""
            logger.info("%s goes on after epoch %d of %d%s", name, start["epoch"], stage.epochs, within)
        elif (directory / "log.jsonl").exists():
            logger.warning("no undamaged checkpoint is left: %s starts from the beginning", name)
        steps, totals, plateau = start["steps"], start["totals"], Plateau(**start["plateau"])
        lengths = [*remaining(calls, steps), *(calls * (stage.epochs - start["epoch"] - 1))]
        taken = start["epoch"] * steps_per_epoch + steps
        compiled: set[int] = set()
        with (
            training_feed(config, data, stage, resident, on_host, lengths, taken, mesh) as feed,
            MetricsLog(directory, start["epoch"]) if is_first() else nullcontext() as log,
        ):
            for epoch in range(start["epoch"], stage.epochs):
                # --- one epoch of steps, or what an earlier start has left of it
                rate = learning_rate_fn(stage, epoch, plateau)
                started, before = time.perf_counter(), steps
                state, steps, totals, stopped = _train_epoch(
                    train_call, state, resident, feed, calls, rate, steps, totals, stop_requested, mesh,
                    f"{name} epoch {epoch + 1}/{stage.epochs}", stage.batch_size, compiled,
                )  # fmt: skip
                seconds = time.perf_counter() - started

                # --- validation, log, checkpoint: in this order, so that a resumed run repeats none of them
                if epoch == start["epoch"]:
                    logger.info("%s: validation (%s)", name, COMPILING)
                scores = None if stopped else _evaluate(eval_step, state, data, stage, stop_requested, mesh)
                if scores is None:
                    place_of_stop = {"epoch": epoch, "steps": steps, "totals": totals, "plateau": plateau._asdict()}
                    checkpoint.save(manager, epoch * steps_per_epoch + steps, state, place_of_stop)
                    checkpoint.wait(manager)
                    raise Stopped
                if epoch >= stage.epochs - stage.swa_epochs:
                    state = average_step(state)
                if stage.schedule == "plateau":
                    factor, patience = stage.plateau_factor, stage.plateau_patience
                    plateau = reduce_on_plateau(plateau, scores["validation_loss"], factor, patience)
                train_metrics = {f"train_{key}": total / steps_per_epoch for key, total in totals.items()}
                record = {
                    "epoch": epoch,
                    "step": (epoch + 1) * steps_per_epoch,
                    "learning_rate": rate,
                    **train_metrics,
                    **scores,
                    "images_per_second": round((steps - before) * stage.batch_size / seconds, 2),
                }
                if log is not None:
                    log.write(record)
                logger.info(
                    "%s epoch %d/%d: loss %.4f, validation loss %.4f, IoU %.4f",
                    name, epoch + 1, stage.epochs, train_metrics["train_loss"],
                    scores["validation_loss"], scores["validation_iou"],
                )  # fmt: skip
                steps, totals = 0, {}
                finished = {"epoch": epoch + 1, "steps": 0, "totals": {}, "plateau": plateau._asdict(), **scores}
                checkpoint.save(manager, (epoch + 1) * steps_per_epoch, state, finished)
        checkpoint.wait(manager)

        # --- the stage's result
        if stage.swa_epochs:
            chosen = {"weights": f"average of the last {int(jax.device_get(state.swa_count))} epochs"}
            batch_stats = _statistics(model, config, state, data, stage, resident, calls, stop_requested, mesh)
            result = {"params": state.swa_params, "batch_stats": batch_stats}
        else:
            best, result = checkpoint.restore_best(manager, variables, everywhere)
            chosen = {"weights": f"epoch {best // steps_per_epoch}, the best validation IoU"}
        scores = _evaluate(eval_step, replace(state, **result), data, stage, stop_requested, mesh)
        if scores is None:
            raise Stopped
        checkpoint.save_final(directory, result, {"stage": name, **chosen, **scores})
        logger.info("%s is complete (%s): validation IoU %.4f", name, chosen["weights"], scores["validation_iou"])
        return result


def augmentations(settings: Augment, size: int) -> tuple[Any, Any]:
    """The augmentation of the host's engine and that of the device's; at most one of them is not None.

    Raises InputError when the host's is wanted and its library is another release than the one relied on.
    """
    probabilities = {group: getattr(settings, group) for group in ("flip", "intensity", "distortion", "crop")}
    if not any(probabilities.values()):
        return None, None
    if settings.engine == "host":
        from jaxpneumo.augment import host  # albumentations takes a second to import, and only this engine needs it

        return host.make_augment(**probabilities, size=size), None
    return None, device.make_augment(**probabilities, size=size)


def _train_epoch(
    train_call: Any,
    state: TrainState,
    resident: dict[str, jax.Array],
    feed: Iterator[Any],
    calls: list[int],
    learning_rate: float,
    steps: int,
    totals: dict[str, float],
    stop_requested: Callable[[], bool],
    mesh: Mesh,
    description: str,
    batch_size: int,
    compiled: set[int],
) -> tuple[TrainState, int, dict[str, float], bool]:
    """Takes the calls of an epoch that are left after `steps` steps, or those until a process is asked to stop.

    Args (those that do not speak for themselves):
      compiled: lengths of the calls so far; the first of each length is compiled, which the bar says.

    Returns:
      The state, the epoch's steps so far, the sums of their metrics, and whether to stop.
    """
    rate = place(np.float32(learning_rate), replicated(mesh))
    totals = dict(totals)
    pending = None
    total, initial = sum(calls) * batch_size, steps * batch_size
    with progress(None, total, description=description, quiet=not is_first(), initial=initial) as bar:

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
                bar.update(batch_size)
            return stop

        stop = False
        for length in remaining(calls, steps):
            if length not in compiled:
                bar.set_postfix_str(COMPILING)
                compiled.add(length)
            state, metrics = train_call(state, resident, next(feed), rate, place_flag(stop_requested(), mesh))
            steps += length
            # The call before is read while the device works on this one, so that neither waits.
            stop = pending is not None and note(pending)
            pending = metrics
            if stop:
                break
        stop = (pending is not None and note(pending)) or stop
    return state, steps, totals, stop


def _evaluate(
    eval_step: Any, state: TrainState, data: StageData, stage: Stage, stop_requested: Callable[[], bool], mesh: Mesh
) -> dict[str, float] | None:
    """Mean loss, IoU and Dice over the validation images at the stage's size, each counted once; None: stop."""
    process = (jax.process_index(), jax.process_count())
    batches = eval_batches(data.directory, stage.size, data.validation_rows, stage.batch_size, *process)
    keys = ("image", "mask", "weight")
    placed = prefetch(place({key: batch[key] for key in keys}, split(mesh)) for batch in batches)
    sums = (eval_step(state.params, state.batch_stats, batch, place_flag(stop_requested(), mesh)) for batch in placed)
    totals: dict[str, float] = {}
    for metrics in prefetch(sums, 1):
        for key, value in jax.device_get(metrics).items():
            totals[key] = totals.get(key, 0.0) + float(value)
        if totals["stop"]:
            return None
    count = totals.pop("weight")
    del totals["stop"]
    return {f"validation_{key}": total / count for key, total in totals.items()}


def _statistics(
    model: UNet,
    config: Config,
    state: TrainState,
    data: StageData,
    stage: Stage,
    resident: dict[str, jax.Array],
    calls: list[int],
    stop_requested: Callable[[], bool],
    mesh: Mesh,
) -> Any:
    """BatchNorm statistics of the averaged weights: the mean over one pass of training data, not augmented.

    The running statistics belong to the weights of single epochs; averaged weights have none until then.
    Raises Stopped when a process is asked to stop: the last checkpoint holds everything.
    """
    everywhere = replicated(mesh)
    statistics_call = jax.jit(
        make_statistics_call(model, batch_norm_momentum(config.model)),
        in_shardings=(everywhere, everywhere, everywhere, split_calls(mesh), split(mesh)),
        out_shardings=everywhere,
        donate_argnums=1,
    )
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), state.batch_stats)
    carry = place((zeros, np.int32(0)), everywhere)
    with (
        training_feed(config, data, stage, resident, None, calls, 0, mesh) as feed,
        progress(None, sum(calls), "batch", "BatchNorm statistics", quiet=not is_first()) as bar,
    ):
        bar.set_postfix_str(COMPILING)
        stop = place(np.bool_(False), everywhere)
        for length, part in zip(calls, feed, strict=True):
            before = stop
            carry, stop = statistics_call(state.swa_params, carry, resident, part, place_flag(stop_requested(), mesh))
            if jax.device_get(before):
                raise Stopped
            bar.set_postfix_str("", refresh=False)
            bar.update(length)
    return carry[0]
