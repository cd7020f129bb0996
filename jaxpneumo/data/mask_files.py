"""Masks as PNG files instead of a label csv: one file an image, 0 is background, all else is pneumothorax.

A file is called by its image's id, or by the path of the image's file (`ids`). A mask that cannot be used sets its
image aside. An image without mask is set aside, too, unless the user says that it is negative.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np

from jaxpneumo.data import ids, rle
from jaxpneumo.dicom import codestream
from jaxpneumo.process import run_report
from jaxpneumo.process.errors import InputError
from jaxpneumo.process.files import printable

MOST_LEVELS = 16  # grey levels of a mask; a picture that was blurred or scaled, or is no mask at all, has more


@dataclass(frozen=True)
class MaskFiles:
    """The mask files by image.

    Attributes:
      path: their folder.
      codes: ImageId -> (0, path below the folder) of its files, in the form of `labels.Labels.codes`.
      missing_are_empty: whether an image without mask is negative.
      entry: what messages call one of them.
    """

    path: Path
    codes: dict[str, list[tuple[int, str]]]
    missing_are_empty: bool = False
    entry: ClassVar[str] = "mask"
    repeated: ClassVar[int] = 0

    def words(self, image_id: str) -> str:
        """An image's mask files, for messages."""
        return ", ".join(f"the mask {printable(name)}" for _, name in self.codes[image_id])


def find_masks(folder: Path) -> list[Path]:
    """The mask files below a folder at any depth, sorted; files whose name begins with a dot are passed over.

    Raises:
      InputError: there are none, or there is a file that is no PNG.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    if not files:
        raise InputError(f"{folder} holds no PNG files. Give the folder with the masks as --masks.")
    if other := next((path for path in files if path.suffix.lower() != ".png"), None):
        raise InputError(
            f"{printable(str(other))} is not a PNG file. Masks are read from PNG only: convert it, or move it away."
        )
    run_report.read(folder, len(files))
    return files


def read_masks(folder: Path, files: Collection[Path], sources: Collection[str], missing_are_empty: bool) -> MaskFiles:
    """Matches mask files to the image files by name and path.

    Args:
      folder, files: the result of `find_masks` for a folder.
      sources: the images' files below their folder.
      missing_are_empty: whether an image without mask is negative.

    """
    named: dict[str, list[tuple[int, str]]] = {}
    for path in files:
        below = path.relative_to(folder)
        named.setdefault(printable(below.with_suffix("").as_posix()), []).append((0, below.as_posix()))
    plain = ids.plain_ids(named, sources)
    return MaskFiles(folder, ids.merged(named, plain), missing_are_empty)


def conflict(masks: MaskFiles, image_id: str) -> str:
    """In words, that an image has several mask files; "" if it does not."""
    names = [printable(name) for _, name in masks.codes.get(image_id, ())]
    return f"{', '.join(names)} in {masks.path.name} are all masks of it. Keep one." if len(names) > 1 else ""


def mask(masks: MaskFiles, image_id: str, height: int, width: int) -> tuple[np.ndarray | None, str, int]:
    """The mask of one image.

    Returns:
      The mask, (height, width) uint8 0/1, column by column in memory, or None where it is empty; its run-length code;
      and 1, or 0 where it is empty.

    Raises:
      InputError: the file is damaged, is of another size than its image, has several channels, or has more than
        MOST_LEVELS grey levels.
    """
    places = masks.codes.get(image_id)
    if not places and masks.missing_are_empty:
        return None, rle.EMPTY, 0
    assert places, image_id
    found = np.asfortranarray(_read(masks.path / places[0][1], height, width) != 0)
    if not found.any():
        return None, rle.EMPTY, 0
    return found.view(np.uint8), rle.encode(found), 1


def _read(path: Path, height: int, width: int) -> np.ndarray:
    """The pixels of a mask file (height, width)."""
    shown = printable(path.name)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"the mask {shown} cannot be read: {error.strerror}.") from error
    if not (data.startswith(codestream.PNG_SIGNATURE) and codestream.png_is_whole(data)):
        raise InputError(f"the mask {shown} is no PNG file, or is truncated or damaged. Export it again.")
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise InputError(f"the mask {shown} is damaged. Export it again.")
    if pixels.ndim != 2:
        raise InputError(f"the mask {shown} has {pixels.shape[2]} channels. Export it in grey, with one channel.")
    if pixels.shape != (height, width):
        raise InputError(
            f"the mask {shown} has {pixels.shape[0]} x {pixels.shape[1]} pixels, and its image {height} x {width}. "
            "Give it in the image's own size."
        )
    if (levels := len(np.unique(pixels))) > MOST_LEVELS:
        raise InputError(
            f"the mask {shown} has {levels} grey levels, so its border is unclear, or it is no mask. Export it with "
            "0 for background and one other value."
        )
    return pixels
