"""Random radiographs for the test of grey levels: a header, words that fit it, and the file of both."""

from dataclasses import dataclass, replace
from io import BytesIO

import imagecodecs
import numpy as np
from grey_reference import Header, Table, Window, grey, is_padding, modality_values, stored_values
from pydicom import DataElement, Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_encoder
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

PLAIN = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian)
SYNTAXES = (*PLAIN, RLELossless, JPEG2000Lossless, JPEGLSLossless, JPEGLosslessSV1, HTJ2KLossless)
FUNCTIONS = ("", "LINEAR", "LINEAR_EXACT", "SIGMOID")
LEAST_CONTRAST = 32  # grey levels between the darkest and the brightest pixel that is no padding


@dataclass(frozen=True)
class Case:
    """One file to be. What follows `words` is how the file says it; none of it changes the picture.

    Attributes:
      precision: bits a sample of the compressed stream; those stored, or all that are allocated.
      signed_stream: the compressed stream carries signed samples (JPEG 2000).
      padding_pattern: 16-bit words of Pixel Padding Value and Range Limit, None where absent.
      padding_vr: their VR in an explicit file.
      center, width, slope, intercept: decimal strings as written; windows may have several values.
      blank_item: VOI LUT Sequence begins with an item that has no table.
      more_items: it ends with another table.
      empty: elements that say nothing are there with no value, instead of being absent.
      undefined_length: the sequences end with a delimiter.
    """

    header: Header
    words: np.ndarray
    syntax: str
    precision: int
    signed_stream: bool
    padding_pattern: tuple[int | None, int | None] = (None, None)
    padding_vr: str = "US"
    center: str = ""
    width: str = ""
    slope: str = ""
    intercept: str = ""
    blank_item: bool = False
    more_items: bool = False
    empty: bool = False
    undefined_length: bool = False


def draw(seed: int, syntax: str) -> Case:
    """The case of this seed; its picture has contrast."""
    rng = np.random.default_rng(seed)
    while True:
        case = _draw_once(rng, syntax)
        values = stored_values(case.words, case.header)
        image = ~is_padding(values, case.header)
        if (
            image.mean() > 0.4
            and np.ptp(values[image])
            and np.ptp(grey(case.words, case.header)[image]) > LEAST_CONTRAST
        ):
            return case


def _draw_once(rng: np.random.Generator, syntax: str) -> Case:
    whole = syntax in PLAIN or syntax in (RLELossless, HTJ2KLossless) or rng.random() < 0.5
    stored = int(rng.choice([8, 8, 10, 12, 12, 14, 16, rng.integers(9, 17)]))
    allocated = 8 if stored == 8 and rng.random() < 0.6 else 16
    top = stored - 1 if not whole or rng.random() < 0.6 else int(rng.integers(stored - 1, allocated))
    header = Header(allocated, stored, top, signed=bool(rng.random() < 0.4), inverted=bool(rng.random() < 0.4))
    values = _draw_values(rng, header)
    if rng.random() < 0.4:
        header, values = _with_padding(rng, header, values)
    header = _with_modality(rng, header, values)
    header = _with_voi(rng, header, modality_values(values, header))
    return Case(
        header=header,
        words=_words(rng, header, values, whole),
        syntax=syntax,
        precision=allocated if whole else stored,
        signed_stream=header.signed and syntax in (JPEG2000Lossless, HTJ2KLossless) and bool(rng.random() < 0.7),
        padding_pattern=_padding_patterns(rng, header),
        padding_vr=str(rng.choice(["US", "SS"])),
        **{name: bool(rng.random() < 0.2) for name in ("blank_item", "more_items", "empty", "undefined_length")},
        **_decimals(rng, header),
    )


def _draw_values(rng: np.random.Generator, header: Header) -> np.ndarray:
    """A slanted ramp with noise in a part of the range that the stored bits have."""
    least, most = _range(header)
    span = int(rng.integers(60, most - least + 1))
    low = int(rng.choice([least, most - span, rng.integers(least, most - span + 1)]))
    rows, columns = np.mgrid[: rng.integers(16, 28), : rng.integers(16, 28)]
    ramp = rows / rows.max() + columns / columns.max() + rng.normal(0, 0.1, rows.shape)
    ramp = (ramp - ramp.min()) / np.ptp(ramp)
    return low + np.rint(ramp * span).astype(np.int64)


def _range(header: Header) -> tuple[int, int]:
    """The smallest and the largest value that the stored bits hold."""
    least = -(2 ** (header.stored - 1)) if header.signed else 0
    return least, least + 2**header.stored - 1


def _with_padding(rng: np.random.Generator, header: Header, values: np.ndarray) -> tuple[Header, np.ndarray]:
    """A padding value, a range of them, or a limit without a value, and padding at the picture's side."""
    least, most = _range(header)
    value = int(rng.choice([least, most, rng.integers(least, most + 1)]))
    kind = rng.choice(["value", "range", "limit alone"], p=[0.45, 0.45, 0.1])
    other = int(np.clip(value + rng.integers(-((most - least) // 4), (most - least) // 4 + 1), least, most))
    if kind == "limit alone":
        return replace(header, limit=value), values
    values = values.copy()
    low, high = (value, value) if kind == "value" else sorted((value, other))
    side = (slice(None), slice(int(rng.integers(1, 6))))
    values[side] = rng.integers(low, high + 1, values[side].shape)
    return replace(header, padding=value, limit=None if kind == "value" else other), values


def _with_modality(rng: np.random.Generator, header: Header, values: np.ndarray) -> Header:
    kind = rng.choice(["none", "neutral", "slope", "intercept", "both", "table"], p=[0.3, 0.1, 0.1, 0.1, 0.25, 0.15])
    if kind == "table":
        least, most = _range(header)
        return replace(header, modality=_draw_table(rng, values, (least, most), header.signed, smooth=False))
    if kind == "neutral":
        return replace(header, slope=rng.choice([None, 1.0]), intercept=rng.choice([None, 0.0]))
    slope = float(rng.choice([2.0, -1.0, -3.0, 0.5, -0.25, 0.0123, round(float(rng.uniform(0.01, 4)), 4)]))
    intercept = float(rng.choice([-1024.0, 100.0, 4095.0, -0.5, round(float(rng.uniform(-2000, 2000)), 3)]))
    return replace(
        header,
        slope=slope if kind in ("slope", "both") else None,
        intercept=intercept if kind in ("intercept", "both") else None,
    )


def _is_whole(header: Header) -> bool:
    """All outputs of the modality transformation are whole numbers."""
    return header.modality is not None or all(
        number is None or float(number).is_integer() for number in (header.slope, header.intercept)
    )


def _with_voi(rng: np.random.Generator, header: Header, values: np.ndarray) -> Header:
    """None, a table, a window, or both; `values` are the modality's."""
    kind = rng.choice(["none", "table", "window", "both"], p=[0.2, 0.3, 0.4, 0.1])
    if kind in ("window", "both"):
        header = replace(header, window=_draw_window(rng, header, values))
    if kind in ("table", "both"):
        # C.11.2.1.1: SS where the output of the modality transformation may be negative.
        possible = modality_values(np.array(_range(header)), header)
        signed = bool(header.modality is None and possible.min() < 0)
        limits = (-(2**15), 2**15 - 1) if signed else (0, 2**16 - 1)
        # The standard does not say which entry a fraction has: there, neighbours differ little.
        header = replace(header, table=_draw_table(rng, values, limits, signed, smooth=not _is_whole(header)))
    return header


def _draw_table(
    rng: np.random.Generator, values: np.ndarray, limits: tuple[int, int], signed: bool, smooth: bool
) -> Table:
    """A table for inputs within the limits, over all of these values, a part of them, or all that 16 bits hold."""
    low, high = (int(limit) for limit in np.clip([np.floor(values.min()), np.ceil(values.max())], *limits))
    cover = rng.choice(["values", "part", "all", "more"])
    if cover == "part" and not smooth:
        low, high = sorted(int(limit) for limit in rng.integers(low, high + 1, 2))
    elif cover == "more":
        low, high = max(limits[0], low - int(rng.integers(300))), min(limits[1], high + int(rng.integers(300)))
    elif cover == "all":
        low, high = limits
    count = max(high - low + 1, 1500 if smooth else 2)
    low = min(low, limits[1] - count + 1) if count <= limits[1] - limits[0] + 1 else limits[0]
    count = min(count, limits[1] - low + 1)
    size = 1 if rng.random() < 0.3 else 2
    bits = 8 if size == 1 else int(rng.choice([8, 10, 12, 16, rng.integers(8, 17)]))
    entries = np.linspace(0, 1, count) ** rng.choice([0.7, 1, 1.5]) if smooth else _draw_curve(rng, count)
    largest = int(rng.choice([2**bits - 1, rng.integers(2 ** (bits - 1), 2**bits)]))
    entries = np.rint(entries * largest).astype(np.int64)
    described = bits if rng.random() < 0.6 else int(rng.integers(bits, 17))
    return Table(low, entries, described, size, "US" if count * size < 65534 and rng.random() < 0.5 else "OW", signed)


def _draw_curve(rng: np.random.Generator, count: int) -> np.ndarray:
    """`count` shares of the full scale, the largest of them 1."""
    place = np.linspace(0, 1, count)
    curve = [place, 1 - place, place**2, np.sqrt(1 - place), (1 + np.sin(9 * place)) / 2, rng.random(count)]
    chosen = curve[rng.integers(len(curve))]
    return chosen / chosen.max()


def _draw_window(rng: np.random.Generator, header: Header, values: np.ndarray) -> Window:
    """Mostly over a good part of the values; some narrower than 1, some too narrow to be used."""
    function = str(rng.choice(FUNCTIONS))
    span, digits = np.ptp(values), 0 if rng.random() < 0.5 else 3
    center = round(float(values.min() + span * rng.uniform(0.2, 0.8)), digits)
    width = max(round(float(span * rng.uniform(0.1, 2)), digits), 1.0)
    if rng.random() < 0.3 and _is_whole(header):
        # A step falls between whole numbers or on one; on fractions, rounding of the input would decide.
        center, width = round(center) + float(rng.choice([0, 0.5, 0.25])), float(rng.choice([1, 1.5, 0.5, 0.125, 2]))
    elif rng.random() < 0.1:
        width = float(rng.choice([0, -20, 0.5])) if function in ("", "LINEAR") else float(rng.choice([0, -20]))
    # A width rounded to one step of a fractional slope would be such a step too.
    if not _is_whole(header) and 0 < width < 10 * abs(header.slope or 1):
        width = 10 * abs(header.slope or 1) + 1
    return Window(center, round(width, 4), function)


def _words(rng: np.random.Generator, header: Header, values: np.ndarray, whole: bool) -> np.ndarray:
    """The values in their places; the bits beside them are zero, random or, above, the sign's."""
    shift, mask = header.high_bit + 1 - header.stored, 2**header.stored - 1
    words = (values & mask) << shift
    unused = (2**header.allocated - 1) ^ (mask << shift)
    filling = rng.choice(["zero", "random", "sign"]) if whole else "zero"
    if filling == "random":
        words |= rng.integers(0, 2**header.allocated, words.shape) & unused
    elif filling == "sign" and shift == 0:
        words = values & (2**header.allocated - 1)
    return words.astype(f"u{header.allocated // 8}")


def _padding_patterns(rng: np.random.Generator, header: Header) -> tuple[int | None, int | None]:
    """16-bit words of the padding's values: with the sign's bits above, or the stored bits alone."""
    mask = 2**16 - 1 if rng.random() < 0.85 else 2**header.stored - 1
    return tuple(None if value is None else value & mask for value in (header.padding, header.limit))


def _decimals(rng: np.random.Generator, header: Header) -> dict[str, str]:
    """Decimal strings; a second window now and then."""
    numbers = {"slope": header.slope, "intercept": header.intercept}
    if header.window is not None:
        numbers |= {"center": header.window.center, "width": header.window.width}
    form = rng.choice([".8g", ".8g", "+.8g", ".8E"])
    written = {name: f"{number:{form}}" for name, number in numbers.items() if number is not None}
    if header.window is not None and rng.random() < 0.3:
        written["center"] += "\\7"
        written["width"] += "\\300"
    return written


def to_dataset(case: Case) -> Dataset:
    header, made = case.header, Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = case.syntax
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = ComputedRadiographyImageStorage
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = "1.2.3"
    made.Modality, made.BodyPartExamined, made.ViewPosition = "CR", "CHEST", "PA"
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, f"MONOCHROME{1 if header.inverted else 2}"
    made.Rows, made.Columns = case.words.shape
    made.BitsAllocated, made.BitsStored, made.HighBit = header.allocated, header.stored, header.high_bit
    made.PixelRepresentation = int(header.signed)
    for keyword, pattern in zip(("PixelPaddingValue", "PixelPaddingRangeLimit"), case.padding_pattern, strict=True):
        if pattern is not None or case.empty:
            signed = case.padding_vr == "SS" and (pattern or 0) > 0x7FFF
            made.add_new(keyword, case.padding_vr, pattern - 2**16 if signed else pattern)
    texts = (case.slope, case.intercept, case.center, case.width, header.window and header.window.function)
    names = ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "VOILUTFunction")
    for keyword, text in zip(names, texts, strict=True):
        if text or case.empty:
            setattr(made, keyword, (text.split("\\") if "\\" in text else text) if text else None)
    _set_tables(case, made)
    _set_pixels(case, made)
    return made


def _set_tables(case: Case, made: Dataset) -> None:
    modality, voi = [], []
    if case.header.modality is not None:
        modality = [_table_item(case.header.modality)]
        modality[0].ModalityLUTType = "US"
    if case.header.table is not None:
        blank, other = Dataset(), replace(case.header.table, entries=case.header.table.entries[::-1])
        blank.LUTExplanation = "none"
        voi = [blank] * case.blank_item + [_table_item(case.header.table)] + [_table_item(other)] * case.more_items
    for keyword, items in (("ModalityLUTSequence", modality), ("VOILUTSequence", voi)):
        if items or case.empty:
            setattr(made, keyword, items)
            made[keyword].is_undefined_length = case.undefined_length
            for item in items:
                item.is_undefined_length_sequence_item = case.undefined_length


def _table_item(table: Table) -> Dataset:
    item = Dataset()
    descriptor = [len(table.entries) % 2**16, table.first, table.bits]
    item.add_new("LUTDescriptor", "SS" if table.signed else "US", descriptor)
    data = table.entries.astype(f"<u{table.size}").tobytes()
    data += b"\0" * (len(data) % 2)
    item.add_new("LUTData", table.vr, data if table.vr == "OW" else np.frombuffer(data, "<u2").tolist())
    return item


def _set_pixels(case: Case, made: Dataset) -> None:
    words = np.ascontiguousarray(case.words)
    if case.syntax in PLAIN:
        data = words.tobytes() + b"\0" * (words.nbytes % 2)
    else:
        data = encapsulate([_compress(case, words)])
    made["PixelData"] = DataElement("PixelData", "OW" if case.syntax in PLAIN and words.itemsize == 2 else "OB", data)
    made["PixelData"].is_undefined_length = case.syntax not in PLAIN


def _compress(case: Case, words: np.ndarray) -> bytes:
    """A stream without loss of the words; of the values where it carries signed samples."""
    if case.signed_stream:
        words = words.view(f"i{words.itemsize}")
        if case.precision < 8 * words.itemsize:
            words = stored_values(words, case.header).astype(words.dtype)
    if case.syntax == JPEG2000Lossless:
        return imagecodecs.jpeg2k_encode(
            words, level=0, codecformat="j2k", reversible=True, bitspersample=case.precision
        )
    if case.syntax == HTJ2KLossless:
        return imagecodecs.htj2k_encode(words, reversible=True)
    if case.syntax == JPEGLosslessSV1:
        words = words.astype(f"u{1 if case.precision == 8 else 2}")
        return imagecodecs.jpeg8_encode(words, bitspersample=case.precision, lossless=True, predictor=1)
    return get_encoder(case.syntax).encode(
        words,
        rows=words.shape[0],
        columns=words.shape[1],
        samples_per_pixel=1,
        number_of_frames=1,
        bits_allocated=8 * words.itemsize,
        bits_stored=case.precision,
        pixel_representation=0,
        photometric_interpretation="MONOCHROME2",
        encoding_plugin="",
    )


def to_bytes(case: Case) -> bytes:
    buffer = BytesIO()
    to_dataset(case).save_as(
        buffer, implicit_vr=case.syntax == ImplicitVRLittleEndian, little_endian=True, enforce_file_format=True
    )
    return buffer.getvalue()


def describe(case: Case) -> str:
    """The case in words, for a failure's message; the pixels as their shape."""
    fields = {name: value for name, value in vars(case).items() if name != "words"}
    return f"{case.words.shape} words of " + ", ".join(f"{name}={value!r}" for name, value in fields.items())


def draw_flat(seed: int, kind: str) -> Case:
    """A case in an uncompressed file whose picture would be one single grey, by one element or by its pixels.

    `kind` is "pixels" (all the same), "padding" (all are), "window" (beside all values), "slope" (0), "table" or
    "modality" (all entries the same).
    """
    rng = np.random.default_rng(seed)
    case = draw(seed, ExplicitVRLittleEndian)
    header = replace(case.header, table=None, window=None, modality=None, slope=None, intercept=None)
    case = replace(case, header=header, center="", width="", slope="", intercept="")
    values = stored_values(case.words, header)
    low, high = int(values.min()), int(values.max())
    span = high - low
    if kind == "pixels":
        header = replace(header, padding=None, limit=None)
        case = replace(
            case, words=np.full_like(case.words, rng.choice(case.words.ravel())), padding_pattern=(None, None)
        )
    elif kind == "padding":
        header = replace(header, padding=low, limit=high)
        case = replace(case, padding_pattern=(low & 0xFFFF, high & 0xFFFF), padding_vr="SS" if header.signed else "US")
    elif kind == "window":
        function = str(rng.choice(FUNCTIONS))
        center = low - 10 * span if rng.random() < 0.5 else high + 10 * span
        header = replace(header, window=Window(center, max(2, span // 2), function))
        case = replace(case, center=str(center), width=str(max(2, span // 2)))
    elif kind == "slope":
        header = replace(header, slope=0.0, intercept=float(rng.integers(-100, 100)))
        case = replace(case, slope="0", intercept=f"{header.intercept:g}")
    else:
        table = Table(low, np.full(min(span, 3000), 2 ** int(rng.integers(8, 16))), 16, 2, "US", header.signed)
        header = replace(header, **{kind: table})
    return replace(case, header=header)
