"""Paths that a user names: where results go is tried before any work, so that none is done in vain."""

import argparse
import errno
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxpneumo.process.errors import InputError


def path(text: str) -> Path:
    """A path as it was typed, `~` being the home folder; one without a name of its own, such as `.`, by its full name.

    Raises ArgumentTypeError, as the `type` of an option has to, for an empty one.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError("the path is empty; give a name, or . for the current folder")
    try:
        named = Path(text).expanduser()
    except RuntimeError:  # of a user whom nobody knows
        named = Path(text)
    return named if named.name not in ("", "..") else named.resolve()


def folder_to_fill(text: str) -> Path:
    """A folder to write into, there already or to be made. Raises ArgumentTypeError where that cannot be."""
    return _tried(path(text), check_folder)


def folder_to_make(text: str) -> Path:
    """A folder that is made under another name beside it first. Raises ArgumentTypeError where that cannot be."""
    return _tried(path(text), lambda folder: (check_folder(folder), check_folder(folder.parent)))


def file_to_write(text: str) -> Path:
    """A file to write. Raises ArgumentTypeError where that cannot be."""
    return _tried(path(text), check_file)


def scratch_folder(text: str) -> Path:
    """A folder that is there, for what is removed again. Raises ArgumentTypeError where it cannot be used."""
    folder = path(text)
    if not folder.is_dir():
        raise argparse.ArgumentTypeError(f"{folder} is not a folder; make it, or give another")
    return _tried(folder, check_folder)


def check_folder(folder: Path, option: str = "") -> None:
    """Raises InputError, naming `option`, unless files can be written in a folder that is there or can be made."""
    name = f"{option}: " if option else ""
    try:
        place = next(each for each in (folder, *folder.parents) if _is_there(each))
        if not place.is_dir():
            raise InputError(f"{name}{place} is not a folder. Choose another place.")
        # Rights alone do not tell: a file system can be read-only, or none for files at all.
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        text = f"{name}nothing can be written to {folder} ({error.strerror}). Choose another place."
        raise InputError(text) from error


def check_file(file: Path, option: str = "") -> None:
    """Raises InputError, naming `option`, unless a file can be written there."""
    name = f"{option}: " if option else ""
    try:
        mode = os.lstat(file).st_mode if _is_there(file) else stat.S_IFREG
    except OSError as error:
        raise InputError(f"{name}{file} cannot be written ({error.strerror}). Choose another name.") from error
    if stat.S_ISDIR(mode) or file.is_dir():
        raise InputError(f"{name}{file} is a folder. Give the name of a file.")
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        raise InputError(f"{name}{file} is a device, not a file. Give the name of a file.")
    check_folder(file.parent, option)


def _is_there(each: Path) -> bool:
    try:
        os.lstat(each)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise
        return False
    return True


def _tried(place: Path, check: Callable[[Path], Any]) -> Path:
    try:
        check(place)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error).removesuffix(".")) from error
    return place
