"""Recognises a finished data set, so that the same command again has nothing to do.

dataset.json keeps how a data set was made: the arguments, and digests of the tables, of the files' names, sizes and
times of change, and of what mask files hold.
"""

import hashlib
import os
from collections import Counter
from pathlib import Path
from typing import Any

import jaxpneumo
from jaxpneumo.data import dataset
from jaxpneumo.data.labels import read_rows
from jaxpneumo.process.errors import InputError
from jaxpneumo.process.files import printable, sha256, stamp_if_there
from jaxpneumo.process.jsonl import changes

# Files that a command may have or not: --labels, --patients and so on. Their values are digests, which tell nobody.
_FILES = ("labels", "patients", "patient key", "masks")
_DIGITS = 16  # of a digest
# Of a copy they are other ones. Then the contents decide.
_SYSTEM = "the system's times of the files"


def settings(
    images: Path,
    files: list[Path],
    tables: tuple[Path | None, Path | None, Path | None],
    sizes: tuple[int, ...],
    native_size: int | None,
    require_frontal: bool,
) -> dict[str, Any]:
    """The arguments that determine the rows of the arrays, for JSON; `tables` are labels, patients and patient key."""
    names = "\n".join(path.relative_to(images).as_posix() for path in files)
    return {
        "version": jaxpneumo.__version__,
        "sizes": list(sizes),
        "native size": native_size,
        "frontal only": require_frontal,
        "files": _digest(os.fsencode(names)),
        **dict(zip(("labels", "patients", "patient key"), map(_digest_of, tables), strict=True)),
    }


def mask_settings(masks: Path, files: list[Path], missing_masks: str) -> dict[str, Any]:
    """What mask files add to `settings`: their names and contents, and the choice about missing ones."""
    listing = [(path.relative_to(masks).as_posix(), sha256(path)) for path in files]
    return {"masks": _digest(os.fsencode(repr(listing))), "missing masks": missing_masks}


def ending(
    files: list[Path], split: str, validation_fraction: float, seed: int, duplicate_pixels: str, on_quarantine: str
) -> dict[str, Any]:
    """The other arguments that determine the data set: times of the files, split, duplicates, quarantine."""
    stamps = [stamp_if_there(path) for path in files]
    return {
        "times of the files": _digest(repr([stamp[:2] for stamp in stamps]).encode()),
        _SYSTEM: _digest(repr([stamp[2] for stamp in stamps]).encode()),
        "split": split if split in ("random", "patient") else _digest_of(Path(split)),
        "validation fraction": validation_fraction,
        "seed": seed,
        "duplicate pixels": duplicate_pixels,
        "on quarantine": on_quarantine,
    }


def is_finished(output: Path, arguments: dict[str, Any], images: Path) -> bool:
    """Whether `output` is a prepared data set made with these very arguments of these very files.

    Args:
      output: the folder to be made; it may be absent or empty.
      arguments: what decides about its content, as `made_from.arguments` of dataset.json keeps it; JSON.
      images: the folder of the files.

    Raises:
      InputError: it holds something else.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    way_out = "Remove it or choose another --output."
    try:
        info = dataset.read_info(output) if output.is_dir() else {}
        before = info["made_from"]["arguments"]
    except (InputError, KeyError, TypeError) as error:
        raise InputError(f"{output} exists and is not an empty folder. {way_out}") from error
    other_times = before.pop(_SYSTEM, None) != arguments[_SYSTEM]
    now = {name: value for name, value in arguments.items() if name != _SYSTEM}
    if before != now:
        raise InputError(f"{output} exists and was prepared otherwise ({differences(before, now)}). {way_out}")
    if other_times and (other := _other_content(output, images)):
        raise InputError(
            f"{output} exists and was prepared of other files: {other} has the name, size and time of the one that was "
            f"used, and another content. {way_out}"
        )
    if gone := [name for name in info["sha256"] if not (output / name).is_file()]:
        raise InputError(f"{output} was prepared so, but {gone[0]} is missing there. {way_out}")
    return True


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs between the `settings` of two commands, in words."""
    words = []
    for name in _FILES:
        had, has = before.get(name) is not None, now.get(name) is not None
        if had != has:
            then, today = ("was given", "is not") if had else ("was not given", "is")
            words.append(f"--{name.replace(' ', '-')} {then} then, and {today} now")
            before, now = ({key: value for key, value in each.items() if key != name} for each in (before, now))
    return "; ".join(filter(None, [*words, changes(before, now)]))


def _other_content(output: Path, images: Path) -> str:
    """The first image file that does not hold what it held when it was prepared; "" where all do."""
    index = dataset.read_index(output)
    pairs = zip(index.source.tolist(), index.sha256.tolist(), strict=True)
    changed = (source for source, before in pairs if sha256(images / source) != before)
    return printable(next(changed, ""))


def counts(output: Path) -> tuple[int, int, dict[str, int]]:
    """Images, positive images, and what was set aside by reason, of a prepared data set."""
    of = dataset.read_info(output)["counts"]
    rows = read_rows(output / "quarantine.csv", ("reason",)) if of["set_aside"] else ()
    return of["images"], of["positive"], dict(Counter(row["reason"] for _, row in rows))


def _digest_of(path: Path | None) -> str | None:
    return _digest(Path(path).read_bytes()) if path else None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_DIGITS]
