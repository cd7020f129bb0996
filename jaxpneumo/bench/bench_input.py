"""`jaxpneumo bench input`: the input path alone, from a prepared data set to batches on the device.

The benchmark writes a prepared data set of noise. It reads the data from the operating system's cache, like training
does from the second epoch on.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxpneumo.augment import host
from jaxpneumo.bench.measure import finish, rates, seconds_per_call
from jaxpneumo.bench.options import PARSERS
from jaxpneumo.data import dataset
from jaxpneumo.data.source import index_batches, train_batches
from jaxpneumo.process.errors import DONE
from jaxpneumo.run.sharding import check_batch_size, make_mesh, place, replicated, split
from jaxpneumo.train.step import take_batch

# Probabilities of A1..A4 in the configs.
PROBABILITIES = {"flip": 0.5, "intensity": 0.3, "distortion": 0.3, "crop": 0.25}


def write_noise(directory: Path, count: int, size: int, seed: int = 0) -> None:
    """Writes a prepared data set with `count` images of noise: the arrays and the files needed to open them."""
    rng = np.random.default_rng(seed)
    dataset.create_arrays(directory, count, (size,))
    images, masks = dataset.open_rows(directory, (size,))[size]
    for row in range(count):
        images.write(row, rng.integers(0, 256, (size, size), np.uint8))
        masks.write(row, np.packbits(rng.random((size, size)) < 0.1, axis=-1))
    images.close()
    masks.close()
    dataset.write_info(directory, (size,), count, count, 0, True, {"noise": seed})


@contextmanager
def noise(count: int, size: int, scratch: Path | None = None) -> Iterator[Path]:
    """Makes a prepared data set of noise, and removes it at the end."""
    folder = Path(tempfile.mkdtemp(prefix="jaxpneumo-bench-", dir=scratch))
    try:
        write_noise(folder, count, size)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def bench_input(
    size: int,
    batch: int,
    repeats: int = 5,
    calls: int | None = None,
    count: int | None = None,
    workers: int = 0,
    scratch: Path | None = None,
) -> dict[str, Any]:
    """Times how fast training batches arrive on the device.

    Args:
      size: height and width of the images.
      batch: global batch size.
      repeats, calls: see `seconds_per_call`.
      count: number of images in the data set; None uses 512 or two batches, whichever is more.
      workers: number of reading processes; 0 reads in threads.
      scratch: folder for the data set; None uses the system's temporary folder.

    Returns:
      {"size", "batch", "images", "workers", "resident", "streaming", "host"}. The last three are the input paths:
      gathered from the data set on the device; read without augmentation; read and augmented by the host engine. Each
      has {"images_per_second", "seconds", "repeats", "batches_per_second"}.

    Raises:
      InputError: the batch size is not a multiple of the number of devices.
    """
    mesh = make_mesh()
    check_batch_size(batch, mesh.size, "input")
    count = count or max(512, 2 * batch)
    result: dict[str, Any] = {"size": size, "batch": batch, "images": count, "workers": workers}
    sharding, rows = split(mesh), np.arange(count)
    with noise(count, size, scratch) as directory:
        for way, augment in (("streaming", None), ("host", host.make_augment(**PROBABILITIES, size=size))):
            batches = train_batches(directory, size, rows, batch, 0, augment, workers)
            seconds = seconds_per_call(lambda b=batches: place(next(b), sharding), repeats, calls)
            batches.close()
            result[way] = _with_batches(rates(batch, seconds))
        images, masks = dataset.open_arrays(directory, size)
        resident = place({"image": images, "mask": masks}, replicated(mesh))
    take, batches = jax.jit(take_batch), index_batches(count, batch, 0)
    seconds = seconds_per_call(lambda: take(resident, place(next(batches), sharding)), repeats, calls)
    batches.close()
    result["resident"] = _with_batches(rates(batch, seconds))
    return result


def _with_batches(figures: dict[str, Any]) -> dict[str, Any]:
    return {**figures, "batches_per_second": 1 / figures["seconds"]}


def main(argv: list[str]) -> int:
    """Runs `jaxpneumo bench input`."""
    options = PARSERS["input"]().parse_args(argv)
    result = bench_input(
        options.size,
        options.batch,
        options.repeats,
        options.calls,
        options.images,
        options.workers,
        options.scratch,
    )
    lines = [f"input path at {options.size}, batch {options.batch}, {jax.device_count()} devices"]
    for way, title in (
        ("resident", "lies on the device"),
        ("streaming", "read and sent"),
        ("host", "augmented on the host"),
    ):
        images, batches = result[way]["images_per_second"], result[way]["batches_per_second"]
        lines.append(f"  {title:22} {images:9.0f} images/s {batches:8.1f} batches/s")
    finish(result, lines, options.output)
    return DONE
