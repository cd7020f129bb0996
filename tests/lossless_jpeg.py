"""A plain encoder of JPEG Lossless (ISO/IEC 10918-1, annex H), with what few others write: restarts, a scan a plane."""

import struct

import numpy as np


def encode(
    pixels: np.ndarray,
    bits: int,
    predictor: int = 1,
    shift: int = 0,
    every: int = 0,
    padding: bytes = b"",
    fill: int = 1,
) -> bytes:
    """A codestream with one scan for each plane.

    Args:
      pixels: (H, W) or (H, W, planes), below 2**bits.
      bits: of a pixel.
      predictor: 1 to 7.
      shift: the point transform, so many lowest bits are dropped.
      every: rows between restart markers; 0 for none.
      padding: behind the code of each scan.
      fill: the bit that fills the last byte of code.
    """
    planes = pixels[..., None] if pixels.ndim == 2 else pixels
    rows, columns, count = planes.shape
    components = b"".join(bytes([plane + 1, 0x11, 0]) for plane in range(count))
    data = b"\xff\xd8" + segment(0xC3, struct.pack(">BHHB", bits, rows, columns, count) + components)
    data += segment(0xC4, bytes([0, 0, 0, 0, 0, 17, *[0] * 11, *range(17)]))  # 17 codes of 5 bits
    if every:
        data += segment(0xDD, struct.pack(">H", every * columns))
    for plane in range(count):
        data += segment(0xDA, bytes([1, plane + 1, 0, predictor, 0, shift]))
        x = planes[..., plane].astype(int) >> shift
        parts = [x[start : start + (every or rows)] for start in range(0, rows, every or rows)]
        for number, part in enumerate(parts):
            marker = bytes([0xFF, 0xD0 + number % 8]) if number + 1 < len(parts) else b""
            code = "".join(code_of(part, 1 << (bits - shift - 1), predictor))
            code += str(fill) * (-len(code) % 8)
            data += int(code, 2).to_bytes(len(code) // 8, "big").replace(b"\xff", b"\xff\0") + marker
        data += padding
    return data + b"\xff\xd9"


def segment(kind: int, body: bytes) -> bytes:
    return bytes([0xFF, kind]) + struct.pack(">H", len(body) + 2) + body


def code_of(x: np.ndarray, first: int, predictor: int) -> list[str]:
    """Every pixel's code: a category of 5 bits, then the difference's own."""
    codes = []
    for row in range(len(x)):
        for column in range(len(x[0])):
            a, b, c = x[row, column - 1], x[row - 1, column], x[row - 1, column - 1]
            if row == 0:
                predicted = a if column else first
            elif column == 0:
                predicted = b
            else:
                predicted = (a, b, c, a + b - c, a + (b - c >> 1), b + (a - c >> 1), a + b >> 1)[predictor - 1]
            difference = (int(x[row, column]) - int(predicted) + 0x7FFF) % 0x10000 - 0x7FFF
            size = abs(difference).bit_length()
            amount = difference if difference >= 0 else difference + 2**size - 1
            codes.append(f"{size:05b}" + (f"{amount:0{size}b}" if 0 < size < 16 else ""))
    return codes
