"""Checkpoints, the only place that knows Orbax.

A stage's folder holds

    checkpoints/<step>/    {model, training, progress} after that many steps: the newest two and the best epoch's
    final/                 {model, progress}: the stage's result, written once when it is complete

`model` is {"params", "batch_stats"} and is read alone by the next stage and by prediction.
"""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Sharding
from orbax.checkpoint import checkpoint_managers

from jaxpneumo.errors import InputError
from jaxpneumo.train.state import TrainState


def open_checkpoints(stage_directory: Path) -> ocp.CheckpointManager:
    """The checkpoint manager of a stage; close it (or use it as a context) so that saves are finished."""
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
    return ocp.CheckpointManager((stage_directory / "checkpoints").absolute(), options=options)


def save(manager: ocp.CheckpointManager, step: int, state: TrainState, progress: dict[str, Any]) -> None:
    """Saves a state after `step` steps of the stage, in the background.

    Args:
      manager: of `open_checkpoints`.
      step: an older checkpoint of the same step is replaced: an epoch's validation was stopped then.
      state: the train state; it may be donated to the next step at once.
      progress: JSON-ready, what the loop needs to go on. With `validation_iou` the checkpoint is a finished epoch's
        and may be the best.
    """
    if step in manager.all_steps():
        manager.delete(step)
    model, training = _separate(state)
    iou = progress.get("validation_iou")
    manager.save(
        step,
        args=ocp.args.Composite(
            model=ocp.args.StandardSave(model),
            training=ocp.args.StandardSave(training),
            progress=ocp.args.JsonSave(progress),
        ),
        metrics=None if iou is None else {"validation_iou": iou},
    )


def restore(
    manager: ocp.CheckpointManager, step: int, state: TrainState, sharding: Sharding
) -> tuple[TrainState, dict[str, Any]]:
    """Restores the state saved after `step` steps onto `sharding`.

    `state` gives structure, shapes and types only. Returns (state, progress).
    """
    model, training = _abstract(_separate(state), sharding)
    restored = manager.restore(
        step,
        args=ocp.args.Composite(
            model=ocp.args.StandardRestore(model),
            training=ocp.args.StandardRestore(training),
            progress=ocp.args.JsonRestore(),
        ),
    )
    return state.replace(**restored["model"], **restored["training"]), restored["progress"]


def save_final(stage_directory: Path, variables: dict[str, Any], progress: dict[str, Any]) -> None:
    """Writes a stage's result {"params", "batch_stats"} and what is known of it, and waits until it is there."""
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(
            final_directory(stage_directory),
            args=ocp.args.Composite(model=ocp.args.StandardSave(variables), progress=ocp.args.JsonSave(progress)),
        )


def restore_final(
    stage_directory: Path, variables: dict[str, Any], sharding: Sharding
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads a stage's result onto `sharding`; `variables` gives structure, shapes and types.

    Raises:
      InputError: the stage has not been completed, or its result is of another network.
    """
    directory = final_directory(stage_directory)
    if not directory.is_dir():
        raise InputError(
            f"{stage_directory} holds no finished stage (no folder final/). Start its training command again: "
            "it goes on where it stopped."
        )
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        try:
            restored = checkpointer.restore(
                directory,
                args=ocp.args.Composite(
                    model=ocp.args.StandardRestore(_abstract(variables, sharding)),
                    progress=ocp.args.JsonRestore(),
                ),
            )
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise InputError(f"{directory} does not fit this network or is damaged: {error}") from error
    return restored["model"], restored["progress"]


def restore_model(
    manager: ocp.CheckpointManager, step: int, variables: dict[str, Any], sharding: Sharding
) -> dict[str, Any]:
    """Reads only {"params", "batch_stats"} saved after `step` steps."""
    model = ocp.args.StandardRestore(_abstract(variables, sharding))
    return manager.restore(step, args=ocp.args.Composite(model=model))["model"]


def final_directory(stage_directory: Path) -> Path:
    """Where a stage's result lies once it is complete."""
    return (stage_directory / "final").absolute()


def _validation_iou(metrics: dict[str, float]) -> float:
    return metrics["validation_iou"]


def _separate(state: TrainState) -> tuple[dict[str, Any], dict[str, Any]]:
    model = {"params": state.params, "batch_stats": state.batch_stats}
    names = ("step", "opt_state", "swa_params", "swa_count")
    return model, {name: getattr(state, name) for name in names}


def _abstract(tree: Any, sharding: Sharding) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
