"""Batches of a prepared data set, by Grain: shuffled and augmented for training, in order for evaluation.

Everything random about a training batch follows from the seed and the record's place in the one global order,
so the same records come with the same augmentation for any number of threads, workers and processes. Masks
stay bit-packed and images uint8: both are widened on the device.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grain
import numpy as np

from jaxpneumo.data import dataset
from jaxpneumo.process.errors import InputError
from jaxpneumo.process.machine import cores
from jaxpneumo.process.runtime import one_thread_each

Record = dict[str, Any]
Augment = Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]

# Grain's own default; beyond it threads mostly wait for Python's global lock.
MAXIMUM_THREADS = 16


class PreparedSource:
    """Random access to the chosen rows of a prepared data set (Grain's RandomAccessDataSource).

    A copy sent to a worker process opens the files again there: a pickled memory map would hold the whole data
    set.
    """

    def __init__(self, directory: Path | str, size: int, rows: np.ndarray):
        """Opens the arrays.

        Args:
          directory: a prepared data set.
          size: height and width of the images in pixels.
          rows: (n,) rows of the arrays, in the order in which they are to be numbered.

        Raises:
          InputError: the data set or this size of it is missing, or a row is not in it.
        """
        self._arguments = (directory, size, np.asarray(rows, np.int64))
        self._rows = self._arguments[-1]
        self._images, self._masks = dataset.open_arrays(directory, size)
        first, last = (self._rows.min(), self._rows.max()) if len(self._rows) else (0, -1)
        if first < 0 or last >= len(self._images):
            raise InputError(
                f"{directory} has {len(self._images)} images, but rows {first} to {last} were asked for: the "
                "split belongs to another data set. Make the split again for this one."
            )

    def __reduce__(self):
        return PreparedSource, self._arguments

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        """One record: "image" (S, S) uint8, "mask" (S, S / 8) uint8, 0/1 packed by np.packbits along x."""
        row = self._rows[index]
        return {"image": np.array(self._images[row]), "mask": np.array(self._masks[row])}


def train_batches(
    directory: Path | str,
    size: int,
    rows: np.ndarray,
    batch_size: int,
    seed: int,
    augment: Augment | None = None,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    start: int = 0,
    order: np.ndarray | None = None,
) -> grain.DatasetIterator:
    """Endless training batches, shuffled anew each epoch; a batch may begin in one epoch and end in the next.

    With `order` they are those of the given order instead, and end with it.

    Args:
      directory: a prepared data set.
      size: height and width of the images in pixels.
      rows: (n,) the training rows.
      batch_size: records of a global batch; each process gets its share of every batch, a block of it.
      seed: 0 to 2**32 - 1; decides the order and the augmentation.
      augment: `augment(image (S, S) uint8, mask (S, S) uint8 0/1, rng) -> (image, mask)`; picklable when
        workers > 0.
      workers: reading processes; 0 reads in threads of this process. Workers import the main module and
        never touch an accelerator.
      process_index, process_count: this process's place among those that train together.
      start: global batches to leave out at the beginning, those that a run has taken before: what follows is the
        same whichever workers and processes there were.
      order: int (m,), places in `rows`.

    Returns:
      An iterator of {"image": (b, S, S) uint8, "mask": (b, S, S / 8) uint8 packed, "weight": (b,) float32
      ones}, to be closed by `close()`.

    Raises:
      InputError: there are no rows, or the batch does not divide among the processes.
    """
    if len(rows) == 0:
        raise InputError(f"no training images are left in {directory}: check the split.")
    source = _ordered(PreparedSource(directory, size, rows), seed, order)
    records = source.random_map(partial(_training_record, augment))
    batches = _shares(records, batch_size, start, process_index, process_count)
    # Grain would keep 500 elements ready, and here an element is a batch.
    threads = max(1, min(MAXIMUM_THREADS, cores() // max(1, workers)))
    batches = batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))
    if workers > 0:
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        batches = batches.mp_prefetch(options, worker_init_fn=_start_worker)
    return iter(batches)


def index_batches(
    count: int,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    start: int = 0,
    order: np.ndarray | None = None,
) -> grain.DatasetIterator:
    """The order of `train_batches` without the records: {"index": (b,) int32}, places in its `rows`."""
    batches = _shares(_ordered(range(count), seed, order), batch_size, start, process_index, process_count)
    batches = batches.map(lambda index: {"index": index.astype(np.int32)})
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=64)))


@dataclass(frozen=True)
class _Ordered:
    """Records in another order, some of them several times."""

    records: Sequence | PreparedSource
    order: np.ndarray

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Any:
        return self.records[int(self.order[index])]


def _ordered(records: Sequence | PreparedSource, seed: int, order: np.ndarray | None) -> grain.MapDataset:
    """The one global order: the given one, or shuffled again and again."""
    if order is not None:
        return grain.MapDataset.source(_Ordered(records, order)).seed(seed)
    return grain.MapDataset.source(records).seed(seed).shuffle().repeat()


def _shares(
    records: grain.MapDataset, batch_size: int, start: int, process_index: int, process_count: int
) -> grain.MapDataset:
    """One process's share of every global batch from batch `start` on."""
    # Nothing is ever dropped from an endless data set; without this, Grain's length overflows at batch 1.
    blocks = records.batch(_share(batch_size, process_count), drop_remainder=True)
    # The slice comes last: before it a record's number is the global one, from which Grain derives its random
    # key, and a global batch lies over the processes' devices in the order in which one process has it.
    return blocks[start * process_count + process_index :: process_count]


def eval_batches(
    directory: Path | str,
    size: int,
    rows: np.ndarray,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Record]:
    """Each row once, in order; every process gets the same number of batches of the same shape.

    Plain reads of the memory map, without Grain: a read takes far less than the prediction that the device
    does meanwhile, and nothing is random here.

    Args:
      directory: a prepared data set.
      size: height and width of the images in pixels.
      rows: (n,) the rows to evaluate.
      batch_size: records of a global batch; each process gets its share of every batch.
      process_index, process_count: this process's place among those that evaluate together.

    Returns:
      An iterator of {"image": (b, S, S) uint8, "mask": (b, S, S / 8) uint8 packed, "weight": (b,) float32,
      "row": (b,) int32}. The last batch is padded with zero images of weight 0 and row -1.

    Raises:
      InputError: the batch does not divide among the processes, or a row is not in the data set.
    """
    source = PreparedSource(directory, size, rows)
    batches = eval_places(len(source), batch_size, process_index, process_count)
    share = batches.shape[1]
    return (_padded_batch(source, batch[batch >= 0], np.asarray(rows), size, share) for batch in batches)


def eval_places(count: int, batch_size: int, process_index: int = 0, process_count: int = 1) -> np.ndarray:
    """The order of `eval_batches` without the records: int32 (batches, b), places in its `rows`; -1 fills the last.

    Raises InputError where the batch does not divide among the processes.
    """
    share = _share(batch_size, process_count)
    places = np.arange(-(-count // batch_size) * batch_size, dtype=np.int32)
    places[count:] = -1
    return places[process_index::process_count].reshape(-1, share)


def _padded_batch(source: PreparedSource, places: np.ndarray, rows: np.ndarray, size: int, share: int) -> Record:
    batch = {
        "image": np.zeros((share, size, size), np.uint8),
        "mask": np.zeros((share, size, size // 8), np.uint8),
        "weight": np.zeros(share, np.float32),
        "row": np.full(share, -1, np.int32),
    }
    for i, place in enumerate(places):
        record = source[place]
        batch["image"][i], batch["mask"][i] = record["image"], record["mask"]
        batch["weight"][i], batch["row"][i] = 1, rows[place]
    return batch


def _share(batch_size: int, process_count: int) -> int:
    """This process's part of a global batch."""
    if batch_size < 1 or batch_size % process_count:
        raise InputError(
            f"a batch of {batch_size} cannot be divided among {process_count} processes: choose a multiple of "
            f"{process_count}."
        )
    return batch_size // process_count


def _training_record(augment: Augment | None, record: Record, rng: np.random.Generator) -> Record:
    image, mask = record["image"], record["mask"]
    if augment is not None:
        image, mask = augment(image, np.unpackbits(mask, axis=-1), rng)
        mask = np.packbits(mask, axis=-1)
    return {"image": image, "mask": mask, "weight": np.float32(1)}  # becomes an array in its batch


def _start_worker(worker: int, workers: int) -> None:
    """Runs in a new worker process."""
    # Batch systems signal all processes of a job; the one that trains still needs its workers to save and end.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    one_thread_each()
    # Grain may have imported JAX here already, which then no longer reads the variable.
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_platforms", "cpu")


def _end_with_parent() -> None:
    """Ends this worker when its parent was killed; Grain's workers would wait forever."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
