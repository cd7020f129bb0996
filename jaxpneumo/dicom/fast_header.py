"""The header of the commonest DICOM file, read without a DICOM library: one grey 8-bit JPEG Baseline image.

That takes a tenth of the time, and nearly all files of a large data set are of this kind. `plain` returns None in
every case of doubt; pydicom then reads the file.
Formats: DICOM PS3.5 7.1.2 (explicit VR), A.4 (encapsulated pixel data), PS3.10 7.1 (file meta information).
"""

import re
import struct
from dataclasses import dataclass
from typing import Any

from jaxpneumo.dicom.radiograph import header_fields, is_spacing

PIXEL_DATA = 0x7FE00010
_JPEG_BASELINE = b"1.2.840.10008.1.2.4.50"
_PREFIX = struct.Struct("<HH2sH")  # group, element, VR, length
_ITEM = struct.Struct("<HHI")
_LENGTH = struct.Struct("<I")
_SHORT = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_LONG = frozenset(b"OB OD OF OL OV OW SV UC UN UR UT UV".split())
# Of the group that describes the pixels, what changes nothing about those below.
_KNOWN_OF_PIXELS = {
    *(0x00280002, 0x00280004, 0x00280010, 0x00280011, 0x00280030, 0x00280034, 0x00280100),
    *(0x00280101, 0x00280102, 0x00280103, 0x00280301, 0x00282110, 0x00282112, 0x00282114),
}
_NUMBERS = {0x00280002: 1, 0x00280100: 8, 0x00280101: 8, 0x00280102: 7, 0x00280103: 0}
_NAMING = (0x0008103E, 0x00181030, 0x00181400)  # the elements of radiograph.NAMING
_IMAGER_PIXEL_SPACING = 0x00181164
# Printable ASCII without the signs that some character sets replace; the backslash separates values, too.
_TEXT = re.compile(rb"[ -\[\]-}]*")
_UID = re.compile(rb"[0-9.]{1,64}")
_SPACING = re.compile(rb"\d{1,6}(\.\d{1,20})?\\\d{1,6}(\.\d{1,20})?|")
_ORIENTATION = re.compile(rb"[AFHLPR]{1,3}\\[AFHLPR]{1,3}|")
_CHARACTER_SETS = (b"", b"ISO_IR 6", b"ISO_IR 100", b"ISO_IR 192")


@dataclass(frozen=True)
class Plain:
    """What `plain` finds.

    Attributes:
      rows, columns: of the image, as the header has them.
      frame: the JPEG, undecoded and unchecked.
      fields: of the `Radiograph`, as `header_fields` gives them.
    """

    rows: int
    columns: int
    frame: bytes
    fields: dict[str, Any]


def plain(data: bytes) -> Plain | None:
    """Header and JPEG of a file of the commonest kind.

    That is: explicit VR, elements in order and no sequence among them, one frame in one fragment, MONOCHROME2
    with 8 bits and without any transformation of its values, text in ASCII.

    Args:
      data: the whole file.

    Returns:
      None where the file is not all of that.
    """
    try:
        start = _dataset_start(data)
        found, place = _elements(data, start) if start else ({}, 0)
        return _read(data, found, place) if place else None
    except (struct.error, KeyError):
        return None


def _dataset_start(data: bytes) -> int:
    """Where the data set begins behind file meta information that says JPEG Baseline; 0 otherwise."""
    if data[128:132] != b"DICM" or _PREFIX.unpack_from(data, 132) != (2, 0, b"UL", 4):
        return 0
    end = 144 + _LENGTH.unpack_from(data, 140)[0]
    place, syntax, last = 144, b"", 0
    while place < end:
        group, number, vr, length = _PREFIX.unpack_from(data, place)
        place += 8
        if vr in _LONG:
            length = _LENGTH.unpack_from(data, place)[0]
            place += 4
        elif vr not in _SHORT:
            return 0
        if group != 2 or number <= last:
            return 0
        if (number, vr) == (0x0010, b"UI"):
            syntax = data[place : place + length]
        place, last = place + length, number
    return end if place == end and syntax.rstrip(b"\0") == _JPEG_BASELINE else 0


def _elements(data: bytes, place: int) -> tuple[dict[int, tuple[bytes, bytes]], int]:
    """VR and value of every element before the pixel data, by tag, and where these begin; 0 in doubt."""
    found: dict[int, tuple[bytes, bytes]] = {}
    last = 0x0007FFFF
    while True:
        group, number, vr, length = _PREFIX.unpack_from(data, place)
        tag = group << 16 | number
        if tag == PIXEL_DATA:
            return found, place
        place += 8
        if vr in _LONG:
            length = _LENGTH.unpack_from(data, place)[0]
            place += 4
        elif vr not in _SHORT:
            return {}, 0
        if tag <= last or (group == 0x0028 and tag not in _KNOWN_OF_PIXELS):
            return {}, 0
        found[tag] = vr, data[place : place + length]
        place, last = place + length, tag


def _read(data: bytes, found: dict[int, tuple[bytes, bytes]], place: int) -> Plain | None:
    """The result, of the elements and the pixel data at `place`; KeyError where an element is missing or odd."""
    frame = _frame(data, place)
    rows, columns = _number(found, 0x00280010), _number(found, 0x00280011)
    if (
        not frame
        or _IMAGER_PIXEL_SPACING in found
        or any(_number(found, tag) != value for tag, value in _NUMBERS.items())
        or _text(found, 0x00280004, b"CS") != "MONOCHROME2"
        or _text(found, 0x00080005, b"CS").encode() not in _CHARACTER_SETS
    ):
        return None
    text = _text(found, 0x00280030, b"DS", _SPACING)
    spacing = [float(value) for value in text.split("\\")] if text else []
    if len(spacing) == 2 and not is_spacing(spacing):
        return None
    orientation = _text(found, 0x00200020, b"CS", _ORIENTATION)
    fields = header_fields(
        uid=_text(found, 0x00080018, b"UI", _UID),
        patient_id=_text(found, 0x00100020, b"LO"),
        sex=_text(found, 0x00100040, b"CS"),
        age=_text(found, 0x00101010, b"AS"),
        view=_text(found, 0x00185101, b"CS"),
        pixel_spacing=spacing,
        derivation=_text(found, 0x00082111, b"ST"),
        modality=_text(found, 0x00080060, b"CS"),
        body_part=_text(found, 0x00180015, b"CS"),
        sop_class=_text(found, 0x00080016, b"UI", _UID) if 0x00080016 in found else "",
        orientation=orientation.split("\\") if orientation else [],
        intent=_text(found, 0x00080068, b"CS"),
        texts=[_text(found, tag, b"LO") for tag in _NAMING],
    )
    if orientation and not fields["orientation"]:
        return None
    return Plain(rows, columns, frame, fields)


def _frame(data: bytes, place: int) -> bytes:
    """The only fragment of encapsulated pixel data that end with the file; b"" otherwise."""
    if data[place + 4 : place + 12] != b"OB\0\0\xff\xff\xff\xff":
        return b""
    place += 12
    table = _ITEM.unpack_from(data, place)
    if table[:2] != (0xFFFE, 0xE000) or any(data[place + 8 : place + 8 + table[2]]) or table[2] not in (0, 4):
        return b""
    place += 8 + table[2]
    group, number, length = _ITEM.unpack_from(data, place)
    end = place + 8 + length
    if (group, number) != (0xFFFE, 0xE000) or data[end:] != b"\xfe\xff\xdd\xe0\0\0\0\0":
        return b""
    return data[place + 8 : end]


def _number(found: dict[int, tuple[bytes, bytes]], tag: int) -> int:
    vr, value = found[tag]
    if vr != b"US" or len(value) != 2:
        raise KeyError(tag)
    return int.from_bytes(value, "little")


def _text(found: dict[int, tuple[bytes, bytes]], tag: int, vr: bytes, form: re.Pattern = _TEXT) -> str:
    """A value without its padding; "" for none where the form allows it."""
    has, value = found.get(tag, (vr, b""))
    value = value.rstrip(b"\0 ")
    if has != vr or not form.fullmatch(value):
        raise KeyError(tag)
    return value.decode("ascii")
