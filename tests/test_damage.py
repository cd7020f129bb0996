"""Damaged compressed pixels are refused wherever the damage is; sound ones are read, whoever wrote them."""

import shutil
import subprocess

import imagecodecs
import numpy as np
import pytest
from display_images import close, image, stretched
from hypothesis import given, settings
from hypothesis import strategies as st
from lossless_jpeg import encode
from pydicom.pixels import get_encoder
from pydicom.uid import (
    JPEG2000,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)
from test_stored import read, rle, saved

from jaxpneumo.dicom import damage, dicom, jpeg2000
from jaxpneumo.dicom.radiograph import UNREADABLE, RadiographError
from jaxpneumo.dicom.stored import rle_segments

ROWS, COLUMNS = np.mgrid[:300, :280]
GREY = 1500 + 900 * np.sin(ROWS / 40) * np.cos(COLUMNS / 60) + np.random.default_rng(0).normal(0, 25, ROWS.shape)
WORDS = np.rint(GREY).astype("<u2")  # 12 bits, with noise as a detector has
BYTES = (WORDS >> 4).astype("u1")
SMALL = WORDS[:26, :23]
OTHER = np.random.default_rng(1).bytes(4096)


def jpeg_2000(words: np.ndarray, **options) -> bytes:
    return imagecodecs.jpeg2k_encode(words, codecformat="j2k", bitspersample=12, **options)


SYNTAXES = {
    "JPEG": (BYTES, JPEGBaseline8Bit, imagecodecs.jpeg8_encode(BYTES, level=95)),
    "JPEG of 12 bits": (WORDS, JPEGExtended12Bit, imagecodecs.jpeg8_encode(WORDS, level=95, bitspersample=12)),
    "JPEG Lossless": (WORDS, JPEGLosslessSV1, imagecodecs.jpeg8_encode(WORDS, lossless=True, bitspersample=12)),
    "JPEG Lossless, predictor 6": (
        WORDS,
        JPEGLossless,
        imagecodecs.jpeg8_encode(WORDS, lossless=True, bitspersample=12, predictor=6),
    ),
    "JPEG Lossless of 8 bits": (BYTES, JPEGLosslessSV1, imagecodecs.jpeg8_encode(BYTES, lossless=True)),
    "JPEG-LS": (WORDS, JPEGLSLossless, imagecodecs.jpegls_encode(WORDS)),
    "JPEG-LS, near lossless": (WORDS, JPEGLSNearLossless, imagecodecs.jpegls_encode(WORDS, level=2)),
    "JPEG 2000": (WORDS, JPEG2000Lossless, jpeg_2000(WORDS, level=0)),
    "JPEG 2000, lossy": (WORDS, JPEG2000, jpeg_2000(WORDS, level=60, reversible=False)),
    "RLE": (WORDS, RLELossless, rle(WORDS)),
}
DAMAGES = {
    "zeros": lambda frame, start, end: frame[:start] + bytes(end - start) + frame[end:],
    "ones": lambda frame, start, end: frame[:start] + b"\xff" * (end - start) + frame[end:],
    "other bytes": lambda frame, start, end: (
        frame[:start] + np.random.default_rng(start).bytes(end - start) + frame[end:]
    ),
    "a part missing": lambda frame, start, end: frame[:start] + frame[end:],
    "cut, with an end": lambda frame, start, end: frame[:start] + b"\xff\xd9",
    "cut": lambda frame, start, end: frame[:start],
}


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("name", SYNTAXES)
def test_damage_is_refused_wherever_it_is(name, kind):
    values, syntax, frame = SYNTAXES[name]
    made, length = image(values, 8 * values.itemsize if values is BYTES else 12), 4096
    for place in np.linspace(len(frame) // 12, len(frame) - length - 200, 7).astype(int).tolist():
        data = saved(made, syntax, DAMAGES[kind](frame, place, place + length))
        with pytest.raises(RadiographError, match=r"damaged|truncated") as caught:
            dicom.parse(data, "a.dcm")
        assert caught.value.reason == UNREADABLE


@pytest.mark.parametrize("name", SYNTAXES)
def test_sound_pixels_are_read_with_padding_and_in_several_fragments(name):
    values, syntax, frame = SYNTAXES[name]
    made = image(values, 8 * values.itemsize if values is BYTES else 12)
    whole = read(made, syntax, frame).image
    assert np.abs(whole.astype(float) - (values if values is BYTES else stretched(WORDS))).max() <= 8
    for padding in (b"\0", bytes(100), b"\xff", b"\xff\xff\0\0"):
        assert name == "RLE" or np.array_equal(read(made, syntax, frame + padding).image, whole), padding
    for count in (2, 3, 7):
        assert np.array_equal(dicom.parse(saved(made, syntax, frame, fragments=count), "a.dcm").image, whole), count


# JPEG Lossless


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("predictor", range(1, 8))
def test_every_predictor_of_every_encoder(predictor, bits):
    words = (WORDS.astype(int) * 2**bits >> 12).astype("u1" if bits == 8 else "<u2")
    frame = imagecodecs.jpeg8_encode(words, lossless=True, bitspersample=bits, predictor=predictor)
    assert damage.jpeg_lossless_is_whole(frame, words)
    frame = imagecodecs.ljpeg_encode(words, bitspersample=bits)
    assert damage.jpeg_lossless_is_whole(frame, words)


@given(
    st.integers(1, 7), st.integers(0, 3), st.sampled_from([0, 1, 5, 13]), st.sampled_from([12, 16]), st.integers(0, 1)
)
@settings(deadline=None, max_examples=40)
def test_restarts_and_dropped_bits(predictor, shift, every, bits, fill):
    words = (SMALL.astype(int) << bits - 12 ^ (0x8000 if bits == 16 else 0)).astype("<u2")
    frame = encode(words, bits, predictor, shift, every, fill=fill)
    pixels = imagecodecs.jpeg8_decode(frame)
    assert np.array_equal(pixels, words >> shift << shift)
    assert damage.jpeg_lossless_is_whole(frame, pixels)
    for share in (0.1, 0.5, 0.9):
        with pytest.raises(RadiographError, match=r"damaged|decoded"):
            read(image(words, bits), JPEGLossless, frame[: int(len(frame) * share)] + b"\xff\xd9")


def test_differences_of_half_a_range_have_no_bits_of_their_own():
    words = np.where(np.indices((20, 20)).sum(0) % 2, 0x8000, 0).astype("<u2")
    frame = imagecodecs.jpeg8_encode(words, lossless=True, bitspersample=16)
    assert damage.jpeg_lossless_is_whole(frame, imagecodecs.jpeg8_decode(frame))


def test_a_scan_for_each_colour():
    colours = np.stack([SMALL, SMALL // 2, SMALL // 3], -1)
    frame = encode(colours, 12)
    assert damage.jpeg_lossless_is_whole(frame, colours)
    assert damage.jpeg_lossless_is_whole(imagecodecs.jpeg8_encode(colours, lossless=True, bitspersample=12), colours)
    last = frame.rindex(b"\xff\xda")
    assert not damage.jpeg_lossless_is_whole(frame[:last] + b"\xff\xd9", colours)
    assert not damage.jpeg_lossless_is_whole(frame[: last + 60] + b"\xff\xd9", colours)


@pytest.mark.parametrize(
    ("padding", "sound"),
    [
        (b"\xff", True),
        (b"\xff\xff", True),
        (bytes(2), True),
        (b"\xff\0" * 3, True),
        (b"\x12\x34", False),
        (bytes(99), False),
    ],
)
def test_padding_before_the_end(padding, sound):
    """Fill bytes may stand before every marker; some encoders fill a word."""
    frame = encode(SMALL, 12, padding=padding)
    assert damage.jpeg_lossless_is_whole(frame, SMALL) == sound


@pytest.mark.skipif(shutil.which("dcmcjpeg") is None, reason="DCMTK is not installed")
@pytest.mark.parametrize("options", ["+e1", *(f"+el +sv {predictor}" for predictor in range(2, 8)), "+e1 +pt 2"])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_files_of_dcmtk(options, bits, tmp_path):
    words = (WORDS.astype(int) * 2**bits >> 12).astype("u1" if bits == 8 else "<u2")
    (tmp_path / "plain.dcm").write_bytes(saved(image(words, bits)))
    command = ["dcmcjpeg", *options.split(), tmp_path / "plain.dcm", tmp_path / "compressed.dcm"]
    subprocess.run(command, check=True, capture_output=True)
    shown = dicom.read(tmp_path / "compressed.dcm").image.astype(int)
    largest = 4 if "+pt" in options else 0
    assert np.abs(shown - dicom.read(tmp_path / "plain.dcm").image).max() <= largest


# JPEG 2000


@pytest.mark.parametrize("pixels", ["xray", "black", "half black", "chequered", "ramp", "one"])
def test_pictures_with_much_that_is_equal(pixels):
    made = {
        "xray": WORDS,
        "black": np.zeros_like(WORDS),
        "half black": np.where(ROWS < 150, WORDS, 0),
        "chequered": (ROWS + COLUMNS) % 2 * 4095,
        "ramp": ROWS + COLUMNS,
        "one": (ROWS * COLUMNS == 400) * 4095,
    }[pixels].astype("<u2")
    assert jpeg2000.is_whole(jpeg_2000(made, level=0))
    assert jpeg2000.is_whole(jpeg_2000(made, level=30, reversible=False))
    assert jpeg2000.is_whole(imagecodecs.jpeg2k_encode(made, level=0))  # as a JP2 file
    assert jpeg2000.is_whole(imagecodecs.htj2k_encode(made))
    encoder = get_encoder(JPEG2000)
    for ratios in ([20], [100, 50, 20, 10, 5, 2]):  # of layers
        frame = encoder.encode(
            made,
            rows=300,
            columns=280,
            samples_per_pixel=1,
            bits_allocated=16,
            bits_stored=12,
            pixel_representation=0,
            photometric_interpretation="MONOCHROME2",
            number_of_frames=1,
            j2k_cr=ratios,
            encoding_plugin="pylibjpeg",
        )
        assert jpeg2000.is_whole(frame)


@pytest.mark.parametrize("number", [b"\0\0", b"\xff\xd9", b"\x00\xff", b"\xff\xff"])
def test_markers_between_packets(number):
    """SOP before the first packet, where the coding style says that there may be such, and nowhere else."""
    frame = bytearray(jpeg_2000(WORDS, level=0))
    data = frame.index(b"\xff\x93") + 2
    frame[data:data] = b"\xff\x91\0\4" + number
    length = frame.index(b"\xff\x90\0\x0a") + 6
    frame[length : length + 4] = (int.from_bytes(frame[length : length + 4], "big") + 6).to_bytes(4, "big")
    assert not jpeg2000.is_whole(bytes(frame))
    frame[frame.index(b"\xff\x52") + 4] |= 2
    assert jpeg2000.is_whole(bytes(frame))


@given(st.binary(max_size=300))
def test_nonsense_is_damaged(data):
    assert not damage.jpeg_lossless_is_whole(b"\xff\xd8" + data, SMALL)
    assert not jpeg2000.is_whole(data)


def test_segments_of_all_kinds_in_both_headers():
    """A comment with the bytes of COD and SOD in it, and a marker without length."""
    frame = jpeg_2000(WORDS, level=0)
    more = b"\xff\x64\0\x0a\0\1\xff\x52\xff\x93\xff\x90" + b"\xff\x30"
    main, part = frame.index(b"\xff\x52"), frame.index(b"\xff\x93")
    length = frame.index(b"\xff\x90\0\x0a") + 6
    longer = (int.from_bytes(frame[length : length + 4], "big") + len(more)).to_bytes(4, "big")
    made = frame[:main] + more + frame[main:length] + longer + frame[length + 4 : part] + more + frame[part:]
    assert jpeg2000.is_whole(made)
    assert not jpeg2000.is_whole(made[:-9000] + bytes(9000))


def test_high_throughput_jpeg_2000_is_read():
    assert close(read(image(WORDS, 12), HTJ2KLossless, imagecodecs.htj2k_encode(WORDS)).image, stretched(WORDS))


# RLE


@pytest.mark.parametrize(
    ("padding", "sound"), [(b"\0", True), (bytes(6), True), (bytes(900), False), (b"\x81\1", False)]
)
def test_padding_of_run_length_code(padding, sound):
    """Segments are filled to an even length, and some encoders fill more; a zero alone stands for nothing."""
    frame = rle(WORDS) + padding
    assert (rle_segments(frame, WORDS.size) is not None) == sound


def test_run_length_code_may_have_a_few_bytes_more():
    for more, sound in ((1, True), (8, True), (9, False), (-1, False)):
        assert (rle_segments(rle(WORDS), WORDS.size - more) is not None) == sound


def test_run_length_code_of_another_depth():
    with pytest.raises(RadiographError, match="1 bytes a pixel in its compressed pixels, and 16 Bits Allocated"):
        read(image(WORDS, 12), RLELossless, rle(BYTES))
