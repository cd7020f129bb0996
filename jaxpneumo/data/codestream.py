"""Sizes of compressed pictures, read from their first bytes: a decoder believes them and asks for the memory.

JPEG and JPEG-LS: the frame header (ISO/IEC 10918-1 B.2.2, 14495-1 C.2.2). JPEG 2000: the SIZ segment
(ISO/IEC 15444-1 A.5.1), bare or in a JP2 file. PNG: the IHDR chunk (ISO/IEC 15948, 11.2.2).
"""

import struct
import zlib

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Start of frame: all of JPEG's, then that of JPEG-LS; DHT, JPG and DAC lie between them.
_START_OF_FRAME = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7}
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}


def shape(data: bytes) -> tuple[int, int, int] | None:
    """Height, width and components that the decoder of a JPEG, JPEG-LS, JPEG 2000 or PNG will find.

    Returns:
      None when the bytes are none of these, or end before they say it. PNG palettes count as one component.
    """
    try:
        if data.startswith(b"\xff\xd8"):
            return _jpeg(data)
        if data.startswith(PNG_SIGNATURE):
            width, height, _, colour = struct.unpack_from(">IIBB", data, 16)
            return height, width, {2: 3, 4: 2, 6: 4}.get(colour, 1)
        start = data.find(b"\xff\x4f\xff\x51", 0, 4096)
        if start < 0:
            return None
        right, bottom, left, top = struct.unpack_from(">4I", data, start + 8)
        return bottom - top, right - left, struct.unpack_from(">H", data, start + 40)[0]
    except (struct.error, IndexError):
        return None


def png_is_whole(data: bytes) -> bool:
    """Every chunk of a PNG has the checksum it names, and the last one is there."""
    place = len(PNG_SIGNATURE)
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        end = place + 8 + length
        if end + 4 > len(data) or zlib.crc32(data[place + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            return False
        if data[place + 4 : place + 8] == b"IEND":
            return True
        place = end + 4
    return False


def _jpeg(data: bytes) -> tuple[int, int, int] | None:
    place = 2
    while data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
        elif marker in _WITHOUT_LENGTH:
            place += 2
        elif marker in _START_OF_FRAME:
            return struct.unpack_from(">HHB", data, place + 5)
        else:
            place += 2 + struct.unpack_from(">H", data, place + 2)[0]
    return None
