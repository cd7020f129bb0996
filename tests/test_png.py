"""PNG files: other readers get every pixel and the description back."""

import cv2
import numpy as np
import pytest
from PIL import Image

from jaxpneumo.predict.png import png, write_png
from jaxpneumo.process.errors import InputError

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(37, 53), (1, 1), (1, 9), (9, 1), (256, 255)])
def test_grey(shape, kind):
    picture = RANDOM.integers(0, np.iinfo(kind).max, shape, kind, endpoint=True)
    read = cv2.imdecode(np.frombuffer(png(picture), np.uint8), cv2.IMREAD_UNCHANGED)
    assert read.dtype == kind
    np.testing.assert_array_equal(read, picture)


@pytest.mark.parametrize("shape", [(37, 53, 3), (1, 1, 3), (9, 1, 3)])
def test_colour(shape):
    picture = RANDOM.integers(0, 256, shape, np.uint8)
    read = cv2.imdecode(np.frombuffer(png(picture), np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(read[..., ::-1], picture)


def test_any_order_of_bytes_and_pixels_in_memory():
    picture = RANDOM.integers(0, 1 << 16, (20, 30), np.uint16)
    expected = png(picture)
    assert png(picture.astype(">u2")) == expected
    assert png(np.asfortranarray(picture)) == expected
    assert png(np.repeat(picture, 2, axis=1)[:, ::2]) == expected


def test_description_is_a_text_of_the_file(tmp_path):
    path = tmp_path / "folder" / "a.png"
    write_png(path, np.zeros((4, 5), np.uint8), "probability * 65535; research use only")
    with Image.open(path) as image:
        assert image.size == (5, 4)
        assert image.text == {"Description": "probability * 65535; research use only"}
    assert [file.name for file in path.parent.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    "picture",
    [np.zeros((4, 4)), np.zeros((4, 4), np.int8), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4), np.uint8)],
    ids=["float", "signed", "four channels", "empty"],
)
def test_other_arrays_are_refused(picture, tmp_path):
    with pytest.raises(InputError, match="cannot be written as a PNG"):
        write_png(tmp_path / "a.png", picture)
    assert not list(tmp_path.iterdir())
