"""Windowing: turns stored values into grey levels as the DICOM header says (PS3.3 C.11.1, C.11.2, C.7.5.1.1.2).

There are at most 65,536 different stored values. Every transformation is computed once for each of them. The picture
is then one look-up.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxpneumo.dicom import grey
from jaxpneumo.dicom.elements import Elements
from jaxpneumo.dicom.radiograph import RadiographError, one_grey
from jaxpneumo.dicom.stored import Stored

FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


def to_grey(elements: Elements, stored: Stored, name: Path | str) -> np.ndarray:
    """The grey levels of a picture, 0..255: bones are white, padding outside the exposed field is black.

    8-bit values without any transformation stay as they are; others without a VOI transformation are stretched. A
    transformation that would leave a single grey is not used, and that is remarked.

    Args:
      elements: of the data set.
      stored: its stored values.
      name: what messages call the file.

    Returns:
      (H, W) uint8.

    Raises:
      RadiographError: all pixels have one value, or a look-up table contradicts itself.
    """
    padding, beyond = _padding(elements, stored)
    counts = np.bincount(stored.cells.ravel(), minlength=len(stored.values))
    if beyond is not None:
        counts -= np.bincount(stored.cells[beyond], minlength=len(stored.values))
    counts[padding] = 0
    if grey.is_one(stored.values, counts):
        raise one_grey(name)
    values = _rescaled(elements, stored, counts, name)
    shown = next((each for each in _voi(elements, values, counts, name)), None)
    if shown is None:
        plain = stored.is_grey and values is stored.values
        shown = stored.values.astype(np.uint8) if plain else grey.stretch(values, counts > 0)
        if not plain and grey.is_uneven(values, counts):
            elements.remark(grey.UNEVEN)
    if elements.text("PhotometricInterpretation").upper() == "MONOCHROME1":
        shown = 255 - shown
    shown[padding] = 0
    image = shown[stored.cells]
    if beyond is not None:
        image[beyond] = 0
    return image


def _rescaled(elements: Elements, stored: Stored, counts: np.ndarray, name: Path | str) -> np.ndarray:
    """The values after the modality transformation (C.11.1); the stored ones themselves where it changes nothing."""
    low, high = int(stored.values.min()), int(stored.values.max())
    for item in elements.items("ModalityLUTSequence"):
        if (table := look_up_table(item, "Modality LUT", low, high, name)) is not None:
            values = table.look_up(stored.values)
            if not grey.is_one(values, counts):
                return values
            elements.remark("the Modality LUT would leave a single grey; it is ignored")
    slope, intercept = elements.number("RescaleSlope"), elements.number("RescaleIntercept")
    if slope == 0:
        elements.remark("Rescale Slope is 0, which would leave a single grey; it is ignored")
        return stored.values
    slope, intercept = 1 if slope is None else slope, 0 if intercept is None else intercept
    if (slope, intercept) == (1, 0):
        return stored.values
    values = stored.values * slope + intercept
    if grey.is_one(values, counts):
        elements.remark(f"Rescale Intercept is {intercept:g}, which would leave a single grey; it is ignored")
        return stored.values
    return values


def _voi(elements: Elements, values: np.ndarray, counts: np.ndarray, name: Path | str) -> Iterator[np.ndarray]:
    """The grey level of each value, uint8, after each usable VOI transformation (C.11.2), in order of priority."""
    if elements.unreadable & {"RescaleSlope", "RescaleIntercept"}:
        if "VOILUTSequence" in elements.dataset or "WindowWidth" in elements.dataset:
            elements.remark("without the rescaling, VOI LUT and window mean nothing; they are ignored")
        return
    low, high = float(values.min()), float(values.max())
    for item in elements.items("VOILUTSequence"):
        if (table := look_up_table(item, "VOI LUT", low, high, name)) is None:
            continue
        shown = grey.to_uint8(table.look_up(np.rint(values).astype(np.int64)) / table.full * 255)
        if not grey.is_one(shown, counts):
            yield shown
        elements.remark("the VOI LUT would leave a single grey; it is ignored")
    center, width = elements.number("WindowCenter"), elements.number("WindowWidth")
    if center is None or width is None:
        return
    function = elements.text("VOILUTFunction").upper() or "LINEAR"
    if function not in FUNCTIONS:
        elements.remark(f"VOI LUT Function is {function[:16]!r}; LINEAR is used")
        function = "LINEAR"
    if width < 1 if function == "LINEAR" else width <= 0:  # C.11.2.1.2, C.11.2.1.3
        elements.remark(f"Window Width is {width:g}, which {function} cannot have; the window is ignored")
        return
    shown = grey.window(values, center, width, function)
    if not grey.is_one(shown, counts):
        yield shown
    elements.remark(
        f"the window (center {center:g}, width {width:g}) lies beside the values; it would leave a single grey and is "
        "ignored"
    )


class LookUpTable:
    """A look-up table: its entries, the value of the first, and the largest that its bits allow."""

    def __init__(self, entries: np.ndarray, first: int):
        self.entries, self.first = entries, first
        # The bits that the entries need, not those of the descriptor; the standard has no tables below 8 bits.
        self.full = 2 ** max(8, int(entries.max()).bit_length()) - 1

    def look_up(self, values: np.ndarray) -> np.ndarray:
        return self.entries[np.clip(values - self.first, 0, len(self.entries) - 1)]


def look_up_table(item: Elements, kind: str, low: float, high: float, name: Path | str) -> LookUpTable | None:
    """The table of a LUT sequence's item (C.11.1.1, C.11.2.1.1); None where it has none, which is remarked.

    Args:
      item: of the sequence.
      kind: what messages call the table.
      low, high: the smallest and largest value that may be looked up.
      name: what messages call the file.

    Raises:
      RadiographError: LUT Data do not have as many entries as LUT Descriptor says.
    """
    descriptor, raw = item.numbers("LUTDescriptor"), _lut_bytes(item)
    if len(descriptor) != 3 or not raw:
        item.remark(f"an item of the {kind} Sequence has no table; it is ignored")
        return None
    count = int(descriptor[0]) & 0xFFFF or 65536
    if len(raw) in (count, count + count % 2):
        entries = np.frombuffer(raw, np.uint8, count)
    elif len(raw) >= 2 * count:
        entries = np.frombuffer(raw, "<u2", count)
    else:
        raise RadiographError(
            f"{name} has a {kind} whose LUT Descriptor says {count} entries, but LUT Data have {len(raw)} bytes. "
            "Export it again without this table."
        )
    return LookUpTable(entries.astype(np.int64), _first_value(int(descriptor[1]), count, low, high))


def _first_value(first: int, count: int, low: float, high: float) -> int:
    """The value of a table's first entry. Implicit VR does not give its sign; the reading that fits is used."""
    pattern, signed = first & 0xFFFF, _signed(first)
    readings = (signed, pattern) if low < 0 else (pattern, signed)
    return next((each for each in readings if each <= high and each + count > low), readings[0])


def _lut_bytes(item: Elements) -> bytes:
    """LUT Data as bytes, little endian; b"" where there are none."""
    try:
        value = item.dataset.get("LUTData")
        if isinstance(value, bytes):
            big = getattr(item.dataset, "original_encoding", (None, None))[1] is False
            return np.frombuffer(value[: len(value) // 2 * 2], ">u2").astype("<u2").tobytes() if big else value
        return (np.atleast_1d(np.asarray(value, np.int64)) & 0xFFFF).astype("<u2").tobytes() if value else b""
    except (ValueError, TypeError, OverflowError):
        return b""


def _padding(elements: Elements, stored: Stored) -> tuple[np.ndarray, np.ndarray | None]:
    """Which stored values are padding (C.7.5.1.1.2), and which pixels are padding by bits above Bits Stored.

    Values are compared as bits, because the element may be signed where the pixels are not. A pixel's word may also
    hold a padding value that is too large for Bits Stored.

    Returns:
      (2**bits,) bool; (H, W) bool, or None where no pixel is such a word.
    """
    none = np.zeros(len(stored.values), bool)
    start = elements.whole("PixelPaddingValue")
    if start is None:
        return none, None
    limit = elements.whole("PixelPaddingRangeLimit")
    fits = (start & 0xFFFF) < len(stored.values) or (stored.signed and -len(stored.values) // 2 <= _signed(start))
    if limit is None and not fits:
        beyond = stored.words == start & 0xFFFF
        if beyond.any():
            return none, beyond
    ends = [_as_stored(start, stored), _as_stored(start if limit is None else limit, stored)]
    return (stored.values >= min(ends)) & (stored.values <= max(ends)), None


def _as_stored(value: int, stored: Stored) -> int:
    """The stored value that has the bits of a 16-bit number; the number itself if it needs more bits."""
    pattern, patterns = value & 0xFFFF, len(stored.values)
    if pattern < patterns or pattern >= 0x10000 - patterns // 2:
        return int(stored.values[pattern % patterns])
    return _signed(value) if stored.signed else pattern


def _signed(value: int) -> int:
    """The value of 16 bits in two's complement."""
    return (value & 0xFFFF) - (0x10000 if value & 0x8000 else 0)
