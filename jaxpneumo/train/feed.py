"""The input of training: batches reach the devices before a compiled call needs them.

There are two ways, with the same batches in the same order:

    resident     every device holds the training part as uint8 images and bit-packed masks; a call receives the rows
                 of its batches, a few hundred bytes
    streaming    Grain's threads or processes read the records, and batches are copied to the devices ahead of the
                 calls; for data that do not fit into memory, and for augmentation on the host

A call is one compiled program of several steps (`step.make_train_call`): no step waits for Python.
"""

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from jaxpneumo.data import dataset
from jaxpneumo.data.source import Augment, eval_batches, eval_places, index_batches, train_batches
from jaxpneumo.process.errors import InputError, TrainingError
from jaxpneumo.process.machine import free_memory
from jaxpneumo.run.config import Config, Stage
from jaxpneumo.run.sharding import all_processes, place, replicated, split_calls
from jaxpneumo.train.sampling import sampled_order, shares

logger = logging.getLogger(__name__)

# Enough that starting a call is nothing beside its steps, and few enough that a stop is answered within seconds.
STEPS_PER_CALL = 16
# XLA on the CPU runs a loop's convolutions 10 to 20 times slower than the same outside of a loop.
STEPS_PER_CALL_CPU = 1
# Of the free memory, for the training part: activations need the most of the rest.
RESIDENT_FRACTION = 0.25
# Calls whose input is put on the devices before its turn.
AHEAD = 2

Item = TypeVar("Item")
# {"image": (n, S, S) uint8, "mask": (n, S, S / 8) uint8 packed}, whole on every device; {} for streaming.
Arrays = dict[str, jax.Array]


@dataclass(frozen=True)
class StageData:
    """Where a stage's images are: the prepared data set and the rows of each part."""

    directory: str
    train_rows: np.ndarray
    validation_rows: np.ndarray


def plan_calls(steps: int, maximum: int | None = None) -> list[int]:
    """Divides an epoch into calls: their numbers of steps, equal if `steps` allows, else with one shorter at the end.

    Each different number means one more compilation. The default of `maximum` depends on the kind of device.
    """
    if maximum is None:
        maximum = STEPS_PER_CALL_CPU if jax.default_backend() == "cpu" else STEPS_PER_CALL
    even = [n for n in range(maximum, maximum // 2, -1) if steps % n == 0]
    length = even[0] if even else min(maximum, steps)
    calls, rest = divmod(steps, length)
    return [length] * calls + [rest] * (rest > 0)


def remaining(calls: list[int], done: int) -> list[int]:
    """The rest of an epoch's calls after `done` steps. The first is shorter if `done` ends within it."""
    return [min(length, end - done) for length, end in zip(calls, accumulate(calls), strict=True) if end > done]


def load_resident(setting: str, host_engine: bool, data: StageData, size: int, mesh: Mesh) -> Arrays:
    """Puts the training part on every device, or returns {} for streaming. The log says which, and why.

    Args:
      setting: `config.data.resident`: "on", "off", or "auto" for what the free memory allows.
      host_engine: the host augments, which leaves only streaming.
      data: the prepared data set and its training rows.
      size: height and width of the images in pixels.
      mesh: the devices.

    Returns:
      {"image": (n, S, S) uint8, "mask": (n, S, S / 8) uint8 packed} in the order of the training rows, or {}.

    Raises:
      InputError: "on" together with augmentation by the host.
    """
    if setting == "on" and host_engine:
        raise InputError(
            'data.resident="on" needs augmentation on the device: use --config.augment.engine=device, or '
            "--config.data.resident=auto."
        )
    if not _fits("Input", "training", setting, host_engine, len(data.train_rows), size, mesh):
        return {}
    images, masks = dataset.open_arrays(data.directory, size)
    return place({"image": images[data.train_rows], "mask": masks[data.train_rows]}, replicated(mesh))


def load_validation(setting: str, data: StageData, size: int, mesh: Mesh) -> Arrays:
    """As `load_resident`, to be called after it, for the validation part and one empty image, which fills batches.

    The host's augmentation does not concern these images. Setting and memory decide alone.
    """
    if not _fits("Validation", "validation", setting, False, len(data.validation_rows), size, mesh):
        return {}
    arrays = dataset.open_arrays(data.directory, size)
    images, masks = (np.concatenate([array[data.validation_rows], 0 * array[:1]]) for array in arrays)
    return place({"image": images, "mask": masks}, replicated(mesh))


def why_streamed(setting: str, host_engine: bool, count: int, size: int, mesh: Mesh) -> str:
    """Why `count` images are not to lie on the device, as the free memory is now; "" where they are."""
    if setting == "off" or host_engine:
        return "the host augments" if host_engine else 'data.resident="off"'
    if setting == "auto":
        free = _free_memory()
        if not all_processes(_bytes(count, size) <= RESIDENT_FRACTION * free, mesh):
            return f"more than a quarter of the {free / 2**20:.0f} MiB free there"
    return ""


def _bytes(count: int, size: int) -> int:
    """Of as many images and packed masks."""
    return count * size * size * 9 // 8


def _fits(what: str, part: str, setting: str, host_engine: bool, count: int, size: int, mesh: Mesh) -> bool:
    """Whether `count` images are to lie on the device; says so."""
    reason = why_streamed(setting, host_engine, count, size, mesh)
    amount = f"{count} {part} images, {_bytes(count, size) / 2**20:.1f} MiB a device"
    if reason:
        logger.info("%s is streamed to the device (%s): %s", what, amount, reason)
    else:
        logger.info("%s lies on the device (%s)", what, amount)
    return not reason


def _free_memory() -> int:
    """Free bytes on the fullest device of this process; on the CPU each device's share of the free memory."""
    devices = jax.local_devices()
    statistics = [device.memory_stats() for device in devices]
    if all(statistics):
        return min(each["bytes_limit"] - each["bytes_in_use"] for each in statistics)
    return free_memory() // len(devices)


def training_order(data: StageData, stage: Stage, seed: int) -> np.ndarray | None:
    """The order of a stage with a `positive_share`, of `sampling.sampled_order`; None for a stage without."""
    wanted = shares(stage)
    if wanted is None:
        return None
    positive = dataset.read_index(data.directory).positive[data.train_rows]
    images = len(data.train_rows) // stage.batch_size * stage.batch_size
    try:
        return sampled_order(positive, wanted, images, seed)
    except InputError as error:
        raise InputError(f"{stage.name}: {error}") from error


@contextmanager
def training_feed(
    config: Config,
    data: StageData,
    stage: Stage,
    resident: Arrays,
    augment: Augment | None,
    lengths: Iterable[int],
    start: int,
    mesh: Mesh,
    order: np.ndarray | None = None,
) -> Iterator[Iterator[Any]]:
    """The input of one call after the other, put on the devices `AHEAD` calls early.

    Args:
      config: the run's config (seed, workers).
      data: the prepared data set and its training rows.
      stage: the stage (size, batch_size).
      resident: of `load_resident`.
      augment: of the host engine, or None.
      lengths: steps of each call.
      start: global batches taken before.
      mesh: the devices.
      order: of `training_order`; None takes each training image once in a pass.

    Yields:
      An iterator; for a call of k steps {"index": (k, B)}, or {"image": (k, B, S, S), "mask": (k, B, S, S / 8),
      "weight": (k, B)}, split over the devices along B.
    """
    process = (jax.process_index(), jax.process_count())
    rows = data.train_rows
    if resident:
        batches = index_batches(len(rows), stage.batch_size, config.seed, *process, start, order)
    else:
        batches = train_batches(
            data.directory,
            stage.size,
            rows,
            stage.batch_size,
            config.seed,
            augment,
            config.data.workers,
            *process,
            start,
            order,
        )

    def calls() -> Iterator[Any]:
        for length in lengths:
            try:
                steps = [next(batches) for _ in range(length)]
            except RuntimeError as error:
                raise TrainingError(
                    f"the data cannot be read any more: {error} If the system ended reading processes as memory ran "
                    "out, use fewer --config.data.workers. Then start the same command again."
                ) from error
            yield place(jax.tree.map(lambda *x: np.stack(x), *steps), split_calls(mesh))

    try:
        yield prefetch(calls())
    finally:
        batches.close()


def validation_feed(data: StageData, stage: Stage, resident: Arrays, lengths: list[int], mesh: Mesh) -> Iterator[Any]:
    """The input of one validation call after the other, the first put on the devices at once, each other a call early.

    Args:
      data: the prepared data set and its validation rows.
      stage: the stage (size, batch_size).
      resident: of `load_validation`.
      lengths: batches of each call.
      mesh: the devices.

    Returns:
      An iterator; for a call of k batches {"index": (k, B), "weight": (k, B)}, or {"image": (k, B, S, S),
      "mask": (k, B, S, S / 8), "weight": (k, B)}, split over the devices along B. Fillings have weight 0.

    Raises:
      InputError: the data set is not there any more.
    """
    process, rows = (jax.process_index(), jax.process_count()), data.validation_rows
    if resident:
        places = eval_places(len(rows), stage.batch_size, *process)
        batches = ({"index": each % np.int32(len(rows) + 1), "weight": np.float32(each >= 0)} for each in places)
    else:
        records = eval_batches(data.directory, stage.size, rows, stage.batch_size, *process)
        batches = ({key: each[key] for key in ("image", "mask", "weight")} for each in records)
    calls = (jax.tree.map(lambda *x: np.stack(x), *islice(batches, length)) for length in lengths)
    return prefetch((place(call, split_calls(mesh)) for call in calls), 1)


def prefetch(items: Iterable[Item], count: int = AHEAD) -> Iterator[Item]:
    """Yields the same items, but requests each of them `count` items earlier."""
    waiting: deque[Item] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting
