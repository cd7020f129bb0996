"""Finds damage of compressed pixels that their decoders pass over in silence.

JPEG Lossless (ISO/IEC 10918-1, annex H): the decoded pixels say how many bits their code must have, since the code of
a difference has a known length. A cut or an overwritten part of the codestream has another number of bits.

JPEG of 12 bits: the decoder of 8 bits reads the same code. Only its values would be wrong, and they are not used; its
warnings are errors.
"""

import functools
import re
import struct
from collections.abc import Iterator

import cv2
import numpy as np
import simplejpeg

from jaxpneumo.dicom import codestream

# An end, padding, and the start of a JPEG, JPEG-LS or JPEG 2000, the last also as a JP2 file.
_SECOND_FRAME = re.compile(rb"\xff\xd9\0*(?:\xff\xd8\xff|\xff\x4f\xff\x51|\x0cjP  )")
_HUFFMAN_TABLES, _START_OF_SCAN, _RESTART_INTERVAL, _LOSSLESS = 0xC4, 0xDA, 0xDD, 0xC3
_NO_CODE = 200
_MAX_PADDING = 64  # bits behind the last code; encoders fill a byte, some a word


def has_second_frame(frame: bytes) -> bool:
    """Whether another JPEG, JPEG-LS or JPEG 2000 begins behind the end of the first, padding aside."""
    return _SECOND_FRAME.search(frame) is not None


def rle_frames(fragments: list[bytes]) -> int:
    """How many fragments begin with a header of RLE like that of the first, which has unused fields."""
    header = struct.Struct("<16I")
    headers = [header.unpack_from(fragment) for fragment in fragments if len(fragment) >= header.size]
    return sum(
        found[:2] == (headers[0][0], header.size) and not any(found[1 + found[0] :]) and found[0] < 15
        for found in headers
    )


def jpeg_of_12_bits_is_whole(frame: bytes) -> bool:
    """Whether the code of a JPEG with DCT, of more than 8 bits, decodes without a warning."""
    for kind, start, _ in codestream.segments(frame):
        if kind in codestream.START_OF_FRAME:
            try:
                simplejpeg.decode_jpeg(frame[:start] + b"\x08" + frame[start + 1 :], min_height=1, min_width=1)
            except ValueError:
                return False
    return True


def jpeg_lossless_is_whole(frame: bytes, pixels: np.ndarray) -> bool:
    """Whether a lossless JPEG has the bits that its decoded pixels need.

    Args:
      frame: the codestream.
      pixels: (H, W) or (H, W, 3) uint8 or uint16, as decoded.
    """
    try:
        return _scans_are_whole(frame, pixels[..., None] if pixels.ndim == 2 else pixels)
    except (struct.error, IndexError, KeyError, ValueError):
        return False


def _scans_are_whole(frame: bytes, planes: np.ndarray) -> bool:
    tables: dict[int, np.ndarray] = {}
    order: list[int] = []
    bits, interval, place, unseen = 0, 0, 2, 1
    while unseen:
        scan = b""
        for kind, start, body in codestream.segments(frame, place):
            if kind == _HUFFMAN_TABLES:
                tables |= dict(_code_lengths(body))
            elif kind == _RESTART_INTERVAL:
                (interval,) = struct.unpack(">H", body)
            elif kind == _LOSSLESS:
                bits, order = body[0], list(body[6::3])
                unseen = len(order)
            elif kind == _START_OF_SCAN:
                scan, place = body, start + len(body)
        count = scan[0]
        predictor, shift = scan[1 + 2 * count], scan[3 + 2 * count] & 15
        every = interval // planes.shape[1] or len(planes)
        rows = np.zeros(len(planes), np.int64)
        for component, table in zip(scan[1 : 1 + 2 * count : 2], scan[2 : 2 + 2 * count : 2], strict=True):
            plane = planes[..., order.index(component)]
            x = np.ascontiguousarray(plane >> shift if shift else plane, np.uint16)
            rows += _row_bits(x, tables[table >> 4], predictor, 1 << (bits - shift - 1), every)
        needed = np.add.reduceat(rows, np.arange(0, len(planes), every)).tolist()
        place, parts = _intervals(frame, place)
        if len(parts) != len(needed):
            return False
        if not all(_fills(frame, *part, bits) for part, bits in zip(parts, needed, strict=True)):
            return False
        unseen -= count
    return True


def _code_lengths(body: bytes) -> Iterator[tuple[int, np.ndarray]]:
    """Of the tables in a DHT segment: the number and the length of each category's code."""
    while body:
        counts, total = body[1:17], sum(body[1:17])
        lengths = np.full(256, _NO_CODE, np.uint8)
        lengths[list(body[17 : 17 + total])] = np.repeat(np.arange(1, 17), list(counts))
        yield body[0], lengths
        body = body[17 + total :]


@functools.cache
def _categories() -> np.ndarray:
    """(65536,) uint8: how many bits the amount of a difference has, by its pattern of 16 bits."""
    amounts = np.abs(np.arange(65536).astype(np.uint16).view(np.int16).astype(np.int32))
    return np.frexp(amounts.astype(float))[1].astype(np.uint8)


def _row_bits(x: np.ndarray, lengths: np.ndarray, predictor: int, first: int, every: int) -> np.ndarray:
    """(H,) int32, the bits that the code of each row has (H.1.2); after `every` rows the prediction begins anew."""
    difference = np.empty_like(x)
    difference[1:, 0] = x[1:, 0] - x[:-1, 0]
    difference[::every, 0] = x[::every, 0] - np.uint16(first)
    if predictor == 1:
        np.subtract(x[:, 1:], x[:, :-1], out=difference[:, 1:])
    else:
        prediction = _prediction(x[1:, :-1], x[:-1, 1:], x[:-1, :-1], predictor)
        np.subtract(x[1:, 1:], prediction, out=difference[1:, 1:])
        difference[::every, 1:] = x[::every, 1:] - x[::every, :-1]
    categories = _categories()
    # A difference of 32768 has no bits behind its code (H.1.2.2).
    costs = lengths[categories] + np.where(categories < 16, categories, 0)
    bits = np.take(costs.astype(np.uint8), difference)
    return cv2.reduce(bits, 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S)[:, 0]


def _prediction(left: np.ndarray, above: np.ndarray, corner: np.ndarray, predictor: int) -> np.ndarray:
    """By table H.1, modulo 65536."""
    if predictor == 2:
        return above
    if predictor == 3:
        return corner
    if predictor == 4:
        return left + above - corner
    if predictor == 5:
        return left + _half(above, corner)
    if predictor == 6:
        return above + _half(left, corner)
    if predictor == 7:
        return (left & above) + ((left ^ above) >> 1)
    raise ValueError("no such predictor")


def _half(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(a - b) / 2, rounded down, modulo 65536, without wider numbers."""
    return (a >> 1) - (b >> 1) - (b & ~a & 1)


def _intervals(frame: bytes, place: int) -> tuple[int, list[tuple[int, int, int]]]:
    """Where a scan's code ends; and start, end and bytes of its code between restart markers."""
    raw = np.frombuffer(frame, np.uint8, offset=place)
    marks = np.flatnonzero(raw[:-1] == 0xFF)
    behind = raw[marks + 1]
    restarts = behind & 0xF8 == 0xD0
    no_code = (behind == 0) | (behind == 0xFF)  # the zero behind a byte FF, and an FF before a marker
    ends = marks[~restarts & ~no_code]
    end = int(ends[0]) if len(ends) else len(raw)
    stops = [*marks[restarts & (marks < end)].tolist(), end]
    starts = [0, *(stop + 2 for stop in stops[:-1])]
    without = np.searchsorted(marks[no_code], stops) - np.searchsorted(marks[no_code], starts)
    parts = zip(starts, stops, without.tolist(), strict=True)
    return place + end, [(place + start, place + stop, stop - start - less) for start, stop, less in parts]


def _fills(frame: bytes, start: int, end: int, size: int, needed: int) -> bool:
    """Whether code of this many bits fills its bytes, padding aside: no whole byte, or some of zeros or ones alone."""
    spare = 8 * size - needed
    if 8 <= spare < _MAX_PADDING:
        last = frame[max(start, end - _MAX_PADDING) : end].replace(b"\xff\0", b"\xff")[-(spare // 8) :]
        return len(set(last)) == 1 and last[0] in (0, 0xFF)
    return 0 <= spare < 8
