"""Finds damage of JPEG 2000 (ISO/IEC 15444-1) that its decoder passes over in silence.

Its arithmetic code has no redundancy: a wrong bit within a block of it decodes to wrong pixels, and no decoder sees
that. What can be seen is what no encoder writes: a byte above 8F behind FF, which would be a marker (A.1, C.2.1), and
more zeros in a row than there are empty packets.
"""

import struct
from collections.abc import Iterator

import numpy as np

from jaxpneumo.dicom import codestream

_START = b"\xff\x4f\xff\x51"  # SOC, SIZ
_SIZE, _CODING_STYLE, _TILE_PART, _DATA = 0x51, 0x52, 0x90, 0x93
_NUMBER = b"\xff\x91\0\4"  # SOP, with the packet's number behind it
_END_OF_HEADER = 0x92  # EPH
_MAX_ZEROS = 256  # the arithmetic code never has so many in a row
_MAX_RAW_ZEROS = 8192  # bits without arithmetic code: two passes over all 64 x 64 values of a block, eightfold
_RAW = 0b01000001  # code-block styles: without arithmetic coding, and High-Throughput JPEG 2000


def is_whole(frame: bytes) -> bool:
    """Whether a JPEG 2000, bare or as a JP2 file, holds nothing that no encoder writes."""
    try:
        segments = dict(_segments(frame, frame.index(_START) + 2))
        zeros, has_marks = _coding(frame, segments[_SIZE], segments[_CODING_STYLE])
        parts = _tile_parts(frame, segments[_TILE_PART])
        return all(_is_sound(frame[begin:end], zeros, has_marks) for begin, end in parts)
    except (struct.error, ValueError, IndexError, KeyError):
        return False


def _segments(frame: bytes, place: int) -> Iterator[tuple[int, int]]:
    """Marker of each segment and where it begins, up to a tile-part or its data."""
    while frame[place] == 0xFF:
        yield frame[place + 1], place
        if frame[place + 1] in (_TILE_PART, _DATA):
            return
        # FF30 to FF3F are markers alone (A.1.3).
        place += 2 if frame[place + 1] >> 4 == 3 else 2 + struct.unpack_from(">H", frame, place + 2)[0]


def _coding(frame: bytes, size: int, style: int) -> tuple[int, bool]:
    """How many zeros can lie in a row, and whether markers lie between packets, by SIZ and COD (A.5.1, A.6.1)."""
    right, bottom, left, top, width, height = struct.unpack_from(">6I", frame, size + 6)
    (components,) = struct.unpack_from(">H", frame, size + 38)
    flags, _, layers, _, levels, _, _, block = struct.unpack_from(">BBHBBBBB", frame, style + 4)
    packets = 0
    for level in range(levels + 1):
        precinct = frame[style + 14 + level] if flags & 1 else 0xFF
        across, down = min(right - left, width) >> levels - level, min(bottom - top, height) >> levels - level
        packets += ((across >> (precinct & 15)) + 2) * ((down >> (precinct >> 4)) + 2)
    return packets * layers * components + (_MAX_RAW_ZEROS if block & _RAW else _MAX_ZEROS), bool(flags & 6)


def _tile_parts(frame: bytes, place: int) -> Iterator[tuple[int, int]]:
    """Start and end of the data of each tile-part (A.4.2)."""
    while frame[place : place + 2] == bytes([0xFF, _TILE_PART]):
        (length,) = struct.unpack_from(">I", frame, place + 6)
        end = place + length if length else frame.rfind(codestream.END)
        segments = dict(_segments(frame, place + 12))
        yield segments[_DATA] + 2, end
        place = end


def _is_sound(packets: bytes, zeros: int, has_marks: bool) -> bool:
    if bytes(zeros) in packets:
        return False
    raw = np.frombuffer(packets, np.uint8)
    found = np.flatnonzero(raw[:-1] == 0xFF)
    markers = found[raw[found + 1] >= 0x90].tolist()
    if not has_marks:
        return not markers
    numbers = {place for place in markers if packets[place : place + 4] == _NUMBER}
    return all(packets[at + 1] == _END_OF_HEADER or numbers & {at, at - 4, at - 5} for at in markers)
