"""The training of one stage, from top to bottom in one function: `train_stage`.

A stage starts from the first of these that exists:
  1. its result in `final/`: it is read, and the stage is not trained;
  2. its newest checkpoint;
  3. the given variables: the averaged weights of the stage before, pretrained weights or fresh ones.
"""

import logging
import math
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax

from jaxpneumo.augment import device
from jaxpneumo.process.errors import Stopped, TrainingError
from jaxpneumo.process.stop import sigterm_deferred
from jaxpneumo.run import checkpoint
from jaxpneumo.run.config import Augment, Config, Stage
from jaxpneumo.run.sharding import is_first, make_mesh, place, replicated
from jaxpneumo.run.state import TrainState
from jaxpneumo.train.background import Keeper, background
from jaxpneumo.train.compiled import (
    Program,
    Shapes,
    compile_programs,
    different,
    stage_functions,
    stage_programs,
    state_maker,
)
from jaxpneumo.train.epoch import COLLAPSED_AFTER, Progress, Reader, StageRun, Sums, run_epoch, statistics, validate
from jaxpneumo.train.feed import (
    StageData,
    load_resident,
    load_validation,
    plan_calls,
    remaining,
    training_feed,
    training_order,
    validation_feed,
    why_streamed,
)
from jaxpneumo.train.log import MetricsLog
from jaxpneumo.train.optimizer import Plateau, learning_rate_fn, reduce_on_plateau
from jaxpneumo.train.sampling import shares

logger = logging.getLogger(__name__)


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
      TrainingError: the loss, or the result's validation loss, became infinite or not a number, or a checkpoint cannot
        be written.
      Stopped: SIGTERM came; the state is saved.
    """
    name, mesh = stage.name, make_mesh()
    everywhere = replicated(mesh)

    # --- what is there already
    if result := checkpoint.restore_result(directory, variables, everywhere):
        logger.info("%s is complete; its result is read from %s", name, directory)
        return result

    # --- data
    steps_per_epoch = len(data.train_rows) // stage.batch_size
    calls, validation_calls = _calls(stage, data)
    on_host, _ = augmentations(config.augment, stage.size)
    training = load_resident(config.data.resident, on_host is not None, data, stage.size, mesh)
    validation = load_validation(config.data.resident, data, stage.size, mesh)
    order, positive_shares = training_order(data, stage, config.seed), shares(stage)

    with sigterm_deferred() as stop_requested, checkpoint.open_checkpoints(directory) as manager:
        # --- state: fresh, or the newest checkpoint's
        state = state_maker(mesh)(place(jax.device_get(variables), everywhere))
        progress = Progress(0, 0, {}, Plateau(stage.learning_rate))
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

        # --- compiled functions
        functions = stage_functions(programs(config, stage, data, bool(training), bool(validation), lengths))
        feeds = partial(validation_feed, data, stage, validation, validation_calls, mesh)
        if validation:
            feeds = partial(iter, list(feeds()))  # on the device once and for all
        run = StageRun(config, stage, data, mesh, functions, training, validation, calls, feeds, stop_requested)

        with (
            MetricsLog(directory, first_epoch) if is_first() else nullcontext() as log,
            background() as work,
            training_feed(config, data, stage, training, on_host, lengths, taken, mesh, order) as feed,
        ):
            reader, keeper = Reader(), Keeper(manager, work, config.checkpoint_seconds, by_best=not stage.swa_epochs)

            def finish_epoch(epoch: int, rate: float, sums: Sums, copy: TrainState | None, due: bool) -> None:
                """Log, warning and checkpoint of an epoch whose calls have all been read.

                The checkpoint comes last and marks the epoch as done.
                """
                scores = sums.scores()
                if stage.schedule == "plateau" and epoch >= stage.warmup_epochs:
                    factor, patience = stage.plateau_factor, stage.plateau_patience
                    progress.plateau = reduce_on_plateau(progress.plateau, scores["validation_loss"], factor, patience)
                record = {
                    "epoch": epoch,
                    "step": (epoch + 1) * steps_per_epoch,
                    "learning_rate": rate,
                    **({"positive_share": positive_shares[epoch]} if positive_shares else {}),
                    **{f"train_{key}": total / steps_per_epoch for key, total in sums.training.items()},
                    **scores,
                    "images_per_second": round(sums.images / sums.seconds, 2) if sums.images else 0.0,
                }
                if log is not None:
                    work.do(log.write, record)
                losses = record["train_loss"], scores["validation_loss"], scores["validation_iou"]
                described = "%s epoch %d/%d: loss %.4f, validation loss %.4f, IoU %.4f"
                logger.info(described, name, epoch + 1, stage.epochs, *losses)
                progress.scores = scores
                if progress.best is None or scores["validation_iou"] >= progress.best[1]:
                    progress.best = epoch + 1, scores["validation_iou"]
                progress.empty = progress.empty + 1 if scores.get("validation_outlined") == 0 else 0
                if progress.empty == COLLAPSED_AFTER:
                    told = f"{name} outlined nothing in {progress.empty} epochs in a row"
                    logger.warning("%s", collapsed(told, config))
                done = replace(progress, epoch=epoch + 1, steps=0, totals={})
                keeper.epoch_ended((epoch + 1) * steps_per_epoch, copy, done.to_json(), due)

            for epoch in range(first_epoch, stage.epochs):
                # --- the calls of one epoch, or of the rest of one that was interrupted
                rate = learning_rate_fn(stage, epoch, progress.plateau)
                rates = rate, float(epoch >= stage.frozen_encoder_epochs)
                state, sums = run_epoch(run, state, feed, rates, progress, reader)
                if sums is None:
                    break

                # --- they have all been started: what follows from them is done when the last has been read
                if epoch >= stage.epochs - stage.swa_epochs:
                    state = functions.average(state)
                due = keeper.due() or epoch + 1 == stage.epochs
                copy = functions.copy(state) if due or keeper.by_best else None
                progress.epoch, progress.steps, progress.totals = epoch + 1, 0, {}
                reader.then(partial(finish_epoch, epoch, rate, sums, copy, due))
                if stage.schedule == "plateau":
                    reader.finish()  # the next rate depends on the validation
                if reader.stopped:
                    break

            # --- the last epoch's end; asked to stop: save what has been done
            reader.finish()
            if reader.stopped:
                keeper.save(progress.epoch * steps_per_epoch + progress.steps, state, progress.to_json())
                work.wait()
                checkpoint.wait(manager)
                raise Stopped

            # --- the stage's result
            if log is not None:
                work.do(log.close)
            if stage.swa_epochs:
                chosen = {"weights": f"average of the last {int(jax.device_get(state.swa_count))} epochs"}
                result = {"params": state.swa_params, "batch_stats": statistics(run, state)}
            else:
                work.wait()
                checkpoint.wait(manager)
                best, result = checkpoint.restore_best(manager, variables, everywhere)
                chosen = {"weights": _best_of(best // steps_per_epoch, progress, name)}
            sums = Sums({})
            validate(run, replace(state, **result), reader, sums)
            reader.finish()
            if reader.stopped:
                raise Stopped
        checkpoint.wait(manager)
        scores = sums.scores()
        if not math.isfinite(scores["validation_loss"]):
            raise TrainingError(
                f"the result of {name} has a validation loss of {scores['validation_loss']}, so it is no result. Train "
                "again in another --workdir with a lower learning_rate, or with --config.model.dtype=float32."
            )
        checkpoint.save_final(directory, result, {"stage": name, **chosen, **scores})
        logger.info("%s is complete (%s): validation IoU %.4f", name, chosen["weights"], scores["validation_iou"])
        if scores.get("validation_outlined") == 0:
            logger.warning("%s", collapsed(f"the result of {name} outlines nothing", config))
        return result


def _best_of(epoch: int, progress: Progress, name: str) -> str:
    """Says which epoch a stage's result is; warns where a better one's checkpoint could not be read."""
    if progress.best is None or progress.best[0] == epoch:
        return f"epoch {epoch}, the best validation IoU"
    better, iou = progress.best
    logger.warning(
        "%s: the result is epoch %d, the best of the checkpoints that are left. Epoch %d, with IoU %.4f, is lost.",
        *(name, epoch, better, iou),
    )
    return f"epoch {epoch}, the best validation IoU of the checkpoints that are left (epoch {better} had {iou:.4f})"


def programs(
    config: Config, stage: Stage, data: StageData, training: bool, validation: bool, lengths: Iterable[int]
) -> dict[tuple[str, int], Program]:
    """What a stage runs on the devices, to be compiled.

    Args:
      config, stage, data: of `train_stage`.
      training, validation: whether these images lie on the devices.
      lengths: the numbers of steps of the stage's calls.
    """
    calls, validation_calls = _calls(stage, data)
    shapes = Shapes(
        size=stage.size,
        batch_size=stage.batch_size,
        training=len(data.train_rows) if training else 0,
        validation=len(data.validation_rows) + 1 if validation else 0,
        steps=different(lengths),
        batches=different(validation_calls),
        statistics=different(calls) if stage.swa_epochs else (),
    )
    _, on_device = augmentations(config.augment, stage.size)
    loss, threshold = stage.loss(config.loss), config.predict.threshold
    return stage_programs(config.model, loss, config.seed, threshold, on_device, make_mesh(), shapes)


def compile_stages(config: Config, stages: Sequence[Stage], data: StageData) -> None:
    """Compiles the programs of several stages together, as far as they can be foreseen.

    Then nothing is compiled between two stages. A stage whose program cannot be compiled is known before the stages
    before it have been trained.
    """
    mesh, setting, found = make_mesh(), config.data.resident, {}
    for stage in stages:
        on_host, _ = augmentations(config.augment, stage.size)
        training = not why_streamed(setting, on_host is not None, len(data.train_rows), stage.size, mesh)
        validation = not why_streamed(setting, False, len(data.validation_rows), stage.size, mesh)
        for name, program in programs(config, stage, data, training, validation, _calls(stage, data)[0]).items():
            found[stage.name, *name] = program
    compile_programs(found)


def _calls(stage: Stage, data: StageData) -> tuple[list[int], list[int]]:
    """The number of steps in each compiled call of an epoch, and of batches in each of its validation's."""
    return (
        plan_calls(len(data.train_rows) // stage.batch_size),
        plan_calls(-(-len(data.validation_rows) // stage.batch_size)),
    )


def collapsed(what: str, config: Config) -> str:
    """The warning that a network predicts nothing, with the way out."""
    loss = "" if config.loss.dice == "batch" else "--config.loss.dice=batch, "
    return (
        f"{what}, although validation images show pneumothorax: it may have settled on predicting nothing. Ways "
        f"out, in another --workdir: {loss}a lower learning rate, --config.model.pretrained, a lower "
        "--config.predict.threshold."
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
