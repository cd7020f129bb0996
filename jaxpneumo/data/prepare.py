"""`jaxpneumo prepare`: turns radiographs and their labels into memory-mapped arrays, and checks everything once.

Every file is read once, in parallel processes that write straight into the arrays. The data set grows in the
folder OUTPUT.partial, which gets its final name at the end, so OUTPUT is always complete. After a stop or a kill the
same command continues in OUTPUT.partial. Files and labels that cannot be used are set aside in quarantine.csv with
the reason (`jaxpneumo.data.reconcile`). No image becomes negative because its label was not understood.

Images of any shape become squares without regard to their aspect ratio. The challenge's images come from
ChestX-ray14, which was resized to 1024 x 1024 in the same way. Images are resized by area average, masks by area
average and then >= 0.5. Where the native size is smaller than the array, OpenCV interpolates linearly instead.
"""

import hashlib
import secrets
import shutil
import sys
import time
from collections import Counter
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jaxpneumo.data import dataset, ingest, mask_files, matching, reconcile, remarks, repeat, space, splits
from jaxpneumo.data import labels as label_files
from jaxpneumo.data.journal import open_journal
from jaxpneumo.data.labels import Labels
from jaxpneumo.data.mask_files import MaskFiles
from jaxpneumo.data.prepare_options import MAX_SECONDS, make_parser
from jaxpneumo.data.reconcile import Outcome
from jaxpneumo.dicom.radiograph import UNREADABLE
from jaxpneumo.process import run_report
from jaxpneumo.process import workers as processes
from jaxpneumo.process.atomic import take_name
from jaxpneumo.process.errors import BAD_INPUT, DONE, FAILED, PARTIAL, InputError, tell
from jaxpneumo.process.files import printable
from jaxpneumo.process.machine import cores
from jaxpneumo.process.progress import progress_bar

_NO_MASK = (
    "None of the masks in {masks} is of one of the images, so all would be negative. An image is called {id}, a mask "
    "{mask}: name the masks by the images' ids or as their files."
)


class SetAsideError(RuntimeError):
    """Something was set aside although `on_quarantine` is "error"; the message says what and where it is listed."""


@dataclass(frozen=True)
class PreparedCounts:
    """What a preparation did.

    Attributes:
      images, positive: in the data set.
      set_aside: number of quarantined entries by reason.
      images_per_second: steady rate, from when every process was at work; 0 if that was too short.
      busy_seconds: processor time for one file, on average: of its worker process and of the one that collects.
      resumed: images that an earlier, interrupted run had finished.
      worker_peaks: the most memory that each worker process had resident, in bytes.
      notes: sentences about labels, patients and headers that the user must know.
      complete: the data set was there already, made by an earlier call like this one.
    """

    images: int
    positive: int
    set_aside: dict[str, int]
    images_per_second: float
    busy_seconds: float = 0.0
    resumed: int = 0
    worker_peaks: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    complete: bool = False


def prepare(
    images: Path,
    labels: Path | None,
    output: Path,
    sizes: tuple[int, ...] = (256, 512),
    patients: Path | None = None,
    patient_key: Path | None = None,
    workers: int | None = None,
    split: str = "random",
    validation_fraction: float = 0.1,
    seed: int = 0,
    quiet: bool = False,
    native_size: int | None = None,
    require_frontal: bool = False,
    duplicate_pixels: str = "set-aside",
    on_quarantine: str = "warn",
    time_limit: float = MAX_SECONDS,
    masks: Path | None = None,
    missing_masks: str = "set-aside",
) -> PreparedCounts:
    """Makes a prepared data set (see `jaxpneumo.data.dataset`) of radiographs and their labels.

    Args:
      images: folder with DICOM, PNG or JPEG files, at any depth.
      labels: ImageId,EncodedPixels; ImageId is a SOP instance UID, or a file's name or path (`ids`). None with `masks`.
      output: folder to make; must not exist, or be empty, or be made by the same call of the same files: then
        nothing is done. `output`.partial is used on the way.
      sizes: side lengths of the arrays in pixels, multiples of 32.
      patients: csv with ImageId,patient and possibly sex,age,view; by default the DICOM header is asked. Patients
        are believed as far as `reconcile.believe_patients` says.
      patient_key: file whose bytes key the hash of the patients' ids, so that several data sets agree on
        them; by default the key is random and forgotten.
      workers: processes; None = one a core and at least 2, 1 = none beside this one (a file that crashes a
        decoder then ends everything).
      split, validation_fraction, seed: of the suggested splits.json, as in `splits.split_rows`.
      quiet: no progress bar.
      native_size: height and width that images must have; None = any.
      require_frontal: set aside what its header does not call a frontal chest radiograph.
      duplicate_pixels: "set-aside" or "keep" images whose pixels occur under several ids.
      on_quarantine: "warn", or "error": if anything is set aside, no data set is made.
      time_limit: seconds that one file may take.
      masks: folder of PNG masks instead of `labels` (`mask_files`).
      missing_masks: "set-aside", or "empty": images without a file in `masks` are negative, and each mask has to be
        of one of the images.

    Raises:
      InputError: wrong arguments, a label or patients file that cannot be understood, or no usable image.
      SetAsideError: as `on_quarantine` says; `output`.quarantine.csv lists what.
      OSError: the disk is full or fails; the same call goes on.
    """
    images, output, masks = Path(images), Path(output), Path(masks) if masks else None
    sizes = tuple(sorted(set(sizes)))
    team = max(2, cores()) if workers is None else workers
    _check_arguments(images, output, masks, missing_masks)
    files = ingest.find_files(images)
    if masks:  # they may lie below the images
        files = [path for path in files if not path.resolve().is_relative_to(masks.resolve())]
    splits.check_name(split, "--split")
    splits.check(split, validation_fraction)
    sources = [printable(path.relative_to(images).as_posix()) for path in files]
    mask_paths = mask_files.find_masks(masks) if masks else []
    found = matching.read_matched(
        labels, patients, sources, (masks, mask_paths) if masks else None, missing_masks == "empty"
    )
    table = found.labels
    if split == "patient" and found.patients is not None and label_files.nobody(found.patients.values()):
        raise InputError(splits.no_patients(str(patients)))
    given_key = label_files.read_key(patient_key) if patient_key else None
    partial = output.with_name(f"{output.name}.partial")
    tables = (labels, patients, patient_key)
    settings = repeat.settings(images, files, tables, sizes, native_size, require_frontal)
    if masks:
        settings |= repeat.mask_settings(masks, mask_paths, missing_masks)
    arguments = settings | repeat.ending(files, split, validation_fraction, seed, duplicate_pixels, on_quarantine)
    if repeat.is_finished(output, arguments, images):
        return PreparedCounts(*repeat.counts(output), images_per_second=0.0, complete=True)
    space.check_space(partial, len(files), sizes)

    partial.mkdir(parents=True, exist_ok=True)
    with open_journal(partial / "journal.jsonl", settings, {"key": secrets.token_hex(32)}) as (secret, entries, append):
        key = given_key or bytes.fromhex(secret["key"])
        job = ingest.Job(images, partial, sizes, table, found.patients, key, found.names, native_size, require_frontal)
        if not entries:
            dataset.create_arrays(partial, len(files), sizes)
        outcomes = ingest.recover(entries, files, job, quiet)
        resumed, spans, peaks, collecting = len(outcomes), [], [], 0.0
        tasks = [(row, path) for row, path in enumerate(files) if row not in outcomes]
        with progress_bar(total=len(files), description="prepare", quiet=quiet) as bar:
            bar.update(resumed)
            for outcome, span in _run(job, tasks, team, time_limit, peaks):
                collecting = collecting or time.process_time()  # without starting the processes
                append(vars(outcome))
                outcomes[outcome.row] = outcome
                spans.append(span)
                bar.update()
            collecting = time.process_time() - collecting if spans and team > 1 else 0.0
        in_order = [outcomes[row] for row in range(len(files))]
        kept, set_aside = reconcile.reconcile(
            in_order,
            {image_id: table.words(image_id) for image_id in table.codes},
            lambda outcome: _pixel_digest(images / outcome.source),
            duplicate_pixels == "keep",
        )
        unlabelled = reconcile.unlabelled(in_order, table)
        strange = table.missing_are_empty and not any(outcome.image_id in table.codes for outcome in kept)
        if strange and kept:
            kept, unlabelled = [], _NO_MASK.format(masks=table.path, id=kept[0].image_id, mask=next(iter(table.codes)))
        elif stray := _stray_masks(table, in_order, kept):
            kept, unlabelled = [], stray
        _refuse(output, partial, len(files), images, kept, set_aside, on_quarantine, unlabelled)
        kept, patients_from = reconcile.believe_patients(
            kept, "file" if patients else "header", lambda name: label_files.pseudonym(name, key)
        )
        made_from = {
            "images": images.resolve().name,
            "labels": table.path.name,
            "patients": Path(patients).name if patients else None,
            "patients_from": patients_from,
            "patient_key_given": patient_key is not None,
            "arguments": arguments,
            "resize": "squashed; images by area average, masks by area average >= 0.5",
            "files": {"found": len(files), "used": len(kept)},
            "label_rows": {
                "found": table.repeated + sum(map(len, table.codes.values())),
                "used": sum(len(table.codes.get(outcome.image_id, ())) for outcome in kept),
            },
        }
        with _finished_folder(partial, output) as folder:
            space.check_room(partial, kept, len(files), sizes)
            dataset.copy_rows(partial, folder, [outcome.row for outcome in kept], len(files), sizes)
            dataset.write_index(folder, [outcome.line for outcome in kept])
            dataset.write_labels(folder, {outcome.image_id: outcome.code for outcome in kept})
            dataset.write_quarantine(folder, set_aside)
            positive = sum(outcome.line["mask_area"] > 0 for outcome in kept)
            synthetic = any(outcome.synthetic for outcome in kept)
            dataset.write_info(folder, sizes, len(kept), positive, len(set_aside), synthetic, made_from)
            index = dataset.read_index(folder)
            if split == "patient":
                splits.check_patients(index, patients)
            train, validation, how = splits.split_rows(index, split, validation_fraction, seed)
            splits.write_splits(folder / "splits.json", index.image_id, train, validation, **splits.origin(how))
    reasons = Counter(entry["reason"] for entry in set_aside)
    unlisted = _unlisted(patients, found.patients, kept)
    busy = collecting + sum(span.busy for span in spans if span is not None)
    return PreparedCounts(
        images=len(kept),
        positive=positive,
        set_aside=dict(reasons),
        images_per_second=ingest.steady_rate(spans),
        busy_seconds=busy / max(len(spans), 1),
        resumed=resumed,
        worker_peaks=tuple(peaks),
        notes=(
            *filter(None, (unlabelled, _repeated(table), reconcile.large_masks(kept), unlisted)),
            *filter(None, (_without_mask(table, kept), _patients_note(patients_from))),
            *remarks.tell((outcome.source, outcome.remarks) for outcome in kept),
        ),
    )


# The files, in worker processes


def _run(
    job: ingest.Job, tasks: list[tuple[int, Path]], team: int, seconds: float, peaks: list[int]
) -> Iterator[tuple[Outcome, ingest.Span | None]]:
    """Outcomes as they come; without a span where a process was lost."""
    if team == 1:
        ingest.start(job, single_thread=False)
        try:
            yield from map(ingest.ingest, tasks)
        finally:
            ingest.stop()
        return
    for task, result in processes.run(ingest.ingest, tasks, team, ingest.start, (job,), seconds, peaks):
        if isinstance(result, processes.Lost):
            row, path = task
            detail = f"Decoding it {result.why}, so its process was ended. Export it again."
            source = path.relative_to(job.images).as_posix()
            yield Outcome(row, source, job.names[printable(source)], UNREADABLE, detail), None
        else:
            yield result


def _pixel_digest(path: Path) -> str:
    from jaxpneumo.dicom.dicom import read_image

    image = read_image(path).image
    return f"{image.shape} {hashlib.sha256(image.data).hexdigest()}"


# The end


def _refuse(
    output: Path,
    partial: Path,
    files: int,
    images: Path,
    kept: list[Outcome],
    set_aside: list[dict[str, str]],
    on_quarantine: str,
    unlabelled: str,
) -> None:
    """Stops where no data set may be made: nothing is usable, or something is set aside and that is an error."""
    beside = output.with_name(f"{output.name}.quarantine.csv")
    beside.unlink(missing_ok=True)
    if kept and not (set_aside and on_quarantine == "error"):
        return
    shutil.rmtree(partial)
    if not kept:
        raise InputError(
            unlabelled
            or f"None of the {files} files in {images} could be used. The first is set aside as "
            f"{set_aside[0]['reason']}: {set_aside[0]['detail']}"
        )
    dataset.write_quarantine(output.parent, set_aside, beside.name)
    reasons = _by_reason(Counter(entry["reason"] for entry in set_aside))
    raise SetAsideError(
        f"{len(set_aside)} entries would be set aside ({reasons}), so no data set was made. "
        f"{beside} names each; correct them, or give --on-quarantine warn."
    )


@contextmanager
def _finished_folder(partial: Path, output: Path) -> Iterator[Path]:
    """A folder that gets the name of the output at the end; its sources stay until then."""
    folder = partial / "finished"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    yield folder
    take_name(folder, output)
    run_report.moved(folder, output)
    shutil.rmtree(partial)


# Arguments


def _check_arguments(images: Path, output: Path, masks: Path | None, missing_masks: str) -> None:
    if not images.is_dir():
        raise InputError(f"{images} is not a folder. Give the one with the radiographs as --images.")
    if masks is None:
        if missing_masks == "empty":
            raise InputError("--missing-masks empty needs --masks.")
        return
    if not masks.is_dir():
        raise InputError(f"{masks} is not a folder. Give the one with the masks as --masks.")
    if images.resolve().is_relative_to(masks.resolve()):
        raise InputError(f"--images {images} lies in --masks {masks}. Keep images and masks in folders of their own.")


def _stray_masks(table: Labels | MaskFiles, outcomes: list[Outcome], kept: list[Outcome]) -> str:
    """A sentence where a mask belongs to no image while images without one count as negative; else "".

    Such a mask may be misnamed, and its image among those without. In a label csv that does no harm: an image without
    a row is set aside.
    """
    seen = {outcome.image_id for outcome in outcomes}
    stray = [printable(name) for image_id, files in table.codes.items() if image_id not in seen for _, name in files]
    if not stray or not _count_without(table, kept):
        return ""
    names = ", ".join(stray[:3]) + (", ..." if len(stray) > 3 else "")
    if len(stray) == 1:
        return (
            f"1 mask belongs to none of the images ({names}): its image would count as negative. Rename it, or take it "
            "away."
        )
    return (
        f"{len(stray)} masks belong to none of the images ({names}): their images would count as negative. Rename "
        "them, or take them away."
    )


def _count_without(table: Labels | MaskFiles, kept: list[Outcome]) -> int:
    """The number of images without a mask file; each counts as negative."""
    return sum(outcome.image_id not in table.codes for outcome in kept)


def _repeated(table: Labels | MaskFiles) -> str:
    """A sentence where rows of a label csv are there twice; else ""."""
    if not table.repeated:
        return ""
    return f"{table.repeated} rows of {table.path.name} have the id and the code of another row and are left out."


def _without_mask(table: Labels | MaskFiles, kept: list[Outcome]) -> str:
    """A sentence where images without a mask file count as negative; "" where there are none."""
    count = _count_without(table, kept)
    return f"{count} images have no mask file and count as negative, as --missing-masks empty says." if count else ""


def _unlisted(file: Path | None, listed: Container[str] | None, kept: list[Outcome]) -> str:
    """A sentence where a patients file does not list all images; misnamed ids look the same. Else ""."""
    count = sum(outcome.image_id not in listed for outcome in kept) if listed is not None else 0
    if not count:
        return ""
    return f"{count} of {len(kept)} images have no line in {file}: each counts as a patient of its own."


def _patients_note(source: str) -> str:
    """A sentence where patients became unknown although their images share an id."""
    if ":" not in source or source == reconcile.NO_TWO:
        return ""
    return f"Patients are known from {source}. Each image without one counts as a patient."


def _by_reason(reasons: dict[str, int]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in reasons.items())


def main(argv: list[str]) -> int:
    """`jaxpneumo prepare`; returns the exit code: 0 clean, 3 some set aside, 1 failed, 2 wrong use or bad input."""
    try:
        args = make_parser().parse_args(argv)
        run_report.place(args.output)
        report = prepare(**vars(args))
    except InputError as error:
        run_report.failed(error)
        print(f"jaxpneumo prepare: {error}", file=sys.stderr)
        return BAD_INPUT
    except (SetAsideError, RuntimeError) as error:
        run_report.failed(error)
        way_out = "" if isinstance(error, SetAsideError) else ". The same command goes on where this one stopped."
        print(f"jaxpneumo prepare: {error}{way_out}", file=sys.stderr)
        return FAILED
    except OSError as error:
        run_report.failed(error)
        return tell(error)
    count = sum(report.set_aside.values())
    run_report.skipped("images prepared by an earlier start", report.resumed)
    resumed = f", {report.resumed} of them before" if report.resumed else ""
    rate = "nothing is left to do" if report.complete else f"{report.images_per_second:.0f} images/s{resumed}"
    print(
        (f"{args.output} is complete: " if report.complete else "")
        + f"{report.images} images, {report.positive} positive, {report.images - report.positive} negative, "
        f"{count} set aside; {rate}"
    )
    for note in report.notes:
        print(note, file=sys.stderr)
    if not count:
        return DONE
    reasons, where = _by_reason(report.set_aside), args.output / "quarantine.csv"
    print(f"Set aside, not in the data set: {reasons}. {where} names each and says why.", file=sys.stderr)
    return PARTIAL
