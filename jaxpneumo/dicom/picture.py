"""PNG and JPEG pictures of radiographs: grey, as a viewer shows them."""

from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from jaxpneumo.dicom import codestream, grey
from jaxpneumo.dicom.radiograph import COLOUR, Radiograph, RadiographError, check_size, file_id, one_grey


def is_picture(data: bytes) -> bool:
    """Whether a file begins as a PNG or JPEG does."""
    return data.startswith((codestream.PNG_SIGNATURE, codestream.JPEG_SIGNATURE))


def parse_picture(data: bytes, name: Path | str) -> Radiograph:
    """Reads a radiograph from the bytes of a grey PNG or JPEG file.

    Colour channels are one where they are equal. Exif's orientation is applied, and what is transparent becomes
    black. 16 bits are stretched from the smallest to the largest value. The uid is the file name without ending.

    Args:
      data: the whole file.
      name: what messages call it.

    Raises:
      RadiographError: truncated, damaged, colour, a single grey, or an impossible size.
    """
    found = codestream.describe(data)
    if found is None:
        raise RadiographError(f"{name} is truncated or damaged. Copy or export it again.")
    check_size(found.rows, found.columns, name)
    if found.coding != "PNG" and (found.coding != "JPEG" or found.bits != 8 or found.components not in (1, 3)):
        raise RadiographError(
            f"{name} is a {found.coding} picture of {found.components} x {found.bits} bits; 1 x 8 and 3 x 8 can be "
            "read. Export it as PNG."
        )
    try:
        pixels = _decode(data, found)
    except (ValueError, cv2.error):
        pixels = None
    if pixels is None:
        raise RadiographError(f"{name} is truncated or damaged. Copy or export it again.")
    image = _as_shown(_grey(pixels, name), codestream.orientation(data))
    if grey.image_is_one(image):
        raise one_grey(name)
    remarks = ()
    if image.dtype != np.uint8:
        counts = np.bincount(image.ravel())
        remarks = (grey.UNEVEN,) if grey.is_uneven(np.arange(len(counts)), counts) else ()
        image = grey.stretch(image, np.ones(image.shape, bool))
    return Radiograph(image=np.ascontiguousarray(image), uid=file_id(name), remarks=remarks)


def _decode(data: bytes, found: codestream.Codestream) -> np.ndarray | None:
    """Pixels (H, W) or (H, W, 3 or 4) of a PNG or JPEG file; None when it is damaged."""
    if found.coding == "JPEG":
        return simplejpeg.decode_jpeg(data, "GRAY")[..., 0] if found.components == 1 else simplejpeg.decode_jpeg(data)
    if not codestream.png_is_whole(data):
        return None
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    transparent = codestream.chunk(data, b"tRNS")
    if pixels is not None and pixels.ndim == 2 and len(transparent) == 2:  # one grey, which OpenCV does not heed
        value = int.from_bytes(transparent, "big") * (np.iinfo(pixels.dtype.name).max // (2**found.bits - 1))
        pixels[pixels == value] = 0
    return pixels


def _grey(pixels: np.ndarray, name: Path | str) -> np.ndarray:
    """One channel of equal ones, what is transparent on black; RadiographError where they differ."""
    if pixels.ndim == 2:
        return pixels
    colours = pixels[..., :3]
    if pixels.shape[2] == 4:
        full = np.iinfo(pixels.dtype.name).max
        colours = np.rint(colours * (pixels[..., 3:] / full)).astype(pixels.dtype)
    if (colours != colours[..., :1]).any():
        raise RadiographError(f"{name} is a colour picture. Give the radiograph in grey.", COLOUR)
    return colours[..., 0]


def _as_shown(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turned and mirrored as Exif's orientation says where the first row and column are."""
    if orientation >= 5:
        image = image.T
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image
