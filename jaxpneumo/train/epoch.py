"""The calls of an epoch, its steps and its validation: the device never waits for the host between two of them.

What a call returns is read when the next one has been started, over the ends of epochs too: the last numbers of a
validation are read while the device works on the next epoch's first call.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxpneumo.process.errors import Stopped, TrainingError
from jaxpneumo.process.progress import progress_bar
from jaxpneumo.run.config import Config, Stage
from jaxpneumo.run.sharding import is_first, place, place_flag, replicated
from jaxpneumo.run.state import TrainState
from jaxpneumo.train.compiled import StageFunctions
from jaxpneumo.train.feed import Arrays, StageData, remaining, training_feed
from jaxpneumo.train.optimizer import Plateau

COLLAPSED_AFTER = 5  # warn after this many validations in a row without any outline; the first few are often so


@dataclass(frozen=True)
class StageRun:
    """What stays the same while a stage is trained.

    Attributes:
      config: the run's config.
      stage: the stage that is trained.
      data: the prepared data set and its rows.
      mesh: the devices.
      functions: the compiled ones.
      training, validation: of `load_resident` and `load_validation`.
      calls: number of steps in each compiled call of an epoch.
      validation_calls: the inputs of a validation's calls, of `validation_feed`.
      stop_requested: whether this process has been asked to stop.
    """

    config: Config
    stage: Stage
    data: StageData
    mesh: Mesh
    functions: StageFunctions
    training: Arrays
    validation: Arrays
    calls: list[int]
    validation_calls: Callable[[], Iterable[Any]]
    stop_requested: Callable[[], bool]


@dataclass
class Progress:
    """How far a stage is; its checkpoints hold this as JSON. The loop moves it on.

    Attributes:
      epoch: epochs whose calls have all been started.
      steps: steps started of the next epoch.
      totals: sums of these steps' metrics, as far as they have been read.
      plateau: state of the schedule "plateau".
      empty: validations in a row that outlined nothing although there were findings.
      scores: of the last validation that has been read.
      best: the epoch with the best validation IoU so far, the newest of equals, and that IoU.
    """

    epoch: int
    steps: int
    totals: dict[str, float]
    plateau: Plateau
    empty: int = 0
    scores: dict[str, float] = field(default_factory=dict)
    best: tuple[int, float] | None = None

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "Progress":
        """Reads the result of `to_json`, also of earlier versions. Other keys are ignored."""
        plateau = Plateau(**saved["plateau"])
        best = saved.get("best")
        return cls(
            *(saved["epoch"], saved["steps"], saved["totals"], plateau, saved.get("empty", 0)),
            best=best and (int(best[0]), float(best[1])),
        )

    def to_json(self) -> dict[str, Any]:
        """The fields as plain dictionaries and numbers; at the end of an epoch with its scores."""
        saved = {key: value for key, value in vars(self).items() if key != "scores"}
        return {**saved, "plateau": self.plateau._asdict(), **({} if self.steps else self.scores)}


@dataclass
class Sums:
    """What has been read of an epoch's calls.

    Attributes:
      training: sums of the steps' metrics, those of an earlier start of the command among them.
      validation: sums of the validation's batches.
      images, seconds: trained in this process, and the time from one call's end to the next.
    """

    training: dict[str, float]
    validation: dict[str, float] = field(default_factory=dict)
    images: int = 0
    seconds: float = 0.0

    def scores(self) -> dict[str, float]:
        """Of the validation images at the stage's size, each counts once.

        Mean loss, IoU and Dice; and where there are images with a finding, the share of them in which anything is
        outlined. Where the loss is not a finite number, IoU and Dice are 0: probabilities that are no numbers outline
        nothing, which would be right in every image without a finding.
        """
        means = dict(self.validation)
        count, positive, outlined = (means.pop(key) for key in ("weight", "positive", "outlined"))
        scores = {f"validation_{key}": total / count for key, total in means.items()}
        if not math.isfinite(scores["validation_loss"]):
            scores |= {"validation_iou": 0.0, "validation_dice": 0.0}
        return scores | ({"validation_outlined": outlined / positive} if positive else {})


class Reader:
    """Reads what compiled calls return, each when the next has been started.

    Attributes:
      stopped: whether a process had been asked to stop, as the calls read so far say.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._unread: tuple[dict[str, jax.Array], Callable[..., None]] | None = None
        self._then: Callable[[], None] | None = None
        self._read_at = time.perf_counter()

    def started(self, output: dict[str, jax.Array], note: Callable[[dict[str, np.ndarray], float], None]) -> None:
        """Takes the output of a call that has just been started, and reads that of the call before.

        Once it is there, `note` is given the output's arrays, all of them (k,) but "stop", and the seconds since the
        call before was read.
        """
        self.finish()
        self._unread = output, note

    def then(self, action: Callable[[], None]) -> None:
        """What is to be done when the last call started so far has been read."""
        self._then = action

    def finish(self) -> None:
        """Reads the last call that was started, and waits for it."""
        if self._unread is None:
            return
        (output, note), self._unread = self._unread, None
        values = jax.device_get(output)
        self.stopped |= bool(values.pop("stop"))
        now = time.perf_counter()
        seconds, self._read_at = now - self._read_at, now
        note(values, seconds)
        then, self._then = self._then, None
        if then is not None:
            then()


def run_epoch(
    run: StageRun,
    state: TrainState,
    feed: Iterator[Any],
    rates: tuple[float, float],
    progress: Progress,
    reader: Reader,
) -> tuple[TrainState, Sums | None]:
    """Starts the remaining calls of an epoch, steps and validation, or stops when a process is asked to.

    Args:
      run: what stays the same.
      state: the train state at the point that `progress` describes; donated.
      feed: the input of one training call after the other.
      rates: of this epoch, the learning rate and the encoder's factor.
      progress: how far the stage is; moved on with the steps.
      reader: reads the calls, also the last ones of the epoch before.

    Returns:
      The state, and the epoch's sums, which are complete when `reader` has read the last call; None: stopped before all
      were started, and all that were started are read.

    Raises:
      TrainingError: the loss became infinite or not a number.
    """
    stage = run.stage
    placed_rates = place(np.array(rates, np.float32), replicated(run.mesh))
    description = f"{stage.name} epoch {progress.epoch + 1}/{stage.epochs}"
    sums = Sums(progress.totals)
    total, initial = sum(run.calls) * stage.batch_size, progress.steps * stage.batch_size
    shown = description + " (outlines nothing)" * (progress.empty >= COLLAPSED_AFTER)
    with progress_bar(None, total, description=shown, quiet=not is_first(), initial=initial) as bar:

        def note(values: dict[str, np.ndarray], seconds: float) -> None:
            for i, loss in enumerate(values["loss"].tolist()):
                if not math.isfinite(loss):
                    raise TrainingError(
                        f"{description}: the loss became {loss}. Nothing was saved after that; lower the stage's "
                        "learning_rate or use --config.model.dtype=float32, then start the same command again."
                    )
                _add(sums.training, values, i)
                bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
                bar.update(stage.batch_size)
            sums.images += len(values["loss"]) * stage.batch_size
            sums.seconds += seconds

        for length in remaining(run.calls, progress.steps):
            stop = place_flag(run.stop_requested(), run.mesh)
            state, metrics = run.functions.train[length](state, run.training, next(feed), placed_rates, stop)
            progress.steps += length
            reader.started(metrics, note)
            if reader.stopped:
                break
        if not reader.stopped and validate(run, state, reader, sums):
            return state, sums
        reader.finish()
    return state, None


def validate(run: StageRun, state: TrainState, reader: Reader, sums: Sums) -> bool:
    """Starts the calls that score a state; `reader` adds to `sums`. False: asked to stop before all were started."""

    def note(values: dict[str, np.ndarray], seconds: float) -> None:
        for i in range(len(values["weight"])):
            _add(sums.validation, values, i)

    for number, feed in enumerate(run.validation_calls()):
        if number and reader.stopped:
            return False
        evaluate, stop = run.functions.evaluate[len(feed["weight"])], place_flag(run.stop_requested(), run.mesh)
        reader.started(evaluate(state.params, state.batch_stats, run.validation, feed, stop), note)
    return True


def statistics(run: StageRun, state: TrainState) -> Any:
    """BatchNorm statistics of the averaged weights: the mean over one pass of training data, not augmented.

    The running statistics belong to the weights of single epochs; averaged weights have no statistics of
    their own until this function computes them.
    Raises Stopped when a process is asked to stop: the last checkpoint holds everything.
    """
    mesh, everywhere = run.mesh, replicated(run.mesh)
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), state.batch_stats)
    carry = place((zeros, np.int32(0)), everywhere)
    with (
        training_feed(run.config, run.data, run.stage, run.training, None, run.calls, 0, mesh) as feed,
        progress_bar(None, sum(run.calls), "batch", "BatchNorm statistics", quiet=not is_first()) as bar,
    ):
        stop = place(np.bool_(False), everywhere)
        for length, part in zip(run.calls, feed, strict=True):
            before, flag = stop, place_flag(run.stop_requested(), mesh)
            carry, stop = run.functions.statistics[length](state.swa_params, carry, run.training, part, flag)
            if jax.device_get(before):
                raise Stopped
            bar.update(length)
    return carry[0]


def _add(totals: dict[str, float], values: dict[str, np.ndarray], i: int) -> None:
    """Adds a call's values of one step or batch."""
    for key, value in values.items():
        totals[key] = totals.get(key, 0.0) + float(value[i])
