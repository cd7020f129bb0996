"""Reads size and bits from the first bytes of a compressed picture, before a decoder allocates memory for them.

JPEG and JPEG-LS: the frame header (ISO/IEC 10918-1 B.2.2, 14495-1 C.2.2). JPEG 2000: the SIZ segment
(ISO/IEC 15444-1 A.5.1), bare or in a JP2 file. PNG: the IHDR chunk (ISO/IEC 15948, 11.2.2). Exif: the orientation
(CIPA DC-008 4.6.5), in JPEG's APP1 segment and PNG's eXIf chunk.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE = b"\xff\xd8"
END = b"\xff\xd9"  # of JPEG, JPEG-LS and JPEG 2000 alike; their compressed bits cannot hold it
# Start of frame: all of JPEG's, then that of JPEG-LS; DHT, JPG and DAC lie between them.
START_OF_FRAME = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7}
_LOSSLESS = {0xC3, 0xC7, 0xCB, 0xCF}
_END_OF_IMAGE = 0xD9
_JPEG_LS = 0xF7
_APP1 = 0xE1
_START_OF_SCAN = 0xDA
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}
_EXIF = b"Exif\0\0"
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Codestream:
    """What the decoder of a picture will find.

    Attributes:
      coding: "JPEG", "JPEG lossless", "JPEG-LS", "JPEG 2000" or "PNG".
      rows, columns: in pixels.
      components: of a pixel; a PNG's palette counts as one.
      bits: of a component.
      signed: the values can be negative. JPEG 2000 alone says it.
    """

    coding: str
    rows: int
    columns: int
    components: int
    bits: int
    signed: bool = False


def describe(data: bytes) -> Codestream | None:
    """What the first bytes of a JPEG, JPEG-LS, JPEG 2000 or PNG say; None when they are none of these or end before."""
    try:
        if data.startswith(JPEG_SIGNATURE):
            return _describe_jpeg(data)
        if data.startswith(PNG_SIGNATURE):
            width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
            return Codestream("PNG", height, width, {2: 3, 4: 2, 6: 4}.get(colour, 1), bits)
        start = data.find(b"\xff\x4f\xff\x51", 0, 4096)
        if start < 0:
            return None
        right, bottom, left, top = struct.unpack_from(">4I", data, start + 8)
        components, bits = struct.unpack_from(">HB", data, start + 40)
        return Codestream("JPEG 2000", bottom - top, right - left, components, (bits & 0x7F) + 1, bits > 0x7F)
    except (struct.error, IndexError):
        return None


def jpeg_has_end(data: bytes) -> bool:
    """Whether a JPEG has its end marker, padding behind it aside."""
    end = data.rfind(END)
    return end >= 0 and not data[end + 2 :].strip(b"\0\xff")


def png_is_whole(data: bytes) -> bool:
    """Every chunk of a PNG has the checksum it names, and the last one is there."""
    try:
        for kind, body, checksum in _chunks(data):
            if zlib.crc32(kind + body) != checksum:
                return False
            if kind == b"IEND":
                return True
    except struct.error:
        pass
    return False


def chunk(data: bytes, kind: bytes) -> bytes:
    """The body of a whole PNG's first chunk of this kind; b"" where there is none."""
    return next((body for found, body, _ in _chunks(data) if found == kind), b"")


def orientation(data: bytes) -> int:
    """How a viewer turns a JPEG or whole PNG (Exif): 1 is not at all; 2 to 8 as the standard counts."""
    try:
        if data.startswith(JPEG_SIGNATURE):
            bodies = (body[len(_EXIF) :] for kind, _, body in segments(data) if kind == _APP1 and body[:6] == _EXIF)
        else:
            bodies = iter([chunk(data, b"eXIf")])
        found = _orientation(next(bodies, b""))
    except (struct.error, IndexError):
        found = 1
    return found if 1 <= found <= 8 else 1


def segments(data: bytes, place: int = 2) -> Iterator[tuple[int, int, bytes]]:
    """Marker, start and body of a JPEG's segments from `place` on, up to the header of the next scan.

    Raises:
      IndexError, struct.error: the file ends within them.
    """
    while data[place] == 0xFF and data[place + 1] != _END_OF_IMAGE:
        marker = data[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
        elif marker in _WITHOUT_LENGTH:
            place += 2
        else:
            (length,) = struct.unpack_from(">H", data, place + 2)
            yield marker, place + 4, data[place + 4 : place + 2 + length]
            if marker == _START_OF_SCAN:
                return
            place += 2 + length


def _describe_jpeg(data: bytes) -> Codestream | None:
    for kind, _, body in segments(data):
        if kind in START_OF_FRAME:
            bits, rows, columns, components = struct.unpack_from(">BHHB", body)
            coding = "JPEG-LS" if kind == _JPEG_LS else "JPEG lossless" if kind in _LOSSLESS else "JPEG"
            return Codestream(coding, rows, columns, components, bits)
    return None


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, int]]:
    """Kind, body and checksum of a PNG's chunks; struct.error where the file ends within one."""
    place = len(PNG_SIGNATURE)
    while place < len(data):
        (length,) = struct.unpack_from(">I", data, place)
        end = place + 8 + length
        yield data[place + 4 : place + 8], data[place + 8 : end], struct.unpack_from(">I", data, end)[0]
        place = end + 4


def _orientation(tiff: bytes) -> int:
    """Of Exif data: the orientation tag of the first directory; 1 where there is none."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    (start,) = struct.unpack_from(f"{order}I", tiff, 4)
    (count,) = struct.unpack_from(f"{order}H", tiff, start)
    for place in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from(f"{order}HH", tiff, place)
        if tag == _ORIENTATION:
            return struct.unpack_from(f"{order}{'H' if kind == 3 else 'I'}", tiff, place + 8)[0]
    return 1
