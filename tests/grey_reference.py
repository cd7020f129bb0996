"""How the stored words of a DICOM image become grey levels, read plainly from the standard.

Written from PS3.3 C.7.6.3 (image pixel), C.7.5.1.1.2 (padding), C.11.1 (modality LUT), C.11.2 (VOI LUT) and
PS3.5 8.1.1 (words) alone, to judge the code that reads radiographs. Nothing of it is imported here.
Where the standard leaves a choice, the choice is this project's and is marked as such.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, repr=False)
class Table:
    """A look-up table (C.11.1.1.1, C.11.2.1.1) and how the file holds it.

    Attributes:
      first: the input that has the first entry.
      entries: (N,) int64.
      bits: third value of LUT Descriptor.
      size: bytes an entry, 1 or 2.
      vr: VR of LUT Data in an explicit file, "US" or "OW".
      signed: VR of LUT Descriptor is SS.
    """

    first: int
    entries: np.ndarray
    bits: int
    size: int
    vr: str
    signed: bool

    def __repr__(self) -> str:
        low, high = self.entries.min(), self.entries.max()
        kind = "SS" if self.signed else "US"
        return (
            f"Table({len(self.entries)} entries {low}..{high} from input {self.first}, "
            f"descriptor {kind} with {self.bits} bits, data {self.vr} of {self.size} byte(s) an entry)"
        )

    def look_up(self, values: np.ndarray) -> np.ndarray:
        """Inputs below the first have the first entry, those above the last have the last one."""
        places = np.rint(values).astype(np.int64) - self.first
        return self.entries[np.clip(places, 0, len(self.entries) - 1)].astype(float)

    def full_scale(self) -> int:
        """The project's choice: the most that the bits of the largest entry can hold, at least 255."""
        return 2 ** max(8, int(self.entries.max()).bit_length()) - 1


@dataclass(frozen=True)
class Window:
    """The first window (C.11.2.1.2, C.11.2.1.3); `function` as in VOI LUT Function, "" where there is none."""

    center: float
    width: float
    function: str = ""

    def is_usable(self) -> bool:
        """C.11.2.1.2.1: at least 1 for LINEAR; C.11.2.1.3: above 0 for the others."""
        return self.width >= 1 if self.function in ("", "LINEAR") else self.width > 0

    def apply(self, values: np.ndarray) -> np.ndarray:
        """0..255, not rounded."""
        if self.function == "SIGMOID":
            # 255 / (1 + exp(-4 (x - c) / w)) in a form that cannot overflow.
            return 127.5 * (1 + np.tanh(2 * (values - self.center) / self.width))
        exact = self.function == "LINEAR_EXACT"
        center, width = (self.center, self.width) if exact else (self.center - 0.5, self.width - 1)
        shown = np.where(values > center + width / 2, 255.0, 0.0)
        between = (values > center - width / 2) & (values <= center + width / 2)
        shown[between] = ((values[between] - center) / width + 0.5) * 255
        return shown


@dataclass(frozen=True)
class Header:
    """What the header says about grey levels. `padding` and `limit` are values in the image's own sign."""

    allocated: int
    stored: int
    high_bit: int
    signed: bool
    inverted: bool = False
    slope: float | None = None
    intercept: float | None = None
    modality: Table | None = None
    padding: int | None = None
    limit: int | None = None
    table: Table | None = None
    window: Window | None = None


def stored_values(words: np.ndarray, header: Header) -> np.ndarray:
    """PS3.5 8.1.1: the stored bits of each word, in two's complement where Pixel Representation is 1; int64."""
    values = (words.astype(np.int64) >> (header.high_bit + 1 - header.stored)) & (2**header.stored - 1)
    if header.signed:
        values = np.where(values >= 2 ** (header.stored - 1), values - 2**header.stored, values)
    return values


def is_padding(values: np.ndarray, header: Header) -> np.ndarray:
    """C.7.5.1.1.2: stored values equal to the padding value, or from it to the limit, both included."""
    if header.padding is None:
        return np.zeros(values.shape, bool)
    limit = header.padding if header.limit is None else header.limit
    return (values >= min(header.padding, limit)) & (values <= max(header.padding, limit))


def is_rescaled(header: Header) -> bool:
    return header.slope not in (None, 1) or header.intercept not in (None, 0)


def modality_values(values: np.ndarray, header: Header) -> np.ndarray:
    """C.11.1: by the modality LUT, or slope * value + intercept; float64."""
    if header.modality is not None:
        return header.modality.look_up(values)
    slope = 1.0 if header.slope is None else header.slope
    return slope * values + (header.intercept or 0.0)


def grey(words: np.ndarray, header: Header) -> np.ndarray:
    """The picture that must be read, 0..255, not rounded; bones white, padding black."""
    values = stored_values(words, header)
    padding = is_padding(values, header)
    plain = header.modality is None and not is_rescaled(header)
    values = modality_values(values, header)
    if header.table is not None:
        shown = header.table.look_up(values) * 255 / header.table.full_scale()
    elif header.window is not None and header.window.is_usable():
        shown = header.window.apply(values)
    elif plain and header.allocated == 8 == header.stored and not header.signed:
        shown = values
    else:
        # The project's choice where no VOI transformation is given: the extremes become 0 and 255.
        low, high = values[~padding].min(), values[~padding].max()
        shown = (values - low) * 255 / max(high - low, 1e-9)
    # C.7.6.3.1.2: MONOCHROME1 shows the smallest value white.
    shown = 255 - shown if header.inverted else shown
    return np.where(padding, 0, shown)
