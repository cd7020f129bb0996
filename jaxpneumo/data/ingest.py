"""Turns one image file into its rows of the arrays: the work of each process of `jaxpneumo prepare`.

The bytes of a file are read once, for checksum, header, pixels and every size.
"""

import hashlib
import os
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxpneumo.data import dataset, finder, mask_files, reconcile
from jaxpneumo.data import labels as label_files
from jaxpneumo.data.mask_files import MaskFiles
from jaxpneumo.data.reconcile import Outcome
from jaxpneumo.data.resize import resize_to_squares
from jaxpneumo.dicom import frontal, patients
from jaxpneumo.dicom.radiograph import UNREADABLE, WRONG_SIZE, Radiograph, RadiographError, file_id, read_file
from jaxpneumo.process import run_report
from jaxpneumo.process import workers as processes
from jaxpneumo.process.errors import InputError
from jaxpneumo.process.files import is_unchanged, printable
from jaxpneumo.process.progress import progress_bar
from jaxpneumo.process.runtime import one_thread_each


@dataclass(frozen=True)
class Job:
    """What every process needs to know.

    Attributes:
      images: the folder that the files lie in.
      folder: where the arrays are.
      sizes: their side lengths.
      labels, patients: the tables; None = ask the header.
      key: of the hash of the patients' ids.
      names: source as text -> the id that a file has by its name (`ids.file_names`).
      native_size: height and width that images must have; None = any.
      require_frontal: whether the header must say that it is a frontal radiograph of the chest.
    """

    images: Path
    folder: Path
    sizes: tuple[int, ...]
    labels: label_files.Labels | MaskFiles
    patients: dict[str, label_files.Patient] | None
    key: bytes
    names: dict[str, str]
    native_size: int | None = None
    require_frontal: bool = False


@dataclass(frozen=True)
class Span:
    """When which process worked on a file, in seconds of the machine's clock.

    `busy`: processor seconds since the previous file, including the time to receive the task and send the result.
    """

    process: int
    started: float
    ended: float
    busy: float = 0.0


_job: Job
_rows: dict[int, tuple[dataset.RowFile, dataset.RowFile]]
_busy: float  # seconds of the processor up to the last file


def find_files(images: Path) -> list[Path]:
    """The files of `finder.find`, sorted by name, which is mostly the order of the ids.

    Raises:
      InputError: there are none.
    """
    files = [images / source for source in finder.find(images).sources]
    run_report.read(images, len(files))
    return sorted(files, key=lambda path: (file_id(path), path))


def start(job: Job, single_thread: bool = True) -> None:
    """Makes a process ready for `ingest`."""
    import jaxpneumo.dicom.dicom  # noqa: F401  so that loading pydicom counts for no file

    global _job, _rows, _busy
    _job = job
    _rows = dataset.open_rows(job.folder, job.sizes)
    if single_thread:  # the processes fill the cores
        one_thread_each()
        processes.keep_memory()
    _busy = time.process_time()


def stop() -> None:
    """Closes what `start` opened."""
    for pair in _rows.values():
        for file in pair:
            file.close()
    _rows.clear()


def ingest(task: tuple[int, Path]) -> tuple[Outcome, Span]:
    """Fills one row of all arrays from one file, or gives the reason why the file cannot be used.

    Raises:
      OSError: the arrays cannot be written.
    """
    global _busy
    row, path = task
    started, before = time.monotonic(), _busy
    source = path.relative_to(_job.images).as_posix()
    outcome = Outcome(row=row, source=source, **_ingest(row, path, source))
    _busy = time.process_time()
    return outcome, Span(os.getpid(), started, time.monotonic(), _busy - before)


def recover(entries: list[dict[str, Any]], files: list[Path], job: Job, quiet: bool) -> dict[int, Outcome]:
    """Outcomes of an earlier run, by row: only of unchanged files whose rows still have their checksums."""
    latest = {entry["row"]: entry for entry in entries}
    found: dict[int, Outcome] = {}
    rows = dataset.open_rows(job.folder, job.sizes) if latest else {}
    bar = progress_bar(latest.values(), description="check what is there", quiet=quiet or not latest)
    for outcome in (Outcome(**{**entry, "stamp": tuple(entry["stamp"])}) for entry in bar):
        same = is_unchanged(files[outcome.row], outcome.stamp)
        if same and (outcome.reason or checksums(rows, outcome.row)[1] == outcome.checksum):
            found[outcome.row] = outcome
    return found


def steady_rate(spans: list[Span | None]) -> float:
    """Images per second from the moment when all processes work; 0 if that time was too short."""
    worked = [span for span in spans if span is not None]
    first: dict[int, float] = {}
    for span in worked:
        first[span.process] = min(span.started, first.get(span.process, span.started))
    ready = max(first.values(), default=0.0)
    steady = [span for span in worked if span.started >= ready]
    seconds = max((span.ended for span in worked), default=0.0) - ready
    return len(steady) / seconds if len(steady) > 1 and seconds > 0 else 0.0


def checksums(rows: dict[int, tuple[dataset.RowFile, dataset.RowFile]], row: int) -> tuple[int, int]:
    """CRC-32 of one row of all images, and of all images and masks, as they are in the arrays."""
    pairs = [(images.read(row), masks.read(row)) for images, masks in rows.values()]
    return _checksums([image for image, _ in pairs], [mask for _, mask in pairs])


def _checksums(images: list, masks: list) -> tuple[int, int]:
    pixels = 0
    for image in images:
        pixels = zlib.crc32(image, pixels)
    everything = pixels
    for mask in masks:
        everything = zlib.crc32(mask, everything)
    return pixels, everything


def _ingest(row: int, path: Path, source: str) -> dict[str, Any]:
    """The fields of a file's outcome."""
    from jaxpneumo.dicom import dicom

    shown = printable(source)
    name = _job.names[shown]
    try:
        data, stamped = read_file(path, shown)
    except RadiographError as error:
        return {"image_id": name, "reason": error.reason, "detail": str(error)}
    except OSError as error:
        return {"image_id": name, "reason": UNREADABLE, "detail": error.strerror or str(error)}
    try:
        radiograph = dicom.parse_image(data, shown)
    except RadiographError as error:
        image_id, _ = reconcile.match(dicom.read_uid(data) or name, name, _job.labels.codes)
        return {"image_id": image_id, "reason": error.reason, "detail": str(error), "stamp": stamped}
    image_id, problem = reconcile.match(own_id(radiograph, data, source, name), name, _job.labels.codes)
    remarks = (*radiograph.remarks, *frontal.doubts(radiograph))
    found = {"image_id": image_id, "stamp": stamped, "remarks": remarks}
    if reason_and_detail := _refusal(radiograph, image_id, problem):
        return {**found, **dict(zip(("reason", "detail"), reason_and_detail, strict=True))}
    height, width = radiograph.image.shape
    try:
        mask, code, label_rows = _mask(_job.labels, image_id, height, width)
    except InputError as error:
        reason = reconcile.BAD_MASK if isinstance(_job.labels, MaskFiles) else reconcile.BAD_LABEL
        return {**found, "reason": reason, "detail": str(error)}

    area = 0 if mask is None else int(np.count_nonzero(mask.view(bool)))
    pixels, checksum = _fill(row, radiograph.image, mask)
    person = label_files.Patient(radiograph.patient_id, radiograph.sex, radiograph.age, radiograph.view)
    if _job.patients is not None:
        # Ids of two kinds must not mix: an image that the patients file does not list has no known patient.
        person = _job.patients.get(image_id, label_files.Patient("", person.sex, person.age, person.view))
    index = {
        "ImageId": image_id,
        "patient": label_files.pseudonym(patients.name(person.patient), _job.key),
        "sex": person.sex or radiograph.sex,
        "age": radiograph.age if person.age is None else person.age,
        "view": person.view or radiograph.view,
        "height": height,
        "width": width,
        "mask_area": area,
        "label_rows": label_rows,
        "source": shown,
        "sha256": hashlib.sha256(data).hexdigest(),
        **dict(zip(dataset.SPACING, radiograph.pixel_spacing or (None, None), strict=True)),
    }
    synthetic = radiograph.synthetic
    return {**found, "index": index, "code": code, "synthetic": synthetic, "pixels": pixels, "checksum": checksum}


def own_id(radiograph: Radiograph, data: bytes, source: str, name: str) -> str:
    """What an image is called: the SOP instance UID in its header, or its name among the files (`ids.file_names`)."""
    uid = printable(radiograph.uid.strip())
    # The reader gives files without UID their bare name; where `name` is another, the header has to be asked again.
    if uid != name and radiograph.uid == file_id(printable(source)):
        from jaxpneumo.dicom import dicom

        uid = printable(dicom.read_uid(data))
    return uid or name


def _refusal(radiograph: Radiograph, image_id: str, problem: str) -> tuple[str, str] | None:
    """Reason and detail for a readable file that must not be used; None for a file that may be used."""
    height, width = radiograph.image.shape
    if problem == reconcile.CONTRADICTION:
        detail = f"Its SOP instance UID is {radiograph.uid}: which image is it? Correct the name or the UID."
        return problem, detail
    if _job.native_size and (height, width) != (_job.native_size, _job.native_size):
        return WRONG_SIZE, f"{height} x {width} pixels instead of {_job.native_size} x {_job.native_size}."
    if _job.require_frontal and (wrong := frontal.not_frontal(radiograph, strict=True)):
        return reconcile.NOT_FRONTAL, f"{wrong}."
    if problem and not _job.labels.missing_are_empty:
        return problem, f"{_job.labels.path.name} has no {_job.labels.entry} for it. Add one if its label is known."
    if detail := _conflict(_job.labels, image_id):
        return reconcile.CONFLICT, detail
    return None


def _conflict(labels: label_files.Labels | MaskFiles, image_id: str) -> str:
    of_files = isinstance(labels, MaskFiles)
    return mask_files.conflict(labels, image_id) if of_files else label_files.conflict(labels, image_id)


def _mask(
    labels: label_files.Labels | MaskFiles, image_id: str, height: int, width: int
) -> tuple[np.ndarray | None, str, int]:
    if isinstance(labels, MaskFiles):
        return mask_files.mask(labels, image_id, height, width)
    return label_files.mask(labels, image_id, height, width)


def _fill(row: int, image: np.ndarray, mask: np.ndarray | None) -> tuple[int, int]:
    """Writes one row of all arrays; returns their checksums."""
    images = resize_to_squares(image, tuple(_rows))
    if mask is None:
        masks = [np.zeros((size, size // 8), np.uint8) for size in _rows]
    else:
        masks = [dataset.reduce_mask(mask, size) for size in _rows]
    for files, small_image, small_mask in zip(_rows.values(), images, masks, strict=True):
        files[0].write(row, small_image)
        files[1].write(row, small_mask)
    return _checksums(images, masks)
