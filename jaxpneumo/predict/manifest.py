"""The manifest of a prediction, which is also its journal, and the parts of an archive.

`manifest.jsonl` (see `process.jsonl`) begins with a header: model, settings and software. One line per file follows,
written as soon as the result is known. The last line has the number of files.

The checksum of a file's path decides its part. So every machine finds the files of its part by itself, and new files
do not change the parts of other files.
"""

import functools
import hashlib
import os
import shutil
import zlib
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jaxpneumo.data.finder import MANIFEST, OUTPUT_FOLDERS
from jaxpneumo.process import jsonl
from jaxpneumo.process.atomic import write_atomically
from jaxpneumo.process.errors import InputError
from jaxpneumo.process.files import Stamp, is_unchanged, safe_name, sha256, stamp_if_there

GROUP = 64  # number of lines that are forced to the disk together
NOTE = "Research software, not a medical device."
RESEARCH_USE = "research use only; not a medical device"
SYNTHETIC_NOTE = "Trained on synthetic radiographs: these outlines say nothing about patients."
_SAME = ("model", "settings", "part", "parts")  # header fields that change the results


def make_header(
    model: str,
    settings: Mapping[str, Any],
    software: Mapping[str, Any],
    part: tuple[int, int] | None,
    synthetic: bool = False,
    bands: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Makes the header, the first line of the manifest.

    Args:
      model: checksum of the parameters.
      settings: all other values that change a mask, for JSON.
      software: the result of `software.software`.
      part: the result of `choose_part`.
      synthetic: whether the model was trained on synthetic radiographs.
      bands: the limits of the score's bands (`certainty.Bands`).
    """
    return {
        "manifest": 1,
        "note": f"{NOTE} {SYNTHETIC_NOTE}" if synthetic else NOTE,
        "model": model,
        "settings": dict(settings),
        "part": part and part[0],
        "parts": part and part[1],
        "bands": bands and dict(bands),
        "software": dict(software),
    }


@contextmanager
def open_manifest(
    folder: Path,
    header: dict[str, Any],
    root: Path,
    sources: Sequence[str],
    is_complete: Callable[[dict[str, Any]], bool] = lambda entry: True,
    is_called_so: Callable[[dict[str, Any]], bool] = lambda entry: True,
) -> Iterator[tuple[list[str], Callable[[dict[str, Any]], None]]]:
    """Opens a folder's manifest. It continues an older manifest with the same model and settings.

    It drops the entries of files that have changed, are called otherwise or no longer exist, and those that are not
    complete. A file of another stamp, such as a copy, has not changed if its checksum is the same. What was written of
    a file that has changed, is called otherwise or is gone is removed. Other files of its image are predicted again.

    Args:
      folder: folder of the manifest; created if it is missing.
      header: the result of `make_header`.
      root: folder that holds the sources.
      sources: paths of the files, sorted.
      is_complete: whether a file with this entry need not be predicted again. It is asked only of entries that hold.
      is_called_so: whether the image of an entry still has that id.

    Yields:
      The sources that have no result yet, and a function that adds an entry: {"file", "stamp", "state", ...}.

    Raises:
      InputError: the older file has another model or other settings, is in use, or is not a manifest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / MANIFEST
    lock = os.open(folder, os.O_RDONLY)
    try:
        jsonl.lock(lock, folder)
        done = bytearray(len(sources))
        with write_atomically(path, "wb") as file:
            before = next(_entries(path), None)
            _compare(before, header, folder)
            place_of = functools.partial(_place, sources)
            holds, dropped, stamps = bytearray(len(sources)), set(), dict[int, Stamp]()
            for entry in _entries(path):
                place = place_of(entry)
                now = stamp_of_same(root / sources[place], entry) if place is not None and is_called_so(entry) else None
                if place is not None and now is not None:
                    holds[place] = True
                    if list(now) != entry["stamp"]:
                        stamps[place] = now
                elif "uid" in entry:
                    dropped.add(entry["uid"])
                    # Before the entry goes: after a kill between them, nothing would name these files any more.
                    _remove_outputs(folder, entry)
            # The note depends only on the model, which is the same. The notes of older manifests are shorter. A later
            # evaluation of the model may have changed the bands.
            file.write(jsonl.line({**(before or header), "note": header["note"], "bands": header["bands"]}))
            for entry in _entries(path):
                place = place_of(entry)
                if place is None or done[place] or not holds[place] or entry.get("uid") in dropped:
                    continue
                done[place] = is_complete(entry)
                if done[place]:
                    file.write(jsonl.line({**entry, "stamp": list(stamps[place])} if place in stamps else entry))
        with open(path, "ab") as file:
            writer = jsonl.Writer(file, GROUP)

            def append(entry: dict[str, Any]) -> None:
                writer.append(entry, safe="end" in entry)

            yield [source for source, there in zip(sources, done, strict=True) if not there], append
    finally:
        os.close(lock)


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    return read_entries(path) if path.exists() else iter(())


def _place(sources: Sequence[str], entry: dict[str, Any]) -> int | None:
    """The place of an entry's file among the sorted sources; None if it is not among them."""
    source = str(entry.get("file", ""))
    place = bisect_left(sources, source)
    return place if place < len(sources) and sources[place] == source else None


def outputs_of(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys of the outputs that an entry says were written, or that the image cannot have."""
    # Older manifests do not name their outputs: pictures were the only ones.
    return tuple(entry.get("outputs", [] if "undrawn" in entry else ["overlays"]))


def output_path(folder: Path, key: str, uid: str) -> Path:
    """Where an image's output with this key ("masks", "probabilities/.npz", "dicom_results/seg.dcm") lies."""
    name, _, ending = key.partition("/")
    own = folder / name / safe_name(uid)
    return own / ending if ending and not ending.startswith(".") else own.with_name(f"{own.name}{ending or '.png'}")


def _remove_outputs(folder: Path, entry: Mapping[str, Any]) -> None:
    """Removes what was written of a file; a second file of an image has nothing of its own."""
    for key in outputs_of(entry) if not entry.get("second") else ():
        path = output_path(folder, key, entry["uid"])
        path.unlink(missing_ok=True)
        if path.parent != folder / key.partition("/")[0]:
            with suppress(OSError):  # other results are in it, or it is gone
                path.parent.rmdir()


def remove_others(folder: Path, uid: str, kept: Collection[Path]) -> None:
    """Removes what any start wrote of an image, but for these files."""
    name = safe_name(uid)
    own = [folder / each / f"{name}{ending}" for each in OUTPUT_FOLDERS for ending in (".png", ".npz")]
    for path in (*own, *(path for each in OUTPUT_FOLDERS for path in (folder / each / name).glob("*.dcm"))):
        if path not in kept:
            path.unlink(missing_ok=True)


def discard_other(folder: Path, header: dict[str, Any]) -> None:
    """Removes the predictions of another model or other settings from a folder."""
    path = folder / MANIFEST
    try:
        _compare(next(_entries(path), None), header, folder)
    except InputError:
        for name in OUTPUT_FOLDERS:
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in (MANIFEST, "submission.csv", "results.csv", "index.html", "quarantine.csv"):
            (folder / name).unlink(missing_ok=True)


def read_entries(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the entries of a manifest, header first. It stops at the first line that is not complete JSON.

    Raises:
      InputError: the file cannot be read, or does not begin with a header.
    """
    try:
        with open(path, "rb") as file:
            for number, (entry, _) in enumerate(jsonl.read(file)):
                if number == 0 and "manifest" not in entry:
                    raise InputError(f"{path} is not a manifest of `jaxpneumo predict`. Choose another --output.")
                yield entry
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error


def end_entry(sources: Iterable[str], count: int) -> dict[str, Any]:
    """Makes the last line of the manifest: its number of files, and number and digest of all listed files."""
    digest, listed = listing_digest(sources)
    return {"end": {"files": count, "listed": listed, "listing": digest}}


def listing_digest(sources: Iterable[str]) -> tuple[str, int]:
    """SHA-256 of the sorted paths, and the number of paths."""
    digest, count = hashlib.sha256(), 0
    for source in sources:
        digest.update(_bytes(source) + b"\n")
        count += 1
    return digest.hexdigest(), count


# Parts


def part_of(source: str, parts: int) -> int:
    """The number of the part that a file belongs to, 0 to `parts` - 1."""
    return zlib.crc32(_bytes(source)) % parts


def part_folder(output: Path, part: tuple[int, int] | None) -> Path:
    """The output folder of a part; `output` itself if there are no parts."""
    return output if part is None else output / "part-{:05d}-of-{:05d}".format(*part)


def choose_part(
    num_parts: int | str | None, part_id: int | str | None, environment: Mapping[str, str]
) -> tuple[int, int] | None:
    """Returns (part, number of parts) from the flags --part-id and --num-parts, or None without the flags.

    "auto" takes both from a Slurm array: the part is SLURM_ARRAY_TASK_ID minus SLURM_ARRAY_TASK_MIN, the number of
    parts is SLURM_ARRAY_TASK_COUNT. An indexed Kubernetes job gives only the part (JOB_COMPLETION_INDEX).

    Raises:
      InputError: only one flag is given, a value is not a number, the part is outside 0 to N-1, or the environment
        variables for "auto" are missing.
    """
    if num_parts is None and part_id is None:
        return None
    if num_parts is None or part_id is None:
        raise InputError("--num-parts and --part-id belong together: give both.")
    try:
        return _check_part(_part_id(part_id, environment), _num_parts(num_parts, environment))
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"--num-parts {num_parts} --part-id {part_id}: give whole numbers, or auto.") from None


def _num_parts(text: int | str, environment: Mapping[str, str]) -> int:
    if text != "auto":
        return int(text)
    if "SLURM_ARRAY_TASK_COUNT" not in environment:
        raise InputError(
            "--num-parts auto needs a Slurm array (SLURM_ARRAY_TASK_COUNT); elsewhere give the number itself."
        )
    count, least = int(environment["SLURM_ARRAY_TASK_COUNT"]), int(environment.get("SLURM_ARRAY_TASK_MIN", 0))
    if int(environment.get("SLURM_ARRAY_TASK_MAX", least + count - 1)) != least + count - 1:
        raise InputError("--num-parts auto needs a Slurm array without gaps, such as --array=0-31; give the numbers.")
    return count


def _part_id(text: int | str, environment: Mapping[str, str]) -> int:
    if text != "auto":
        return int(text)
    if "SLURM_ARRAY_TASK_ID" in environment:
        return int(environment["SLURM_ARRAY_TASK_ID"]) - int(environment.get("SLURM_ARRAY_TASK_MIN", 0))
    if "JOB_COMPLETION_INDEX" in environment:
        return int(environment["JOB_COMPLETION_INDEX"])
    raise InputError(
        "--part-id auto needs a Slurm array (SLURM_ARRAY_TASK_ID) or an indexed Kubernetes job (JOB_COMPLETION_INDEX); "
        "elsewhere give the number itself."
    )


def _check_part(part: int, parts: int) -> tuple[int, int]:
    if parts < 1 or not 0 <= part < parts:
        raise InputError(f"there is no part {part} of {parts}: parts are numbered from 0 to {max(parts, 1) - 1}.")
    return part, parts


def _compare(before: dict[str, Any] | None, now: dict[str, Any], folder: Path) -> None:
    """Raises InputError if the model or the settings differ from those of the older manifest."""
    if before is None:
        return
    # Older manifests lack "any_image": all images were predicted then.
    old, new = (
        {**{n: h.get(n) for n in _SAME if n != "settings"}, "any_image": True, **h.get("settings", {})}
        for h in (before, now)
    )
    if old != new:
        changed = jsonl.changes(_told(old, new), _told(new, old), width=200)
        raise InputError(f"{folder} holds predictions made with other settings ({changed}). Choose another --output.")


def _told(settings: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as a message has them: short, and where both have a gate, its settings one by one."""
    told = {name: value for name, value in settings.items() if name != "gate"}
    gate = settings.get("gate")
    if gate and other.get("gate"):
        told |= {f"gate's {name}": value for name, value in gate.items()}
    elif gate:
        told["gate"] = gate["model"]
    for name in {"model", "gate", "gate's model"} & told.keys():
        told[name] = "+".join(one[:12] for one in str(told[name]).split("+"))
    if told.get("weights"):
        told["weights"] = [round(weight, 6) for weight in told["weights"]]
    return told


def stamp_of_same(path: Path, entry: Mapping[str, Any]) -> Stamp | None:
    """The stamp of an entry's file; None if it is gone or holds other bytes than those that were predicted."""
    now, before = stamp_if_there(path), entry.get("sha256")
    if not any(now):
        return None
    if list(now) == entry.get("stamp"):
        return now
    return now if before and sha256(path) == before and is_unchanged(path, now) else None


def _bytes(source: str) -> bytes:
    return os.fsencode(source)
