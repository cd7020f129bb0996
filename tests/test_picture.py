"""PNG and JPEG pictures: turned as a viewer turns them, transparent margins black, one grey refused."""

import io

import numpy as np
import pytest
from display_images import BYTES
from PIL import Image

from jaxpneumo.dicom import dicom
from jaxpneumo.dicom.radiograph import ONE_GREY, RadiographError

TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def encode(picture: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("orientation", TURNS)
def test_exif_orientation_is_applied(form, orientation):
    """The stored picture is turned so that what the tag asks of a viewer brings it back (CIPA DC-008 4.6.5)."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(BYTES)
    stored = picture if TURNS[orientation] is None else picture.transpose(TURNS[orientation])
    data = encode(stored, form, exif=exif, **({"quality": 100} if form == "JPEG" else {}))
    shown = dicom.parse_image(data, "a").image
    assert shown.shape == BYTES.shape
    assert np.abs(shown.astype(int) - BYTES).max() <= (3 if form == "JPEG" else 0)


@pytest.mark.parametrize("orientation", [0, 9, 300])
def test_other_orientations_turn_nothing(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(dicom.parse_image(encode(Image.fromarray(BYTES), "PNG", exif=exif), "a").image, BYTES)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_a_transparent_margin_is_black(mode):
    alpha = np.full_like(BYTES, 255)
    alpha[:9] = 0
    grey = np.where(alpha == 0, 255, BYTES).astype(np.uint8)
    picture = Image.fromarray(np.dstack([grey] * (3 if mode == "RGBA" else 1) + [alpha]), mode)
    assert np.array_equal(dicom.parse_image(encode(picture, "PNG"), "a").image, np.where(alpha == 0, 0, BYTES))


def test_a_transparent_margin_may_hide_colours():
    picture = np.dstack([BYTES] * 3 + [np.full_like(BYTES, 255)])
    picture[:9] = 200, 0, 90, 0
    shown = dicom.parse_image(encode(Image.fromarray(picture), "PNG"), "a").image
    assert not shown[:9].any()
    assert np.array_equal(shown[9:], BYTES[9:])


@pytest.mark.parametrize("mode", ["L", "P", "RGB"])
def test_one_transparent_grey_is_black(mode):
    """The tRNS chunk: a value, colour or palette entry that stands for transparent."""
    grey = BYTES.copy()
    grey[:9] = 250
    picture = Image.fromarray(grey).convert(mode)
    transparent = (250, 250, 250) if mode == "RGB" else 250
    shown = dicom.parse_image(encode(picture, "PNG", transparency=transparent), "a").image
    assert not shown[:9].any()
    assert np.array_equal(shown[9:], BYTES[9:])


def test_few_pixels_that_take_the_grey_levels_of_the_others_are_said():
    """16 bits are stretched between the extremes."""
    words = np.tile(BYTES.astype(np.uint16) * 4, (8, 8))
    assert dicom.parse_image(encode(Image.fromarray(words), "PNG"), "a.png").remarks == ()
    words[3, 5] = 65535
    (remark,) = dicom.parse_image(encode(Image.fromarray(words), "PNG"), "a.png").remarks
    assert remark.startswith("few pixels, as of a marker")


@pytest.mark.parametrize(("form", "kind"), [("PNG", np.uint8), ("PNG", np.uint16), ("JPEG", np.uint8)])
def test_one_grey_is_no_radiograph(form, kind):
    with pytest.raises(RadiographError, match="a single grey") as caught:
        dicom.parse_image(encode(Image.fromarray(np.full((40, 40), 90, kind)), form), "a")
    assert caught.value.reason == ONE_GREY


def test_a_jpeg_in_cmyk_is_named():
    picture = Image.fromarray(BYTES).convert("CMYK")
    with pytest.raises(RadiographError, match="JPEG picture of 4 x 8 bits"):
        dicom.parse_image(encode(picture, "JPEG"), "a")
