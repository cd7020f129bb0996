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


@pytest.mark.parametrize("name", ENCODERS)
def test_sizes(name):
    assert codestream.shape(ENCODERS[name](GREY)) == (40, 72, 1)
    assert codestream.shape(ENCODERS[name](COLOUR)) == (40, 72, 3)


@given(st.sampled_from(sorted(ENCODERS)), st.integers(0, 400))
def test_cut_files_have_the_same_size_or_none(name, length):
    assert codestream.shape(ENCODERS[name](GREY)[:length]) in (None, (40, 72, 1))


@given(st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8\xff", b"\xff\x4f\xff\x51", codestream.PNG_SIGNATURE]))
def test_nonsense_has_some_size_or_none(data, start):
    shape = codestream.shape(start + data)
    assert shape is None or len(shape) == 3


def test_png_checksums():
    png = ENCODERS["png"](GREY)
    assert codestream.png_is_whole(png)
    assert codestream.png_is_whole(png + b"something")
    for place in range(8, len(png), 97):
        assert not codestream.png_is_whole(png[:place])
        assert not codestream.png_is_whole(png[:place] + bytes([png[place] ^ 4]) + png[place + 1 :])
