"""Sizes from the first bytes of compressed pictures, as their encoders wrote them."""

import cv2
import imagecodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpneumo.dicom import codestream

GREY = np.random.default_rng(0).integers(0, 256, (40, 72), np.uint8)
COLOUR = np.stack([GREY, GREY, GREY], axis=-1)
ENCODERS = {
    "png": lambda image: cv2.imencode(".png", image)[1].tobytes(),
    "jpeg": lambda image: cv2.imencode(".jpg", image)[1].tobytes(),
    "progressive jpeg": lambda image: cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes(),
    "lossless jpeg": lambda image: imagecodecs.jpeg8_encode(image, lossless=True),
    "jpeg-ls": imagecodecs.jpegls_encode,
    "jpeg 2000": lambda image: imagecodecs.jpeg2k_encode(image, level=0),
    "jpeg 2000, bare": lambda image: imagecodecs.jpeg2k_encode(image, level=0, codecformat="j2k"),
}


CODINGS = {
    "png": "PNG",
    "jpeg": "JPEG",
    "progressive jpeg": "JPEG",
    "lossless jpeg": "JPEG lossless",
    "jpeg-ls": "JPEG-LS",
    "jpeg 2000": "JPEG 2000",
    "jpeg 2000, bare": "JPEG 2000",
}


@pytest.mark.parametrize("name", ENCODERS)
def test_coding_size_components_and_bits(name):
    assert codestream.describe(ENCODERS[name](GREY)) == codestream.Codestream(CODINGS[name], 40, 72, 1, 8)
    assert codestream.describe(ENCODERS[name](COLOUR)) == codestream.Codestream(CODINGS[name], 40, 72, 3, 8)


@pytest.mark.parametrize("bits", [10, 12, 15, 16])
def test_the_bits_of_deeper_pictures(bits):
    deep = GREY.astype(np.uint16) << (bits - 8)
    for frame in (
        imagecodecs.jpeg8_encode(deep, lossless=True, bitspersample=bits),
        imagecodecs.jpeg2k_encode(deep, level=0, codecformat="j2k", bitspersample=bits),
    ):
        assert codestream.describe(frame).bits == bits


def test_the_sign_of_jpeg_2000():
    for signed, kind in ((False, np.uint16), (True, np.int16)):
        frame = imagecodecs.jpeg2k_encode(GREY.astype(kind), level=0, bitspersample=12)
        found = codestream.describe(frame)
        assert (found.bits, found.signed) == (12, signed)


@pytest.mark.parametrize(("behind", "is_end"), [(b"", True), (b"\0\xff", True), (bytes(300), True), (b"x", False)])
def test_the_end_of_a_jpeg(behind, is_end):
    assert codestream.jpeg_has_end(ENCODERS["jpeg"](GREY) + behind) == is_end
    assert not codestream.jpeg_has_end(ENCODERS["jpeg"](GREY)[:-1] + behind)


@given(st.sampled_from(sorted(ENCODERS)), st.integers(0, 400))
def test_cut_files_say_the_same_or_nothing(name, length):
    whole = ENCODERS[name](GREY)
    assert codestream.describe(whole[:length]) in (None, codestream.describe(whole))


@given(st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8\xff", b"\xff\x4f\xff\x51", codestream.PNG_SIGNATURE]))
def test_nonsense_says_something_or_nothing(data, start):
    found = codestream.describe(start + data)
    assert found is None or isinstance(found, codestream.Codestream)
    assert 1 <= codestream.orientation(start + data) <= 8


def test_png_checksums():
    png = ENCODERS["png"](GREY)
    assert codestream.png_is_whole(png)
    assert codestream.png_is_whole(png + b"something")
    for place in range(8, len(png), 97):
        assert not codestream.png_is_whole(png[:place])
        assert not codestream.png_is_whole(png[:place] + bytes([png[place] ^ 4]) + png[place + 1 :])
