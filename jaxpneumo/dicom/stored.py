"""Decodes the pixel data of a DICOM file to stored values (DICOM PS3.5 8.1.1, 8.2).

The codestream of a compressed picture decides which decoder reads it. simplejpeg reads JPEG of 8 bits. It gives the
same values as pydicom with its plugin "pillow", since both wrap libjpeg-turbo with its accurate integer transform. It
takes half the time and refuses damaged data that Pillow and OpenCV fill with grey. imagecodecs reads other JPEG,
JPEG-LS, JPEG 2000 and RLE; what it does not say about damage, `damage` and `jpeg2000` find.
"""

import itertools
import struct
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
import simplejpeg
from pydicom.encaps import generate_fragments, parse_basic_offsets
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import pixel_array as decode_colour
from pydicom.uid import UID, ExplicitVRBigEndian, RLELossless

from jaxpneumo.dicom import codestream, damage, jpeg2000
from jaxpneumo.dicom.elements import Elements
from jaxpneumo.dicom.radiograph import COLOUR, SEVERAL_FRAMES, RadiographError, check_size

GREY = ("MONOCHROME1", "MONOCHROME2")
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT")
PALETTE = "PALETTE COLOR"
MAX_RLE_PADDING = 8  # bytes of a segment behind those of the pixels
SEQUENCE_END = b"\xfe\xff\xdd\xe0\0\0\0\0"  # closes encapsulated pixel data (DICOM PS3.5 A.4)


@dataclass(frozen=True)
class Stored:
    """A picture's stored values.

    Attributes:
      cells: (H, W) uint8 or uint16, the bits of each pixel as they are, nothing above them.
      values: (2**bits,) int64, the number that each pattern of bits stands for.
      words: (H, W), the same pixels with all bits that were allocated to them.
      is_grey: all 8 allocated bits are stored and unsigned, so that the values are grey levels already.
    """

    cells: np.ndarray
    values: np.ndarray
    words: np.ndarray
    is_grey: bool = True

    @property
    def bits(self) -> int:
        """How many bits a pixel has."""
        return len(self.values).bit_length() - 1

    @property
    def signed(self) -> bool:
        """Whether the values can be negative."""
        return bool(self.values.min() < 0)


def check_header(elements: Elements, name: Path | str) -> None:
    """Refuses what is not one grey image of a sensible size, before anything is decoded; RadiographError."""
    frames = elements.whole("NumberOfFrames")
    if frames is not None and frames > 1:
        raise RadiographError(f"{name} has {frames} frames. Give one radiograph a file.", SEVERAL_FRAMES)
    photometric = elements.text("PhotometricInterpretation").upper()
    if photometric not in (*GREY, *COLOURS, PALETTE):
        raise RadiographError(
            f"{name} has the Photometric Interpretation {photometric[:16]!r}; MONOCHROME1 and 2, and grey as RGB or "
            "palette can be read. Export it again."
        )
    samples = elements.whole("SamplesPerPixel") or 1
    if samples != (3 if photometric in COLOURS else 1):
        raise RadiographError(f"{name} has {samples} samples a pixel and is {photometric}. Export it again.")
    check_size(elements.whole("Rows") or 0, elements.whole("Columns") or 0, name)
    if elements.whole("BitsAllocated") not in (8, 16):
        bits = elements.whole("BitsAllocated")
        raise RadiographError(f"{name} has {bits} Bits Allocated to a pixel; 8 and 16 can be read. Export it again.")


def read_stored(elements: Elements, syntax: UID, data: bytes, name: Path | str) -> Stored:
    """The stored values of a picture that `check_header` lets pass.

    Args:
      elements: of the data set.
      syntax: its transfer syntax.
      data: the whole file.
      name: what messages call it.

    Raises:
      RadiographError: truncated, damaged, colour, several frames, or bits that contradict the header. Decoders
        raise nearly anything else for damaged data.
    """
    element = elements.dataset["PixelData"]
    if element.is_undefined_length or syntax.is_encapsulated:
        if element.is_undefined_length and data.rfind(SEQUENCE_END) < (element.file_tell or 0):
            raise RadiographError(f"{name} is truncated: its pixel data end too early. Copy or download it again.")
        pixels, found = _decode(elements, syntax, name)
    else:
        pixels, found = _native(elements, syntax, element.VR, name), None
    if pixels.ndim == 3:
        pixels = _grey_of_colours(elements, pixels, name)
    bits, shift = _bits(elements, found.bits if found else None, name)
    words = pixels.view(f"u{pixels.itemsize}")
    cells = (words >> shift) & (2**bits - 1) if shift or bits < 8 * words.itemsize else words
    signed = _is_signed(elements, found, cells, bits)
    _check_bits_above(words, bits, shift, signed or (found is not None and found.signed), name)
    values = np.arange(2**bits)
    if signed:
        values[2 ** (bits - 1) :] -= 2**bits
    eight = elements.whole("BitsAllocated") == 8 == bits == (elements.whole("BitsStored") or 8)
    stored = Stored(cells, values, words, eight and not signed)
    return _through_palette(elements, stored, name) if _photometric(elements) == PALETTE else stored


def _photometric(elements: Elements) -> str:
    return elements.text("PhotometricInterpretation").upper()


def _native(elements: Elements, syntax: UID, vr: str, name: Path | str) -> np.ndarray:
    """Pixels that are not compressed: (H, W) uint8 or uint16, or (H, W, 3)."""
    raw = elements.dataset.PixelData
    rows, columns, size = elements.known("Rows"), elements.known("Columns"), elements.known("BitsAllocated") // 8
    colour = _photometric(elements) in COLOURS
    samples = 3 if colour else 1
    needed = rows * columns * size * (2 if _photometric(elements) == "YBR_FULL_422" else samples)
    if len(raw) < needed:
        raise RadiographError(
            f"{name} is truncated: {len(raw)} bytes of pixel data, and {rows} x {columns} pixels need {needed}. "
            "Copy it again."
        )
    if len(raw) >= 2 * needed:
        frames = len(raw) // needed
        raise RadiographError(f"{name} has pixels for {frames} frames. Give one radiograph a file.", SEVERAL_FRAMES)
    if colour:
        elements.dataset.setdefault("PlanarConfiguration", 0)
        return decode_colour(elements.dataset)
    big = syntax == ExplicitVRBigEndian
    if size == 1 and big and vr == "OW":  # bytes that were written as words of the other order
        raw = np.frombuffer(raw[: len(raw) // 2 * 2], ">u2").astype("<u2").tobytes()
    kind = np.dtype(f"{'>' if big else '<'}u{size}")
    return np.frombuffer(raw, kind, rows * columns).astype(kind.newbyteorder("=")).reshape(rows, columns)


def _decode(elements: Elements, syntax: UID, name: Path | str) -> tuple[np.ndarray, codestream.Codestream | None]:
    """Compressed pixels, (H, W) or (H, W, 3), and what their codestream says; None for RLE, which says nothing."""
    raw, size = elements.dataset.PixelData, (elements.known("Rows"), elements.known("Columns"))
    if elements.whole("NumberOfFrames") is None and len(frames := parse_basic_offsets(raw)) > 1:
        raise RadiographError(f"{name} has {len(frames)} frames. Give one radiograph a file.", SEVERAL_FRAMES)
    _, *fragments = generate_fragments(raw)
    frame = b"".join(fragments)
    if damage.rle_frames(fragments) > 1 if syntax == RLELossless else damage.has_second_frame(frame):
        raise RadiographError(f"{name} has several frames. Give one radiograph a file.", SEVERAL_FRAMES)
    if syntax == RLELossless:
        return _decode_rle(elements, frame, size, name), None
    found = codestream.describe(frame)
    samples = 3 if _photometric(elements) in COLOURS else 1
    if found is None:
        raise RadiographError(
            f"{name} cannot be decoded: its pixels are damaged, or compressed in a way that cannot be read "
            f"(transfer syntax {syntax.name[:64]!r}). Export it uncompressed."
        )
    if (found.rows, found.columns, found.components) != (*size, samples):
        raise RadiographError(
            f"{name} holds compressed pixels of another size than its header's {size[0]} x {size[1]} x {samples}, or "
            "damaged ones. Export it again."
        )
    # A missing end is by far the most frequent damage, so it has its own message.
    if found.coding in ("JPEG", "JPEG lossless") and not codestream.jpeg_has_end(frame):
        raise RadiographError(f"{name} is truncated: its JPEG has no end. Copy or download it again.")
    if found.coding == "JPEG-LS" and codestream.END not in frame:  # the decoder would find that out in seconds
        raise RadiographError(f"{name} is truncated: its JPEG-LS has no end. Copy or download it again.")
    pixels = _decode_codestream(frame, found)
    if pixels is None:
        raise _damaged(name)
    return pixels, found


def _decode_codestream(frame: bytes, found: codestream.Codestream) -> np.ndarray | None:
    """(H, W) or (H, W, 3); None where they are damaged and the decoder does not say it."""
    if found.coding == "JPEG 2000":
        return imagecodecs.jpeg2k_decode(frame) if jpeg2000.is_whole(frame) else None
    if found.coding == "JPEG-LS":
        return imagecodecs.jpegls_decode(frame)
    if found.coding == "JPEG" and found.bits == 8:
        return simplejpeg.decode_jpeg(frame, "GRAY")[..., 0] if found.components == 1 else _decode_jpeg_colours(frame)
    if found.coding == "JPEG":
        return imagecodecs.jpeg8_decode(frame) if damage.jpeg_of_12_bits_is_whole(frame) else None
    pixels = imagecodecs.jpeg8_decode(frame)
    return pixels if damage.jpeg_lossless_is_whole(frame, pixels) else None


def _damaged(name: Path | str) -> RadiographError:
    return RadiographError(
        f"{name} is damaged: its compressed pixels are cut short or overwritten. Copy or download it again."
    )


def _decode_jpeg_colours(frame: bytes) -> np.ndarray:
    """(H, W, 3). A JPEG need not say that it holds RGB and not YCbCr; the reading that gives grey is right."""
    pixels = simplejpeg.decode_jpeg(frame)
    if _is_grey(pixels):
        return pixels
    return imagecodecs.jpeg8_decode(frame, colorspace="RGB", outcolorspace="RGB")


def _decode_rle(elements: Elements, frame: bytes, size: tuple[int, int], name: Path | str) -> np.ndarray:
    segments = rle_segments(frame, size[0] * size[1])
    if segments is None:
        raise _damaged(name)
    if _photometric(elements) in COLOURS:
        elements.dataset.setdefault("PlanarConfiguration", 0)
        return decode_colour(elements.dataset)
    width = elements.known("BitsAllocated") // 8
    if len(segments) != width:
        raise RadiographError(
            f"{name} has {len(segments)} bytes a pixel in its compressed pixels, and {8 * width} Bits Allocated. "
            "Export it again."
        )
    # The first segment has the uppermost bytes (DICOM PS3.5 G.2).
    return np.stack(segments[::-1], -1).view(f"<u{width}").reshape(size)


def rle_segments(frame: bytes, pixels: int) -> list[np.ndarray] | None:
    """The bytes of each segment of a frame of RLE, one for each pixel (DICOM PS3.5, annex G); None where it is damaged.

    A few bytes more are padding.
    """
    count, *offsets = struct.unpack_from("<16I", frame)
    if not 1 <= count <= 15:
        return None
    segments = []
    for start, end in itertools.pairwise([*offsets[:count], len(frame)]):
        try:
            decoded = np.frombuffer(imagecodecs.packbits_decode(frame[start:end]), np.uint8)
        except RuntimeError:  # that of imagecodecs, which has no public name
            return None
        if not pixels <= len(decoded) <= pixels + MAX_RLE_PADDING:
            return None
        segments.append(decoded[:pixels])
    return segments


def _is_grey(pixels: np.ndarray) -> bool:
    return bool((pixels == pixels[..., :1]).all())


def _grey_of_colours(elements: Elements, pixels: np.ndarray, name: Path | str) -> np.ndarray:
    if not _is_grey(pixels):
        raise _colour(elements, name)
    return np.ascontiguousarray(pixels[..., 0])


def _colour(elements: Elements, name: Path | str) -> RadiographError:
    photometric = _photometric(elements)
    return RadiographError(f"{name} is a colour image ({photometric}). Give the radiograph in grey.", COLOUR)


def _bits(elements: Elements, precision: int | None, name: Path | str) -> tuple[int, int]:
    """How many bits of a pixel count, and how many lie below them (DICOM PS3.5 8.1.1).

    If a codestream has all allocated bits, it carries words as they lie in memory. If it has fewer, it carries the
    values themselves, and its number of bits counts, not the header's.
    """
    allocated = elements.known("BitsAllocated")
    stored = elements.whole("BitsStored") or allocated
    if precision is not None and precision != allocated:
        if precision != stored:
            elements.remark(f"Bits Stored is {stored}, the compressed pixels have {precision} bits: these are used")
        return precision, 0
    if not 1 <= stored <= allocated:
        raise RadiographError(f"{name} has {stored} Bits Stored of {allocated} Bits Allocated. Export it again.")
    high = elements.whole("HighBit")
    if high is not None and not stored - 1 <= high < allocated:
        elements.remark(f"High Bit is {high}, which {stored} Bits Stored of {allocated} cannot have; it is ignored")
        high = None
    return stored, 0 if high is None else high + 1 - stored


def _is_signed(elements: Elements, found: codestream.Codestream | None, cells: np.ndarray, bits: int) -> bool:
    """Whether the upper half of the patterns stands for negative values.

    JPEG 2000 has a sign of its own. Where the header has another, either may be wrong: some encoders write negative
    values as if they were large ones. The wrong reading jumps by more than half a range where the uppermost bit
    changes. Where it never changes, the side that says signed is believed.
    """
    representation = elements.whole("PixelRepresentation")
    if representation not in (None, 0, 1):
        elements.remark(f"Pixel Representation is {representation}; the values are read as unsigned")
    signed = representation == 1
    if found is None or found.coding != "JPEG 2000" or found.signed == signed:
        return signed
    jumps = _jumps(cells, cells >> (bits - 1))
    read_signed = not len(jumps) or bool(np.median(jumps) >= 2 ** (bits - 1))
    elements.remark(
        f"Pixel Representation is {'missing' if representation is None else representation}, the compressed pixels are "
        f"{'signed' if found.signed else 'unsigned'}: they are read as {'signed' if read_signed else 'unsigned'}"
    )
    return read_signed


def _jumps(numbers: np.ndarray, above: np.ndarray) -> np.ndarray:
    """By how much neighbouring numbers differ where their upper bits do."""
    return np.concatenate(
        [
            np.abs(np.diff(numbers.astype(np.int32), axis=axis))[np.diff(above.astype(np.int32), axis=axis) != 0]
            for axis in (0, 1)
        ]
    )


def _check_bits_above(words: np.ndarray, bits: int, shift: int, signed: bool, name: Path | str) -> None:
    """Refuses values with more bits than Bits Stored: without the upper bits the picture would be wrong.

    The upper bits may also hold an overlay or rubbish, which jumps by a whole range where it changes. If they belong
    to the value, neighbouring values differ little. Copies of the sign bit are allowed.
    """
    if bits + shift >= 8 * words.itemsize:
        return
    numbers = words >> shift
    above = numbers >> bits
    if not above.any():
        return
    if signed:
        spread = np.where(numbers >> (bits - 1) & 1, (1 << (8 * words.itemsize - shift - bits)) - 1, 0)
        if (above == spread).all():
            return
    jumps = _jumps(numbers, above)
    if len(jumps) and np.median(jumps) < 2 ** (bits - 1):
        raise RadiographError(
            f"{name} says {bits} Bits Stored, but its values have more bits. Correct Bits Stored (0028,0101), or "
            "export it again."
        )


def _through_palette(elements: Elements, stored: Stored, name: Path | str) -> Stored:
    """Values through a grey palette (DICOM PS3.3 C.7.6.3.1.5); palettes of 8 and 16 bits fill their range."""
    patterns = np.arange(len(stored.values), dtype=stored.cells.dtype).reshape(1, -1)
    colours = apply_color_lut(patterns, elements.dataset)[0]
    present = np.bincount(stored.cells.ravel(), minlength=len(colours)) > 0
    if not _is_grey(colours[present]):
        raise _colour(elements, name)
    greys = colours[..., 0].astype(np.int64)
    if greys[present].max() > 255:
        greys = np.rint(greys / 257).astype(np.int64)
    cells = greys[stored.cells].astype(np.uint8)
    return Stored(cells, np.arange(256), cells)
