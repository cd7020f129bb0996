"""The mask's outlines as a Grayscale Softcopy Presentation State: the radiograph with lines (DICOM PS3.3 A.33.1)."""

import numpy as np
from pydicom.dataset import Dataset
from pydicom.valuerep import DSfloat

from jaxpneumo.dicom.display import FUNCTIONS, look_up_table
from jaxpneumo.dicom.elements import Elements
from jaxpneumo.dicom.origin import NoResultError, Origin
from jaxpneumo.dicom.outcome import FINDING, ORANGE, RESEARCH, Algorithm, ImageOutcome, common, finish, name_part
from jaxpneumo.dicom.radiograph import is_spacing

KIND = "presentation"
MOST_POINTS = 8000  # of a polyline: its element holds at most 64 KiB
# (row, column) of a step along a pixel's edge: right, down, left, up; and the pixels at its right and left hand
_STEPS = ((0, 1), (1, 0), (0, -1), (-1, 0))


def presentation(origin: Origin, outcome: ImageOutcome, algorithm: Algorithm) -> Dataset:
    """Makes a presentation state for a positive outcome.

    The grey levels stay those of the radiograph: a state replaces its look-up tables and window, so it repeats them.

    Raises:
      NoResultError: there are no such states of this radiograph.
    """
    from highdicom import PresentationLUTTransformation
    from highdicom.color import CIELabColor
    from highdicom.pr import (
        GraphicAnnotation,
        GraphicLayer,
        GraphicObject,
        GrayscaleSoftcopyPresentationState,
    )
    from highdicom.pr.enum import AnnotationUnitsValues, GraphicTypeValues

    elements = Elements(origin.header)
    photometric = elements.text("PhotometricInterpretation")
    if not photometric.startswith("MONOCHROME"):
        raise NoResultError("it is stored in colour, and they are of grey images.")
    layer = GraphicLayer(FINDING.upper(), order=1, display_color=CIELabColor.from_rgb(*ORANGE))
    lines = [
        GraphicObject(GraphicTypeValues.POLYLINE, points, AnnotationUnitsValues.PIXEL)
        for points in polylines(outcome.mask)
    ]
    result = GrayscaleSoftcopyPresentationState(
        referenced_images=[origin.dataset],
        content_label=FINDING.upper(),
        content_description=RESEARCH,
        graphic_layers=[layer],
        graphic_annotations=[GraphicAnnotation([origin.dataset], layer, graphic_objects=lines)],
        # Here nothing else says which values are bright.
        presentation_lut_transformation=PresentationLUTTransformation(
            "INVERSE" if photometric == "MONOCHROME1" else "IDENTITY"
        ),
        **common(origin, algorithm, KIND),
    )
    _keep_grey_levels(result, elements)
    _keep_shape(result, origin, elements)
    name_part(result, origin)
    return finish(result, origin)


def _keep_grey_levels(result: Dataset, elements: Elements) -> None:
    """Repeats a radiograph's rescaling and its VOI LUT or window, as far as `display.to_grey` uses them."""
    if elements.items("ModalityLUTSequence"):
        raise NoResultError("it has a Modality LUT, which they would have to repeat.")
    slope, intercept = elements.number("RescaleSlope"), elements.number("RescaleIntercept")
    if slope != 0 and (slope, intercept) != (None, None):
        # A number takes 16 characters at most (DICOM PS3.5 6.2).
        numbers = (1 if slope is None else slope, 0 if intercept is None else intercept)
        result.RescaleSlope, result.RescaleIntercept = (DSfloat(number, auto_format=True) for number in numbers)
        result.RescaleType = "US"
    centers, widths = elements.numbers("WindowCenter"), elements.numbers("WindowWidth")
    function = elements.text("VOILUTFunction").upper()
    item = Dataset()
    if (table := _voi_table(elements, slope or 1, intercept or 0)) is not None:
        item.VOILUTSequence = [table]
    elif (
        centers
        and len(centers) == len(widths)
        and (min(widths) >= 1 or (min(widths) > 0 and function in FUNCTIONS[1:]))
    ):
        item.WindowCenter, item.WindowWidth = (
            [DSfloat(number, auto_format=True) for number in numbers] for numbers in (centers, widths)
        )
        if function in FUNCTIONS:
            item.VOILUTFunction = function
    if len(item):
        result.SoftcopyVOILUTSequence = [item]


def _keep_shape(result: Dataset, origin: Origin, elements: Elements) -> None:
    """Says how large a pixel is, or at least its shape (DICOM PS3.3 C.10.4)."""
    (area,) = result.DisplayedAreaSelectionSequence
    if origin.pixel_spacing:
        area.PresentationPixelSpacing = [DSfloat(number, auto_format=True) for number in origin.pixel_spacing]
        del area.PresentationPixelAspectRatio
        return
    detector, ratio = elements.numbers("ImagerPixelSpacing"), elements.numbers("PixelAspectRatio")
    if is_spacing(detector):
        area.PresentationPixelAspectRatio = [round(10_000 * number) for number in detector]
    elif len(ratio) == 2 and min(ratio) >= 1:
        area.PresentationPixelAspectRatio = [int(number) for number in ratio]


def _voi_table(elements: Elements, slope: float, intercept: float) -> Dataset | None:
    """The first usable VOI LUT in 16 bits, which a state must have or 8 (DICOM PS3.3 C.11.8)."""
    bits = elements.whole("BitsStored") or elements.known("BitsAllocated")
    lowest = -(2 ** (bits - 1)) if elements.whole("PixelRepresentation") else 0
    ends = [value * slope + intercept for value in (lowest, lowest + 2**bits - 1)]
    tables = (look_up_table(item, "VOI LUT", min(ends), max(ends), "") for item in elements.items("VOILUTSequence"))
    table = next((table for table in tables if table is not None), None)
    if table is None:
        return None
    item = Dataset()
    descriptor = np.array([len(table.entries), table.first, 16]).astype(np.int16 if table.first < 0 else np.uint16)
    item.add_new("LUTDescriptor", "SS" if table.first < 0 else "US", descriptor.tolist())
    item.add_new("LUTData", "OW", np.rint(table.entries * (65535 / table.full)).astype("<u2").tobytes())
    return item


def polylines(mask: np.ndarray) -> list[np.ndarray]:
    """`outlines`, each in as many pieces as its length needs. A piece begins where the one before it ends."""
    pieces = []
    for outline in outlines(mask):
        starts = range(0, len(outline) - 1, MOST_POINTS - 1)
        pieces += [outline[start : start + MOST_POINTS] for start in starts]
    return pieces


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """The edges between a mask and its surroundings, as closed lines through corners of pixels.

    The pixels within an odd number of the lines are exactly those of the mask.

    Args:
      mask: uint8 (H, W) of 0 and 1.

    Returns:
      float64 (points, 2) each, the (column, row) of corners; the first and the last are equal. The upper left corner
      of the image is (0, 0), the lower right one (W, H), as in DICOM PS3.3 C.10.5.1.2.
    """
    padded = np.pad(mask.astype(bool), 1)
    inner = padded[1:-1, 1:-1]
    # The mask lies at the right hand of each step: above a pixel to the right, at its right side down, and so on.
    edges = (
        (inner & ~padded[:-2, 1:-1], 0, 0),
        (inner & ~padded[1:-1, 2:], 0, 1),
        (inner & ~padded[2:, 1:-1], 1, 1),
        (inner & ~padded[1:-1, :-2], 1, 0),
    )
    steps: dict[tuple[int, int], set[int]] = {}
    for direction, (where, down, right) in enumerate(edges):
        for row, column in np.argwhere(where).tolist():
            steps.setdefault((row + down, column + right), set()).add(direction)
    found = []
    for start in sorted(steps):
        while steps[start]:
            found.append(_follow(steps, start))
    return found


def _follow(steps: dict[tuple[int, int], set[int]], start: tuple[int, int]) -> np.ndarray:
    """One closed line from a corner; its steps are taken away."""
    direction = min(steps[start])
    place, corners = start, [start]
    while True:
        steps[place].discard(direction)
        place = place[0] + _STEPS[direction][0], place[1] + _STEPS[direction][1]
        if place == start:
            break
        # Where four lines meet, the right turn keeps to the same pixel.
        turn = next(each for each in (1, 0, 3) if (direction + each) % 4 in steps[place])
        if turn:
            corners.append(place)
        direction = (direction + turn) % 4
    return np.array([*corners, start], float)[:, ::-1]
