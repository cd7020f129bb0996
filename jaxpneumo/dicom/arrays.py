"""Radiographs from arrays of a notebook: every type is checked, and no value is cut off without a word."""

from typing import Any

import numpy as np

from jaxpneumo.dicom import grey
from jaxpneumo.dicom.radiograph import (
    COLOUR,
    MAX_PIXELS,
    MIN_SIDE,
    WRONG_SIZE,
    Radiograph,
    RadiographError,
    one_grey,
)

OR_A_PATH = "or give the path of the DICOM file, whose header says how it is shown"


def is_array(value: Any) -> bool:
    """Whether a value is an array of NumPy or of a library with NumPy's interface, such as JAX or PyTorch."""
    return hasattr(value, "__array__")


def from_array(value: Any, name: str) -> Radiograph:
    """Makes a radiograph of an array, with high values where little radiation came through (bones are white).

    The types and their rules:

    - uint8 is taken as it is.
    - uint16 is stretched from its smallest to its largest value, as a 16-bit PNG is.
    - Other integers must be 0 to 255 and are taken as they are.
    - Floating-point numbers must be 0 to 1. They are multiplied by 255 and rounded.

    Three equal colour channels are grey. `Radiograph.remarks` says what was converted.

    Args:
      value: (H, W), or (H, W, 3) with equal channels.
      name: the radiograph's uid, and what messages call it.

    Raises:
      RadiographError: another shape or type, values outside of these ranges, nan, infinity, colour, or a single grey.
    """
    if isinstance(value, np.ma.MaskedArray) and np.ma.getmaskarray(value).any():
        raise RadiographError(f"{name} is a masked array. Give the grey levels of all pixels: image.filled(0).")
    array = np.asarray(value)
    if array.dtype.kind not in "uif":
        kind = "a mask" if array.dtype.kind == "b" else f"of type {array.dtype}"
        raise RadiographError(f"{name} is {kind}. Give the radiograph's grey levels: uint8, uint16 or 0.0 to 1.0.")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise RadiographError(f"{name} holds nan or infinity. Replace these values first, {OR_A_PATH}.")
    array = _one_channel(array, name)
    if min(array.shape) < MIN_SIDE or array.size > MAX_PIXELS:
        raise RadiographError(
            f"{name} has {array.shape[0]} x {array.shape[1]} pixels, which no radiograph has. Give the whole image.",
            WRONG_SIZE,
        )
    image, *remarks = _to_uint8(array, name)
    if grey.image_is_one(image):
        raise one_grey(name)
    return Radiograph(np.ascontiguousarray(image), uid=name, remarks=tuple(remarks))


def _one_channel(array: np.ndarray, name: str) -> np.ndarray:
    """(H, W) of an array of this shape, or of three equal channels."""
    if array.ndim == 3 and array.shape[2] == 3:
        if (array != array[..., :1]).any():
            raise RadiographError(f"{name} is a colour picture. Give the radiograph in grey, (height, width).", COLOUR)
        return array[..., 0]
    if array.ndim == 2:
        return array
    if array.ndim == 3 and array.shape[2] == 1:
        way_out = "Leave out the last axis: image[..., 0]"
    elif array.ndim == 3 and array.shape[0] == 1:
        way_out = "Leave out the first axis: image[0]"
    elif array.ndim == 3 and (array.shape[0] in (3, 4) or array.shape[2] == 4):
        way_out = "It seems to be a colour picture: give the radiograph in grey; give several images as a list"
    elif array.ndim in (3, 4):
        way_out = "Give several images as a list: predict(list(images))"
    else:
        way_out = "Give one image"
    raise RadiographError(f"{name} has the shape {array.shape}, not (height, width). {way_out}.", WRONG_SIZE)


def _to_uint8(array: np.ndarray, name: str) -> tuple[np.ndarray, *tuple[str, ...]]:
    """The image, uint8, and remarks about its conversion."""
    if array.dtype == np.uint8:
        return (array,)
    low, high = array.min(), array.max()
    if array.dtype.kind == "f":
        if low < 0 or high > 1:
            raise RadiographError(
                f"{name} is {array.dtype} with values from {low:g} to {high:g}; floating-point numbers must be 0 to 1. "
                f"Scale them to that, for example image / 255 where 255 is white, {OR_A_PATH}."
            )
        return grey.to_uint8(array.astype(np.float64) * 255), "values of 0 to 1 were multiplied by 255"
    if array.dtype.kind == "u" and array.itemsize == 2:
        image = array.astype(np.uint16, copy=False)  # in this machine's order of bytes
        if grey.image_is_one(image):
            raise one_grey(name)
        counts = np.bincount(image.ravel())
        uneven = (grey.UNEVEN,) if grey.is_uneven(np.arange(len(counts)), counts) else ()
        stretched = grey.stretch(image, np.ones(image.shape, bool))
        return stretched, f"uint16 values of {low} to {high} were stretched to 0 to 255; bones must be white", *uneven
    if low < 0 or high > 255:
        raise RadiographError(
            f"{name} is {array.dtype} with values from {low} to {high}; integers must be 0 to 255. Scale them to that, "
            f"{OR_A_PATH}."
        )
    return (array.astype(np.uint8),)
