"""Checkpoints, the only place that knows Orbax.

A stage's folder holds

    checkpoints/<step>/    {model, training, progress} after that many steps: the newest two and the best epoch's
    final/                 {model, progress}: the stage's result, written once when it is complete

`model` is {"params", "batch_stats"} and is read alone by the next stage and by prediction.

A folder gets its name when it is whole, so that a kill leaves none behind that is not. What a disk spoils later is
found by checksums that `progress` holds (Orbax notices a file cut off, but not a changed bit); such a folder is set
aside as <name>.damaged, and the one before is used.
"""

import functools
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Sharding
from orbax.checkpoint import checkpoint_managers

from jaxpneumo.process.errors import InputError, TrainingError
from jaxpneumo.run.folders import final_directory
from jaxpneumo.run.state import TrainState

logger = logging.getLogger(__name__)


class DamagedError(ValueError):
    """A checkpoint that is not what was saved; the message says what is wrong with it."""


@contextmanager
def open_checkpoints(stage_directory: Path) -> Iterator[ocp.CheckpointManager]:
    """The checkpoint manager of a stage; at the end of the block what is being saved has been saved.

    Raises:
      InputError: the folder of checkpoints cannot be read.
      TrainingError: a checkpoint could not be written.
    """
    directory = (stage_directory / "checkpoints").absolute()
    if jax.process_index() == 0:
        _check_metrics(directory)
    wait_for_all_processes(f"open {directory}")
    policy = checkpoint_managers.AnyPreservationPolicy(
        [
            checkpoint_managers.LatestN(n=2),
            # Those of a stop within an epoch have no metric and go when they are no longer of the newest.
            checkpoint_managers.BestN(get_metric_fn=_validation_iou, n=1, keep_checkpoints_without_metrics=False),
        ]
    )
    # Without best_fn Orbax writes no metrics, and the policy takes every checkpoint for the best.
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy, best_fn=_validation_iou, best_mode="max", cleanup_tmp_directories=True
    )
    with _written(directory):
        manager = ocp.CheckpointManager(directory, options=options)
    try:
        yield manager
    except BaseException:
        # What ended the block is told, not that what it left behind could not be saved either.
        with suppress(Exception):
            manager.close()
        raise
    with _written(directory):
        manager.close()


def save(manager: ocp.CheckpointManager, step: int, state: TrainState, progress: dict[str, Any]) -> None:
    """Saves a state after `step` steps of the stage. Orbax writes it after this returns.

    Args:
      manager: of `open_checkpoints`.
      step: an older checkpoint of the same step is replaced: an epoch's validation was stopped then.
      state: the train state; it may be donated once this has returned.
      progress: JSON-ready, what the loop needs to go on. With `validation_iou` the checkpoint is a finished epoch's
        and may be the best.

    Raises:
      TrainingError: this or the one before could not be written.
    """
    with _written(Path(manager.directory)):
        if step in manager.all_steps():
            manager.delete(step)
        # One copy on the host, for the checksums and for Orbax: from arrays on several devices, Orbax would compile a
        # program for every shape to have each device write a part.
        model, training = _separate(jax.device_get(state))
        iou = progress.get("validation_iou")
        manager.save(
            step,
            args=ocp.args.Composite(
                model=ocp.args.StandardSave(model),
                training=ocp.args.StandardSave(training),
                progress=ocp.args.JsonSave(_sealed(progress, model=model, training=training)),
            ),
            metrics=None if iou is None else {"validation_iou": iou},
        )


def wait(manager: ocp.CheckpointManager) -> None:
    """Until what is being saved has been saved. Raises TrainingError when it cannot."""
    with _written(Path(manager.directory)):
        manager.wait_until_finished()


def restore_newest(
    manager: ocp.CheckpointManager, state: TrainState, sharding: Sharding
) -> tuple[TrainState, dict[str, Any]] | None:
    """Restores the newest checkpoint that is whole, and sets aside those that are not.

    Args:
      manager: of `open_checkpoints`.
      state: gives structure, shapes and types only.
      sharding: of the state restored.

    Returns:
      (state, progress), or None where there is no checkpoint that is whole.
    """
    while (step := manager.latest_step()) is not None:
        model, training = _abstract(_separate(state), sharding)
        try:
            templates = {"model": model, "training": training}
            restored = _restore(functools.partial(manager.restore, step), templates)
            return replace(state, **restored["model"], **restored["training"]), restored["progress"]
        except DamagedError as error:
            _set_aside(Path(manager.directory) / str(step), error)
            wait_for_all_processes(f"set aside {step}")
            manager.reload()
    return None


def restore_best(
    manager: ocp.CheckpointManager, variables: dict[str, Any], sharding: Sharding
) -> tuple[int, dict[str, Any]]:
    """Reads {"params", "batch_stats"} of the best epoch, the newest of equals, and sets aside what is not whole.

    Returns (step, variables). Raises TrainingError when none is whole.
    """
    while (step := manager.best_step()) is not None:
        try:
            templates = {"model": _abstract(variables, sharding)}
            return step, _restore(functools.partial(manager.restore, step), templates)["model"]
        except DamagedError as error:
            _set_aside(Path(manager.directory) / str(step), error)
            wait_for_all_processes(f"set aside {step}")
            manager.reload()
    raise TrainingError(f"{manager.directory} holds no undamaged checkpoint. Start the same command again.")


def save_final(stage_directory: Path, variables: dict[str, Any], progress: dict[str, Any]) -> None:
    """Writes a stage's result {"params", "batch_stats"} and what is known of it, and waits until it is there.

    Raises TrainingError when it cannot be written.
    """
    directory, variables = final_directory(stage_directory), jax.device_get(variables)
    with _written(directory), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(
            directory,
            args=ocp.args.Composite(
                model=ocp.args.StandardSave(variables),
                progress=ocp.args.JsonSave(_sealed(progress, model=variables)),
            ),
        )


def restore_final(
    stage_directory: Path, variables: dict[str, Any], sharding: Sharding
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads a stage's result onto `sharding`; `variables` gives structure, shapes and types.

    Raises:
      InputError: the stage has not been completed, or its result is damaged or of another network.
    """
    directory = final_directory(stage_directory)
    if not directory.is_dir():
        raise InputError(
            f"{stage_directory} holds no finished stage (no folder final/). Start its training command again: "
            "it goes on where it stopped."
        )
    # Onto this process's own devices it reads alone, without waiting for others.
    alone = {"primary_host": jax.process_index(), "active_processes": {jax.process_index()}}
    processes = ocp.options.MultiprocessingOptions(**(alone if sharding.is_fully_addressable else {}))
    handler = ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(multiprocessing_options=processes))
    with ocp.Checkpointer(handler, multiprocessing_options=processes) as checkpointer:
        try:
            templates = {"model": _abstract(variables, sharding)}
            restored = _restore(functools.partial(checkpointer.restore, directory), templates)
        except DamagedError as error:
            raise InputError(
                f"{directory} does not fit this network or is damaged: {error}. Start its training command again: it "
                "makes the result from the last checkpoint, and where there is none trains anew."
            ) from error
    return restored["model"], restored["progress"]


def restore_result(stage_directory: Path, variables: dict[str, Any], sharding: Sharding) -> dict[str, Any] | None:
    """A complete stage's {"params", "batch_stats"}; None where there is none, or a damaged one, now set aside."""
    directory = final_directory(stage_directory)
    if not directory.is_dir():
        return None
    try:
        return restore_final(stage_directory, variables, sharding)[0]
    except InputError as error:
        _set_aside(directory, error)
        wait_for_all_processes(f"set aside {directory}")
        return None


def wait_for_all_processes(name: str, seconds: int = 24 * 3600) -> None:
    """Waits until all processes have come here. Orbax has the meeting point that keeps no device busy."""
    if jax.process_count() > 1:
        ocp.multihost.sync_global_processes(name, timeout=seconds)


def _restore(restore: Callable[..., Any], templates: dict[str, Any]) -> dict[str, Any]:
    """The named items of a checkpoint and its progress, their checksums compared. Raises DamagedError."""
    arguments = {name: ocp.args.StandardRestore(template) for name, template in templates.items()}
    try:
        restored = restore(args=ocp.args.Composite(**arguments, progress=ocp.args.JsonRestore()))
    except PermissionError as error:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, OSError) as error:
        raise DamagedError(_first_line(error)) from error
    except Exception as error:
        # TensorStore's errors come as plain exceptions; jax's own, such as a lack of memory, do not.
        if type(error) is not Exception:
            raise
        raise DamagedError(_first_line(error)) from error
    items = {name: restored[name] for name in templates}
    return {**items, "progress": _unsealed(restored["progress"], items)}


def _sealed(progress: dict[str, Any], **items: Any) -> dict[str, Any]:
    """Progress with the checksums of the arrays saved beside it and of itself."""
    content = {"progress": progress, "arrays": {name: _checksum(tree) for name, tree in items.items()}}
    return {**content, "checksum": zlib.crc32(json.dumps(content, sort_keys=True).encode())}


def _unsealed(sealed: dict[str, Any], items: dict[str, Any]) -> dict[str, Any]:
    """The progress of `_sealed`. Raises DamagedError when it, or the arrays restored, are not those saved."""
    content: dict[str, Any] = {key: sealed.get(key) for key in ("progress", "arrays")}
    if sealed.get("checksum") != zlib.crc32(json.dumps(content, sort_keys=True).encode()):
        raise DamagedError("the checksum of its progress is wrong")
    for name, tree in items.items():
        if content["arrays"][name] != _checksum(tree):
            raise DamagedError(f"the checksum of the arrays of {name} is wrong")
    return content["progress"]


def _checksum(tree: Any) -> int:
    """CRC-32 over all arrays of a tree, in order: 70 ms for the 400 MB of a state."""
    checksum = 0
    for leaf in jax.tree.leaves(jax.device_get(tree)):
        checksum = zlib.crc32(np.ascontiguousarray(leaf).data, checksum)
    return checksum


def _check_metrics(directory: Path) -> None:
    """Sets aside checkpoints whose metric is unreadable, which Orbax would stumble over. Raises InputError."""
    try:
        steps = [entry for entry in directory.iterdir() if entry.name.isdecimal()] if os.path.lexists(directory) else []
    except OSError as error:
        raise InputError(f"{directory} cannot be read: {error.strerror}. Put it right, or move it away.") from error
    for step in steps:
        path = step / "metrics" / "metrics"
        try:
            if path.is_file():
                json.loads(path.read_bytes())
        except (ValueError, OSError) as error:
            _set_aside(step, error)


def _set_aside(directory: Path, error: Exception) -> None:
    """Renames a damaged checkpoint and warns; of several processes the first does."""
    if jax.process_index() != 0:
        return
    number, target = 0, directory.with_name(f"{directory.name}.damaged")
    while target.exists():
        number += 1
        target = directory.with_name(f"{directory.name}.damaged{number}")
    logger.warning("%s is damaged (%s) and is set aside as %s", directory, error, target.name)
    directory.rename(target)


@contextmanager
def _written(directory: Path) -> Iterator[None]:
    """Turns a failure to write a checkpoint into words."""
    try:
        yield
    except Exception as error:
        # Orbax and TensorStore raise what they have: OSError, ValueError and others.
        text = str(error)
        full = any(word in text for word in ("No space left", "File too large", "quota exceeded"))
        reason = "the disk is full, or a quota is used up" if full else _first_line(error)
        raise TrainingError(
            f"{directory} cannot be written: {reason}. The last good checkpoint is kept; make room, then start the "
            "same command again."
        ) from error


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__


def _validation_iou(metrics: dict[str, float]) -> float:
    return metrics["validation_iou"]


def _separate(state: TrainState) -> tuple[dict[str, Any], dict[str, Any]]:
    model = {"params": state.params, "batch_stats": state.batch_stats}
    names = ("step", "opt_state", "swa_params", "swa_count")
    return model, {name: getattr(state, name) for name in names}


def _abstract(tree: Any, sharding: Sharding) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
