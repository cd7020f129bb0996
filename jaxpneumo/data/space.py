"""Whether a data set's arrays fit on the disk."""

import shutil
from pathlib import Path

from jaxpneumo.data.reconcile import Outcome
from jaxpneumo.process.errors import InputError


def _bytes_needed(count: int, sizes: tuple[int, ...]) -> int:
    return sum(count * size * size * 9 // 8 for size in sizes)


def check_space(partial: Path, count: int, sizes: tuple[int, ...]) -> None:
    """Raises InputError early if the arrays will not fit on the disk."""
    there = sum(path.stat().st_blocks * 512 for path in partial.glob("*.npy"))
    folder = next(parent for parent in partial.absolute().parents if parent.exists())
    needed, (total, _, free) = _bytes_needed(count, sizes) - there, shutil.disk_usage(folder)
    if total and needed > free:
        raise InputError(
            f"{folder} has {free / 1e9:.1f} GB free and {count} images need {needed / 1e9:.1f} GB. "
            "Make room, or choose another --output or fewer --sizes."
        )


def check_room(partial: Path, kept: list[Outcome], count: int, sizes: tuple[int, ...]) -> None:
    """Raises InputError if there is no room for a second copy of the arrays, without the rows that were set aside."""
    if [outcome.row for outcome in kept] == list(range(count)):
        return
    needed, free = _bytes_needed(len(kept), sizes), shutil.disk_usage(partial).free
    if needed > free:
        raise InputError(
            f"{partial} has {free / 1e9:.1f} GB free; leaving out what was set aside needs {needed / 1e9:.1f} GB for a "
            "while. Make room and give the same command again: it goes on here."
        )
