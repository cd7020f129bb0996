"""Synthetic frontal chest radiographs with and without pneumothorax, for trying everything without patient data.

Invented pictures, drawn from numbers alone: they look like radiographs, but no result on them says anything about
patients. `radiograph` draws one; `write` makes a folder laid out like the challenge's (DICOM, labels.csv,
patients.csv). A seed gives the same bytes on any number of worker processes.
"""

import csv
import hashlib
import multiprocessing
import shutil
import uuid
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from jaxpneumo.data import rle
from jaxpneumo.process import places, run_report
from jaxpneumo.process.arguments import Parser
from jaxpneumo.process.atomic import take_name, write_atomically
from jaxpneumo.process.errors import InputError
from jaxpneumo.process.machine import cores
from jaxpneumo.process.progress import progress_bar
from jaxpneumo.process.ranges import AREA_SCALE, COUNT, PROBABILITY, SEED, TEAM, whole
from jaxpneumo.process.runtime import one_thread_each
from jaxpneumo.synthetic import anatomy
from jaxpneumo.synthetic.anatomy import Frame, InventedPatient
from jaxpneumo.synthetic.exposure import expose, position, view_position

# Areas of the challenge's 2,669 masks in pixels of 1024x1024; the 95 % point continues the curve to the largest.
SIZE = whole(32, 8192)  # side of a picture in pixels
AREA_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
AREA_PIXELS = (55.0, 1362.0, 4059.0, 8630.0, 18388.0, 48000.0, 161421.0)

README = """SYNTHETIC

Every radiograph in this folder was drawn by jaxpneumo from random numbers (seed {seed}). None shows a patient, and no
result on them says anything about patients. The DICOM files say so too, in Derivation Description.

dicom/        {count} radiographs of {size} x {size} pixels, {positive} of them with a pneumothorax
labels.csv    their masks as run-length codes, one row a region, -1 for none; areas {area_scale:g} times the challenge's
patients.csv  invented patient, sex, age and view of each
"""


def target_area(quantile: float) -> float:
    """Mask area in pixels of 1024x1024 at a quantile (0..1) of the challenge's masks, interpolated in log area."""
    return float(np.exp(np.interp(quantile, AREA_QUANTILES, np.log(AREA_PIXELS))))


def radiograph(
    seed: int,
    size: int = 1024,
    positive: bool | None = None,
    area_scale: float = 1.0,
    patient_seed: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws one synthetic radiograph and the mask of its pneumothorax.

    The same seed is the same picture at every size, and with and without a pneumothorax.

    Args:
      seed: 0 or more; decides everything that the other arguments leave open.
      size: side length S in pixels, at least 32.
      positive: whether there is a pneumothorax; None lets the seed toss a coin.
      area_scale: multiplies the mask areas, which otherwise spread like the challenge's (median 8,630 pixels of
        1024x1024); 3 to 5 give a task that a small network learns within minutes at 64 or 128 pixels.
      patient_seed: decides build, sex and age; None takes `seed`. One patient seed, one patient.

    Returns:
      image uint8 (S, S), dark air, and mask uint8 (S, S), 0/1, of at least one pixel when positive.

    Raises:
      InputError: for a negative seed, a size below 32 or an area scale that is not above 0.
    """
    if seed < 0:
        raise InputError(f"seed {seed} is negative; use 0 or more.")
    if size < 32:
        raise InputError(f"a radiograph of {size} pixels cannot be drawn; use a size of 32 or more.")
    if not area_scale > 0:
        raise InputError(f"area_scale {area_scale} leaves no mask; use a number above 0 (1: the challenge's).")
    patient = anatomy.invent_patient(seed if patient_seed is None else patient_seed)
    n = 512 if size <= 512 else 1024
    frame, pose = position(patient, seed, n)
    disease = np.random.default_rng([seed, 6])
    coin = bool(disease.random() < 0.5)
    region, line = np.zeros((n, n), np.uint8), np.zeros((n, n), np.float32)
    if coin if positive is None else positive:
        region, line = _pneumothorax(patient, frame, pose.heart, area_scale, disease)
    image = expose(patient, frame, pose, region, line, seed)
    if size == n:
        return image, region
    image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if size < n else cv2.INTER_CUBIC)
    share = cv2.resize(region.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
    # A region too small for any half pixel keeps its fullest one.
    limit = min(0.5, float(share.max())) or 0.5
    return image, (share >= limit).astype(np.uint8)


def _pneumothorax(
    patient: InventedPatient, frame: Frame, heart: float, area_scale: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Region uint8 0/1 and pleural line float32 0..1, both (n, n); one crescent or two."""
    n = frame.n
    area = target_area(rng.random()) * area_scale * (n / 1024) ** 2
    side, other, places = rng.integers(0, 2), rng.random() < 0.4, ["apex", "side", "base"]
    first, second = rng.choice(places, 2, replace=False, p=[0.72, 0.14, 0.14])
    share = rng.uniform(0.25, 0.45) if rng.random() < 0.22 else 0.0
    sites = [(side, area * (1 - share), first), (1 - side if other else side, area * share, second)]
    region, line = np.zeros((n, n), np.uint8), np.zeros((n, n), np.float32)
    fields = anatomy.lung_fields(patient, frame, heart)
    for which, pixels, place in sites[: 1 + (share > 0)]:
        part, edge = _crescent(patient, frame, fields[which], 2 * int(which) - 1, place, pixels, rng)
        region, line = np.maximum(region, part), np.maximum(line, edge)
    return region, line


def _crescent(
    patient: InventedPatient,
    frame: Frame,
    field: np.ndarray,
    side: int,
    place: str,
    area: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """One crescent of about `area` pixels at the wall of one lung field, and its pleural line.

    The lung comes away from the wall around one place first: every pixel gets the size of pneumothorax that
    uncovers it, and the pixels below the threshold that gives the area are the region.
    """
    n, half = frame.n, frame.scaled(frame.n // 2)
    x, y = {"apex": (0.5, 0.03), "side": (0.93, 0.5), "base": (0.97, 1.1)}[place]
    x, y = side * (x + rng.uniform(-0.08, 0.03)), y + rng.uniform(-0.03, 0.06)
    start, root = half.pixels(np.asarray([(x, y), (side * 0.28, 0.62)]))
    area = min(area, 0.72 * float(field.sum()))
    # Parallel to the wall in the middle, tapering at both ends; large ones reach around the lung.
    length = min(np.sqrt(area * rng.uniform(1.8, 4.0)), 0.75 * frame.height)
    taper = 0.6 * area / length / length**3
    down, across = (np.float32(2) * axis.astype(np.float32) for axis in np.ogrid[0 : half.n, 0 : half.n])
    inwards = 2 * anatomy.wall_distance(patient, half, side)
    away = np.hypot(across - np.float32(2 * start[0]), down - np.float32(2 * start[1]))
    order = inwards + np.float32(taper) * away**3
    # A lung that has lost much of its air shrinks to a ball at its root.
    collapse = float(np.clip((area / field.sum() - 0.2) / 0.3, 0, 1))
    shrunk = np.hypot((across - np.float32(2 * root[0])) * 1.25, (down - np.float32(2 * root[1])) * 0.75)
    order += np.float32(collapse) * (np.float32(0.5 * frame.height) - shrunk - order)
    waves = rng.standard_normal((9, 9), np.float32)
    waves = cv2.resize(waves, (half.n, half.n), interpolation=cv2.INTER_CUBIC)
    order = cv2.resize(anatomy.blur(order, half, 4) * (1 + 0.04 * waves), (n, n))

    left, top, width, height = cv2.boundingRect(field)
    box = np.s_[top : top + height, left : left + width]
    order, lung, inwards = order[box], field[box], cv2.resize(inwards, (n, n))[box]
    rank = max(round(area), 1)
    threshold = np.partition(order[lung > 0], rank)[rank]
    core = _largest_piece(((order < threshold) & (lung > 0)).astype(np.uint8))
    slope = np.hypot(*(cv2.Sobel(order, cv2.CV_32F, *axis, scale=0.125) for axis in ((1, 0), (0, 1))))
    outwards = (order - threshold) / np.maximum(slope, 0.2) / (1.5 * n / 1024)
    # There is no line where the region meets the wall.
    near = cv2.dilate(core, np.ones((9, 9), np.uint8)) * lung * (inwards > 5 * n / 1024)
    region, line = np.zeros((n, n), np.uint8), np.zeros((n, n), np.float32)
    region[box], line[box] = core, np.exp(-(outwards**2)) * near
    return region, line


def _largest_piece(mask: np.ndarray) -> np.ndarray:
    """The largest 8-connected piece of a mask."""
    count, names, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    return mask if count <= 2 else (names == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))).astype(np.uint8)


@dataclass(frozen=True)
class Case:
    """One picture to be written: everything that decides its bytes."""

    seed: int
    patient_seed: int
    patient: str
    positive: bool
    image_id: str
    study_id: str
    series_id: str


def plan(count: int, seed: int, positive_fraction: float = 0.5) -> list[Case]:
    """The pictures of a data set: which patients (a third of them with 2 to 4 pictures), which positive, all UIDs.

    UIDs are made from the seed, under the root 2.25 (DICOM PS3.5 B.2).
    """
    rng = np.random.default_rng([seed, 0])
    owners: list[int] = []
    while len(owners) < count:
        owners += [owners[-1] + 1 if owners else 1] * (1 if rng.random() < 0.66 else rng.integers(2, 5))
    positive = rng.permutation(count) < round(count * positive_fraction)

    def digest(*what: object) -> bytes:
        return hashlib.sha256(" ".join(map(str, ("jaxpneumo synthetic", seed, *what))).encode()).digest()

    def number(*what: object) -> int:
        return int.from_bytes(digest(*what)[:6], "big")

    def uid(*what: object) -> str:
        return f"2.25.{uuid.UUID(bytes=digest(*what)[:16], version=4).int}"

    return [
        Case(
            seed=number("image", index),
            patient_seed=number("patient", owner),
            patient=f"SYNTHETIC{owner:05d}",
            positive=bool(positive[index]),
            image_id=uid("image", index),
            study_id=uid("study", index),
            series_id=uid("series", index),
        )
        for index, owner in enumerate(owners[:count])
    ]


def write(
    directory: Path | str,
    count: int,
    seed: int = 0,
    size: int = 1024,
    positive_fraction: float = 0.5,
    workers: int | None = None,
    quiet: bool = False,
    area_scale: float = 1.0,
) -> None:
    """Writes a synthetic data set laid out like the challenge's; the folder appears when it is complete.

    dicom/<study>/<series>/<image>.dcm (8-bit JPEG Baseline), labels.csv (`ImageId, EncodedPixels`, one row a
    region, -1 for none), patients.csv (`ImageId,patient,sex,age,view`), README.txt.

    Args:
      directory: the folder to make; it must not exist yet, or be empty.
      count: number of radiographs, at least 1.
      seed: 0 or more; the same seed gives the same bytes for any number of workers.
      size: side length in pixels.
      positive_fraction: share with a pneumothorax, 0..1, met exactly up to rounding.
      workers: processes; None takes one a core.
      quiet: no progress bar.
      area_scale: multiplies the mask areas, which otherwise spread like the challenge's; a small quickstart at 64
        or 128 pixels wants larger ones, 3 to 5.

    Raises:
      InputError: a folder that is in use, or a value out of range.
    """
    directory = Path(directory)
    if count < 1 or seed < 0 or size < 32 or not 0 <= positive_fraction <= 1 or not area_scale > 0:
        raise InputError(
            f"cannot draw count={count}, seed={seed}, size={size}, positive_fraction={positive_fraction}, "
            f"area_scale={area_scale}: the count must be 1 or more, the seed 0 or more, the size 32 or more, "
            "the fraction 0 to 1, the scale above 0."
        )
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InputError(f"{directory} exists already; choose another --output or remove it first.")
    cases = plan(count, seed, positive_fraction)
    temporary = directory.with_name(directory.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        job = partial(_write_case, temporary, size, area_scale)
        drawn = progress_bar(_run(job, cases, workers), total=count, description="drawing", quiet=quiet)
        rows = list(drawn)
        with write_atomically(temporary / "labels.csv") as file:
            file.write("ImageId, EncodedPixels\n")
            for case, codes in zip(cases, rows, strict=True):
                file.writelines(f"{case.image_id}, {code}\n" for code in codes)
        with write_atomically(temporary / "patients.csv") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["ImageId", "patient", "sex", "age", "view"])
            for case in cases:
                patient, view = anatomy.invent_patient(case.patient_seed), view_position(case.seed)
                table.writerow([case.image_id, case.patient, patient.sex, patient.age, view])
        with write_atomically(temporary / "README.txt") as file:
            file.write(_readme(cases, seed, size, area_scale))
        take_name(temporary, directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def is_finished(directory: Path, count: int, seed: int, size: int, positive_fraction: float, area_scale: float) -> bool:
    """Whether a folder holds what `write` makes with these arguments, by its README.txt and the files it has."""
    # What `write` refuses has never been made.
    if seed < 0 or not (directory / "README.txt").is_file():
        return False
    tables = all((directory / name).is_file() for name in ("labels.csv", "patients.csv"))
    written = _readme(plan(count, seed, positive_fraction), seed, size, area_scale)
    same = (directory / "README.txt").read_bytes() == written.encode()
    return same and tables and sum(1 for _ in (directory / "dicom").rglob("*.dcm")) == count


def _readme(cases: list[Case], seed: int, size: int, area_scale: float) -> str:
    positive = sum(case.positive for case in cases)
    return README.format(seed=seed, count=len(cases), size=size, positive=positive, area_scale=area_scale)


def _write_case(directory: Path, size: int, area_scale: float, case: Case) -> list[str]:
    """Draws and writes one picture; returns the codes of its regions."""
    from jaxpneumo.dicom import dicom

    image, mask = radiograph(case.seed, size, case.positive, area_scale, case.patient_seed)
    patient = anatomy.invent_patient(case.patient_seed)
    dicom.write(
        directory / "dicom" / case.study_id / case.series_id / f"{case.image_id}.dcm",
        image,
        uid=case.image_id,
        patient_id=case.patient,
        sex=patient.sex,
        age=patient.age,
        view=view_position(case.seed),
        study_uid=case.study_id,
        series_uid=case.series_id,
        synthetic=True,
    )
    count, names = cv2.connectedComponents(mask, connectivity=8)
    return [rle.encode(names == name) for name in range(1, count)] or [rle.EMPTY]


def _run(job: partial, cases: list[Case], workers: int | None) -> Iterator[list[str]]:
    """Results in order, from worker processes where they are worth their start."""
    workers = min(workers or cores(), len(cases) // 8)
    if workers < 2:
        yield from map(job, cases)
        return
    # Spawned, since the caller may hold threads (a device's, a loader's) that a fork would break.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), one_thread_each)
    try:
        yield from pool.map(job, cases, chunksize=4)
    finally:
        pool.shutdown(cancel_futures=True)


def main(argv: list[str]) -> int:
    """The verb `jaxpneumo synthesize`. Returns 0; raises InputError for wrong use."""
    parser = Parser(
        prog="jaxpneumo synthesize",
        description="Draws synthetic chest radiographs and writes them as DICOM files with labels, to try "
        "everything without patient data.",
        epilog="example: jaxpneumo synthesize --output synthetic --count 200 --seed 1",
    )
    add = parser.add_argument
    add("--output", dest="directory", type=places.folder_to_make, required=True, metavar="DIR", help="folder to make")
    add("--count", type=COUNT, default=100, help="number of radiographs (100)")
    add("--seed", type=SEED, default=0, help="same seed, same files (0)")
    add("--size", type=SIZE, default=1024, help="side length in pixels (1024)")
    add("--positive-fraction", type=PROBABILITY, default=0.5, help="share with a pneumothorax (0.5)")
    add("--area-scale", type=AREA_SCALE, default=1.0, help="multiplies the mask areas (1: the challenge's)")
    add("--workers", type=TEAM, help="processes (one per core)")
    options = parser.parse_args(argv)
    run_report.place(options.directory)
    drawn = {name: getattr(options, name) for name in ("count", "seed", "size", "positive_fraction", "area_scale")}
    finished = is_finished(options.directory, **drawn)
    if not finished:
        write(options.directory, **drawn, workers=options.workers)
    cases = plan(options.count, options.seed, options.positive_fraction)
    patients, positive = len({case.patient for case in cases}), sum(case.positive for case in cases)
    print(
        (f"{options.directory} is complete, nothing is left to do: " if finished else "")
        + f"{len(cases)} synthetic radiographs of {patients} invented patients, {positive} of them positive, "
        f"in {options.directory}"
    )
    return 0
