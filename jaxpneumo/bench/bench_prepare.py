"""`jaxpneumo bench prepare`: compares preparation (DICOM files to arrays) with pure decoding of the same files.

Machines are shared and clock rates vary. So preparation and decoding are measured alternately, and their ratio is the
result that counts.
"""

import csv
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from jaxpneumo.bench.options import PARSERS
from jaxpneumo.data import ingest, labels
from jaxpneumo.data import prepare as preparation
from jaxpneumo.dicom import dicom
from jaxpneumo.process.atomic import write_json
from jaxpneumo.process.errors import DONE, InputError
from jaxpneumo.process.machine import cores, peak_memory
from jaxpneumo.process.progress import progress_bar
from jaxpneumo.process.workers import keep_memory

_context = get_context("spawn")


def bench_prepare(
    images: Path,
    labels_path: Path | None = None,
    count: int = 1000,
    repeats: int = 5,
    workers: int | None = None,
    sizes: tuple[int, ...] = (256, 512),
    scratch: Path | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Compares preparation with pure decoding: cv2.imdecode of the same frames in the same number of processes.

    The images are repeated under new SOP instance UIDs up to `count`. Preparation and decoding alternate. Decoding is
    measured twice: with the C library's default memory handling, and with freed memory kept in the process, as in
    preparation. cv2 allocates a new array for every image; getting its memory from the system can take a third of the
    time.

    The rate of preparation is measured from the moment when all processes work until the last image. Its processor
    time covers all processes, including reading, writing, communication and collecting of results.

    Args:
      images: folder with JPEG Baseline DICOM files.
      labels_path: label csv of the images; None means no pneumothorax in any image.
      count: number of images to prepare; a steady rate needs at least some hundreds.
      repeats: repeats of each measurement; the results are medians.
      workers: number of processes; None uses one per core, at least 2.
      sizes: sizes of the arrays.
      scratch: folder for files and arrays, removed at the end; None uses the system's temporary folder.
      quiet: shows no progress bar.

    Returns:
      {"images", "workers", "sizes", "repeats", "decode_images_per_second", "kept_images_per_second",
      "prepare_images_per_second" (one value per repeat), "decode", "kept", "prepare" (medians of these rates), "ratio",
      "kept_ratio" (rate of preparation / rate of decoding without and with kept memory, medians of the repeats),
      "decode_busy_seconds", "kept_busy_seconds", "prepare_busy_seconds" (processor time per image, medians),
      "busy_ratio", "kept_busy_ratio" (the same ratios in processor time, which depends less on other users of the
      machine), "parent_peak_bytes", "worker_peak_bytes" (maximum of all repeats), "prepare_seconds" (time of each
      whole preparation, including start and end)}.

    Raises:
      InputError: there are no files, or they are not JPEG Baseline DICOM.
    """
    team = max(2, cores()) if workers is None else workers
    folder = Path(tempfile.mkdtemp(prefix="jaxpneumo-bench-", dir=scratch))
    rates: dict[str, list[float]] = {"decode": [], "kept": [], "prepare": []}
    busy: dict[str, list[float]] = {"decode": [], "kept": [], "prepare": []}
    seconds, parents, team_peaks = [], [], []
    try:
        files = repeat_files(Path(images), labels_path, folder, count, quiet)
        os.sync()  # finishes writing the copies before the measurements start
        for _ in progress_bar(range(repeats), unit="repeat", description="decode and prepare", quiet=quiet):
            measured = {"decode": _decode_rate(files, team, False), "kept": _decode_rate(files, team, True)}
            rate, processor, took, parent, worker = _in_fresh_process(_prepare_once, folder, sizes, team)
            measured["prepare"] = rate, processor
            for what, (rate, processor) in measured.items():
                rates[what].append(rate)
                busy[what].append(processor)
            seconds.append(took)
            parents.append(parent)
            team_peaks.append(worker)
    finally:
        shutil.rmtree(folder, ignore_errors=True)

    def ratio(values: dict[str, list[float]], pure: str) -> float:
        return statistics.median(a / b for a, b in zip(values["prepare"], values[pure], strict=True))

    return {
        "images": count,
        "workers": team,
        "sizes": list(sizes),
        "repeats": repeats,
        **{f"{what}_images_per_second": values for what, values in rates.items()},
        **{what: statistics.median(values) for what, values in rates.items()},
        "ratio": ratio(rates, "decode"),
        "kept_ratio": ratio(rates, "kept"),
        **{f"{what}_busy_seconds": statistics.median(values) for what, values in busy.items()},
        "busy_ratio": 1 / ratio(busy, "decode"),
        "kept_busy_ratio": 1 / ratio(busy, "kept"),
        "prepare_seconds": seconds,
        "parent_peak_bytes": max(parents),
        "worker_peak_bytes": max(team_peaks),
    }


def repeat_files(images: Path, labels_path: Path | None, folder: Path, count: int, quiet: bool) -> list[Path]:
    """Writes `count` files and their labels below `folder`. It repeats the images under new UIDs."""
    originals = ingest.find_files(images)
    codes = labels.read_labels(labels_path).codes if labels_path else {}
    (folder / "dicom").mkdir()
    files = []
    with open(folder / "labels.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["ImageId", "EncodedPixels"])
        for number in progress_bar(range(count), total=count, description="copy", quiet=quiet):
            original = originals[number % len(originals)]
            data = original.read_bytes()
            uid = dicom.read_uid(data)
            new = f"2.25.1{number:0{max(len(uid) - 6, 1)}d}"
            if len(new) != len(uid):
                raise InputError(f"{original} has no SOP instance UID that could be changed. Give other files.")
            path = folder / "dicom" / f"{new}.dcm"
            path.write_bytes(data.replace(uid.encode(), new.encode()))
            files.append(path)
            rows = codes.get(uid, codes.get(dicom.file_id(original), [(0, "-1")]))
            table.writerows((new, code) for _, code in rows)
    return files


def _decode_rate(files: list[Path], team: int, keep: bool) -> tuple[float, float]:
    """Images per second of cv2.imdecode alone in all processes together, and processor seconds per image."""
    barrier, results = _context.Barrier(team), _context.SimpleQueue()
    processes = [
        _context.Process(target=_decode, args=(files[first::team], keep, barrier, results), daemon=True)
        for first in range(team)
    ]
    for process in processes:
        process.start()
    spans = [results.get() for _ in processes]
    for process in processes:
        process.join()
    if not all(spans):
        raise InputError("the files are not JPEG Baseline DICOM, which is what cv2.imdecode can be compared with.")
    seconds = max(end for _, end, _ in spans) - min(start for start, *_ in spans)
    return len(files) / seconds, sum(busy for *_, busy in spans) / len(files)


def _decode(files: list[Path], keep: bool, barrier: Any, results: Any) -> None:
    cv2.setNumThreads(1)
    if keep:
        keep_memory()
    frames = [dicom.jpeg_frame(path.read_bytes()) for path in files]
    barrier.wait()
    start, busy = time.monotonic(), time.process_time()
    decoded = [cv2.imdecode(np.frombuffer(frame, np.uint8), cv2.IMREAD_UNCHANGED) is not None for frame in frames]
    results.put((start, time.monotonic(), time.process_time() - busy) if all(decoded) else ())


def _in_fresh_process(function: Callable, *arguments: Any) -> Any:
    """Runs a function in a new process, so that its peak memory is measured separately. Returns its result."""
    ours, theirs = _context.Pipe(duplex=False)
    process = _context.Process(target=_answer, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        raise InputError("the preparation that was to be measured failed; see above.") from None
    finally:
        process.join()


def _answer(pipe: Any, function: Callable, arguments: tuple) -> None:
    pipe.send(function(*arguments))


def _prepare_once(folder: Path, sizes: tuple[int, ...], team: int) -> tuple[float, float, float, int, int]:
    """Images per second, processor seconds per image, total seconds, peak bytes of this process and of any worker."""
    start = time.monotonic()
    report = preparation.prepare(
        folder / "dicom",
        folder / "labels.csv",
        folder / "prepared",
        sizes,
        workers=team,
        quiet=True,
        duplicate_pixels="keep",
    )
    seconds = time.monotonic() - start
    shutil.rmtree(folder / "prepared")
    return report.images_per_second, report.busy_seconds, seconds, peak_memory(), max(report.worker_peaks, default=0)


def main(argv: list[str]) -> int:
    """Runs `jaxpneumo bench prepare`."""
    options = PARSERS["prepare"]().parse_args(argv)
    arguments = vars(options)
    output = arguments.pop("output")
    result = bench_prepare(**arguments)
    if output:
        write_json(output, result)
    mega = 1 / 2**20
    print(f"{result['images']} images, {result['workers']} processes, medians of {result['repeats']}")
    for title, what in (("cv2.imdecode alone", "decode"), ("  its memory kept", "kept"), ("prepare", "prepare")):
        print(
            f"  {title:18} {result[what]:8.0f} images/s  {result[f'{what}_busy_seconds'] * 1000:6.2f} ms of a processor"
        )
    print(
        f"  prepare reaches {result['ratio']:.0%} of decoding, {result['busy_ratio']:.0%} in processor time; with "
        f"memory kept {result['kept_ratio']:.0%} and {result['kept_busy_ratio']:.0%}"
    )
    print(
        f"  peak memory        {result['parent_peak_bytes'] * mega:8.0f} MiB parent, "
        f"{result['worker_peak_bytes'] * mega:.0f} MiB largest worker"
    )
    return DONE
