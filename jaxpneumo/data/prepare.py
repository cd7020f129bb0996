"""`jaxpneumo prepare`: DICOM files and a label csv become memory-mapped arrays, checked once and for all.

Every file is read once, in parallel processes that write straight into the arrays. The data set grows in a
temporary folder beside the output and takes its name at the end, so a half-made one is never seen. Whatever
is odd is set aside in quarantine.csv with its reason; nothing becomes negative because it was not understood.

Images of any shape are squashed to squares, as ChestX-ray14 itself, from which the challenge's images come,
was squashed to 1024 x 1024. Images are resized by area average, masks by area average and then >= 0.5 (where
the native size is the smaller one, OpenCV interpolates linearly instead).
"""

import argparse
import hashlib
import os
import secrets
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from jaxpneumo.data import dataset, dicom, rle, splits
from jaxpneumo.data import labels as label_files
from jaxpneumo.errors import InputError
from jaxpneumo.progress import progress

UNREADABLE = "unreadable image"
NO_LABELS = "image without labels"
NO_IMAGE = "labels without image"
DUPLICATE = "duplicate id"
BAD_LABEL = "invalid run-length code"


@dataclass(frozen=True)
class Report:
    """What a preparation did.

    Attributes:
      images, positive: in the data set.
      set_aside: number of quarantined entries by reason.
      images_per_second: steady rate, from when every process was at work; 0 if that was too short.
    """

    images: int
    positive: int
    set_aside: dict[str, int]
    images_per_second: float


@dataclass(frozen=True)
class _Job:
    """What every process needs to know."""

    images: Path
    folder: Path
    sizes: tuple[int, ...]
    labels: label_files.Labels
    patients: dict[str, label_files.Patient] | None
    key: bytes


@dataclass(frozen=True)
class _Outcome:
    """What became of one file: `index` and `code` if it is in the arrays, else `reason` and `detail`."""

    row: int
    source: str
    image_id: str
    reason: str = ""
    detail: str = ""
    index: dict[str, Any] | None = None
    code: str = ""
    synthetic: bool = False
    process: int = 0
    started: float = 0.0
    ended: float = 0.0


def prepare(
    images: Path,
    labels: Path,
    output: Path,
    sizes: tuple[int, ...] = (256, 512),
    patients: Path | None = None,
    patient_key: Path | None = None,
    workers: int | None = None,
    split: str = "random",
    validation_fraction: float = 0.1,
    seed: int = 0,
    quiet: bool = False,
) -> Report:
    """Makes a prepared data set (see `jaxpneumo.data.dataset`) of DICOM files and their labels.

    Args:
      images: folder with the DICOM files, at any depth.
      labels: ImageId,EncodedPixels; ImageId is a SOP instance UID or a file name without its ending.
      output: folder to make; must not exist, or be empty.
      sizes: side lengths of the arrays in pixels, multiples of 32.
      patients: csv with ImageId,patient and possibly sex,age,view; by default the DICOM header is asked.
      patient_key: file whose bytes key the hash of the patients' ids, so that several data sets agree on
        them; by default the key is random and forgotten.
      workers: processes; None = one a core, 1 = none beside this one.
      split, validation_fraction, seed: of the suggested splits.json, as in `splits.split_rows`.
      quiet: no progress bar.

    Raises:
      InputError: wrong arguments, a label or patients file that cannot be understood, or no usable image.
    """
    images, output = Path(images), Path(output)
    sizes = tuple(sorted(set(sizes)))
    workers = _cores() if workers is None else workers
    _check_arguments(images, output, sizes, workers)
    files = _dicom_files(images)
    splits.check(split, validation_fraction)
    table = label_files.read_labels(labels)
    people = label_files.read_patients(patients) if patients else None
    if people is not None and not people.keys() & table.codes.keys():
        raise InputError(f"{patients} lists none of the images in {labels}. Give the one for them.")
    key = label_files.read_key(patient_key) if patient_key else secrets.token_bytes(32)
    output.parent.mkdir(parents=True, exist_ok=True)
    _check_space(output.parent, len(files), sizes)

    with _folder_renamed_at_end(output) as folder:
        dataset.create_arrays(folder, len(files), sizes)
        job = _Job(images, folder, sizes, table, people, key)
        outcomes = _run(job, files, workers, quiet)
        kept, set_aside = _sort_out(outcomes, table)
        if not kept:
            raise InputError(
                f"None of the {len(files)} files in {images} could be used. The first is set aside as "
                f"{set_aside[0]['reason']}: {set_aside[0]['detail']}"
            )
        dataset.keep_rows(folder, [outcome.row for outcome in kept], len(files), sizes)
        dataset.write_index(folder, [outcome.index for outcome in kept])
        dataset.write_labels(folder, {outcome.image_id: outcome.code for outcome in kept})
        dataset.write_quarantine(folder, set_aside)
        positive = sum(outcome.index["mask_area"] > 0 for outcome in kept)
        made_from = {
            "images": images.resolve().name,
            "labels": Path(labels).name,
            "patients": Path(patients).name if patients else None,
            "patient_key_given": patient_key is not None,
            "resize": "squashed; images by area average, masks by area average >= 0.5",
        }
        synthetic = any(outcome.synthetic for outcome in kept)
        dataset.write_info(folder, sizes, len(kept), positive, len(set_aside), synthetic, made_from)
        index = dataset.read_index(folder)
        train, validation, how = splits.split_rows(index, split, validation_fraction, seed)
        how = how["method"], how["validation_fraction"], how["seed"]
        splits.write_splits(folder / "splits.json", index.image_id, train, validation, *how)
    reasons = Counter(entry["reason"] for entry in set_aside)
    return Report(len(kept), positive, dict(reasons), _steady_rate(outcomes))


# The worker processes: one file at a time, bytes read once for checksum, header, pixels and every size.

_job: _Job
_arrays: dict[int, tuple[np.ndarray, np.ndarray]]


def _start_worker(job: _Job, single_thread: bool = True) -> None:
    global _job, _arrays
    _job = job
    _arrays = {size: dataset.arrays_to_fill(job.folder, size) for size in job.sizes}
    if single_thread:  # the processes fill the cores
        cv2.setNumThreads(1)


def _prepare_file(task: tuple[int, Path]) -> _Outcome:
    row, path = task
    started = time.monotonic()
    source = path.relative_to(_job.images).as_posix()
    fields = _prepare_image(row, path, source)
    return _Outcome(row, source, process=os.getpid(), started=started, ended=time.monotonic(), **fields)


def _prepare_image(row: int, path: Path, source: str) -> dict[str, Any]:
    """Fills the file's row of all arrays; the fields of its outcome."""
    try:
        data = path.read_bytes()
        radiograph = dicom.parse(data, source)
    except OSError as error:
        return {"image_id": dicom.file_id(path), "reason": UNREADABLE, "detail": error.strerror or str(error)}
    except InputError as error:
        return {"image_id": dicom.file_id(path), "reason": UNREADABLE, "detail": str(error)}
    image_id = next((name for name in (radiograph.uid, dicom.file_id(path)) if name in _job.labels.codes), None)
    if image_id is None:
        detail = f"{_job.labels.path.name} has no line for it. Add one (-1 for no pneumothorax)."
        return {"image_id": radiograph.uid, "reason": NO_LABELS, "detail": detail}
    height, width = radiograph.image.shape
    try:
        mask, label_rows = label_files.mask(_job.labels, image_id, height, width)
    except InputError as error:
        return {"image_id": image_id, "reason": BAD_LABEL, "detail": str(error)}

    area = int(np.count_nonzero(mask))
    for size, (images, masks) in _arrays.items():
        images[row] = cv2.resize(radiograph.image, (size, size), interpolation=cv2.INTER_AREA)
        if area:
            # In floating point: bytes would be rounded before the threshold.
            share = cv2.resize(mask.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
            masks[row] = np.packbits(share >= 0.5, axis=-1)
    person = label_files.Patient(radiograph.patient_id, radiograph.sex, radiograph.age, radiograph.view)
    if _job.patients is not None:
        # Ids of two kinds must not mix: an image that the patients file does not list has no known patient.
        person = _job.patients.get(image_id, label_files.Patient("", person.sex, person.age, person.view))
    index = {
        "ImageId": image_id,
        "patient": label_files.pseudonym(person.patient, _job.key),
        "sex": person.sex or radiograph.sex,
        "age": radiograph.age if person.age is None else person.age,
        "view": person.view or radiograph.view,
        "height": height,
        "width": width,
        "mask_area": area,
        "label_rows": label_rows,
        "source": source,
        "sha256": hashlib.sha256(data).hexdigest(),
        **dict(zip(dataset.SPACING, radiograph.pixel_spacing or (None, None), strict=True)),
    }
    code = rle.encode(mask) if area else rle.EMPTY
    return {"image_id": image_id, "index": index, "code": code, "synthetic": radiograph.synthetic}


def _run(job: _Job, files: list[Path], workers: int, quiet: bool) -> list[_Outcome]:
    """Prepares all files; outcomes in their order."""
    bar = {"total": len(files), "unit": "image", "description": "prepare", "quiet": quiet}
    tasks = list(enumerate(files))
    if workers == 1:
        _start_worker(job, single_thread=False)
        outcomes = list(progress(map(_prepare_file, tasks), **bar))
        _arrays.clear()
        return outcomes
    chunk = max(1, min(16, len(tasks) // (32 * workers)))
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (job,)) as pool:
        try:
            return list(progress(pool.map(_prepare_file, tasks, chunksize=chunk), **bar))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _sort_out(outcomes: list[_Outcome], table: label_files.Labels) -> tuple[list[_Outcome], list[dict[str, str]]]:
    """The outcomes to keep, by ImageId, and the entries of quarantine.csv."""
    same_id: dict[str, list[_Outcome]] = {}
    for outcome in outcomes:
        if not outcome.reason:
            same_id.setdefault(outcome.image_id, []).append(outcome)
    kept, set_aside = [], []
    for outcome in outcomes:
        reason, detail = outcome.reason, outcome.detail
        if not reason and (detail := _duplicate(outcome, same_id[outcome.image_id])):
            reason = DUPLICATE
        if reason:
            entry = {"file": outcome.source, "ImageId": outcome.image_id, "reason": reason, "detail": detail}
            set_aside.append(entry)
        else:
            kept.append(outcome)
    seen = {outcome.image_id for outcome in outcomes}
    for image_id, rows in table.codes.items():
        if image_id not in seen:
            detail = f"No file has this id ({table.path.name} line {rows[0][0]})."
            set_aside.append({"file": "", "ImageId": image_id, "reason": NO_IMAGE, "detail": detail})
    return sorted(kept, key=lambda outcome: outcome.image_id), set_aside


def _duplicate(outcome: _Outcome, same_id: list[_Outcome]) -> str:
    """Why a file is set aside for others with its id; empty if it is not."""
    if len({other.index["sha256"] for other in same_id}) > 1:
        return "Files with this id differ; none is used. Remove the wrong ones."
    return "" if outcome is same_id[0] else f"A copy of {same_id[0].source}, which is used."


def _steady_rate(outcomes: list[_Outcome]) -> float:
    """Images a second from when the last process has begun to work."""
    first: dict[int, float] = {}
    for outcome in outcomes:
        first[outcome.process] = min(outcome.started, first.get(outcome.process, outcome.started))
    ready = max(first.values())
    steady = [outcome for outcome in outcomes if outcome.started >= ready]
    seconds = max(outcome.ended for outcome in outcomes) - ready
    return len(steady) / seconds if len(steady) > 1 and seconds > 0 else 0.0


# Arguments and files


def _check_arguments(images: Path, output: Path, sizes: tuple[int, ...], workers: int) -> None:
    if not sizes or any(size < 32 or size % 32 for size in sizes):
        raise InputError(f"The sizes {sizes} are not all multiples of 32; give for instance --sizes 256,512.")
    if workers < 1:
        raise InputError(f"{workers} workers cannot work; give --workers 1 or more.")
    if not images.is_dir():
        raise InputError(f"{images} is not a folder. Give the one with the DICOM files as --images.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} exists and is not an empty folder. Remove it or choose another --output.")


def _dicom_files(images: Path) -> list[Path]:
    """Files ending in .dcm, .dicom or nothing, by name: that mostly is the order of the ids."""
    files = [path for path in images.rglob("*") if _may_be_dicom(path.name) and path.is_file()]
    if not files:
        raise InputError(f"{images} holds no DICOM files (.dcm, .dicom or no ending). Give the right folder.")
    return sorted(files, key=lambda path: (dicom.file_id(path), path))


def _may_be_dicom(name: str) -> bool:
    if name.startswith(".") or name == "DICOMDIR":
        return False
    # Exports often name files by the bare UID, whose last number looks like an ending.
    ending = Path(name).suffix.lower().lstrip(".")
    return ending in ("", "dcm", "dicom") or ending.isdigit()


def _check_space(folder: Path, count: int, sizes: tuple[int, ...]) -> None:
    # Writing to a memory-mapped file on a full disk kills the process without a word.
    needed = sum(count * size * size * 9 // 8 for size in sizes)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{folder} has {free / 1e9:.1f} GB free and {count} images need {needed / 1e9:.1f} GB. "
            "Make room, or choose another --output or fewer --sizes."
        )


@contextmanager
def _folder_renamed_at_end(output: Path) -> Iterator[Path]:
    folder = output.with_name(f"{output.name}.tmp-{os.getpid()}")
    folder.mkdir()
    try:
        yield folder
        os.replace(folder, output)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# The verb


def main(argv: list[str]) -> int:
    """`jaxpneumo prepare`; returns the exit code: 0 done, 2 wrong use or bad input, 3 some set aside."""
    args = _parser().parse_args(argv)
    try:
        report = prepare(**vars(args))
    except InputError as error:
        print(f"jaxpneumo prepare: {error}", file=sys.stderr)
        return 2
    except BrokenProcessPool:
        print("jaxpneumo prepare: a process was killed; out of memory? Try --workers 1.", file=sys.stderr)
        return 1
    count = sum(report.set_aside.values())
    print(
        f"{report.images} images, {report.positive} positive, {report.images - report.positive} negative, "
        f"{count} set aside; {report.images_per_second:.0f} images/s"
    )
    if not count:
        return 0
    reasons = ", ".join(f"{number} {reason}" for reason, number in report.set_aside.items())
    where = args.output / "quarantine.csv"
    print(f"Set aside, not in the data set: {reasons}. {where} names each and says why.", file=sys.stderr)
    return 3


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jaxpneumo prepare",
        description="Turns DICOM radiographs and a label csv into the arrays that everything else reads.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  jaxpneumo prepare --images siim/dicom-images-train --labels siim/train-rle.csv --output data/siim
  jaxpneumo prepare --images siim/dicom-images-train --labels siim/train-rle.csv --output data/siim \\
      --patients patients.csv --split patient --sizes 256,512,1024

exit codes: 0 done; 2 wrong use or bad input, nothing written; 3 done, but something was set aside""",
    )
    add = parser.add_argument
    add("--images", type=Path, required=True, metavar="DIR", help="folder with the DICOM files, at any depth")
    add("--labels", type=Path, required=True, metavar="CSV", help="ImageId,EncodedPixels; may end in .gz")
    add("--output", type=Path, required=True, metavar="DIR", help="folder to make")
    add("--sizes", type=_sizes, default=(256, 512), metavar="S,S", help="side lengths (default: 256,512)")
    add("--patients", type=Path, metavar="CSV", help="ImageId,patient[,sex,age,view]; default: DICOM header")
    add("--patient-key", type=Path, metavar="FILE", help="key of the hash (default: random, not kept)")
    add("--workers", type=int, metavar="N", help="processes (default: one a core)")
    add("--split", default="random", metavar="HOW", help="random (default), patient, or a splits.json")
    add("--validation-fraction", type=float, default=0.1, metavar="F", help="default: 0.1")
    add("--seed", type=int, default=0, metavar="N", help="of the split (default: 0)")
    add("--quiet", action="store_true", help="no progress bar")
    return parser


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of sizes such as 256,512") from None
