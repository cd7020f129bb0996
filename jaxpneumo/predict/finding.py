"""What the prediction of one radiograph says, as one record: of files, from Python, and for everything that is written.

Research use only; not a medical device.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import cv2
import numpy as np

from jaxpneumo.predict.certainty import Bands, Certainty, judge
from jaxpneumo.predict.postprocess import remove_small
from jaxpneumo.predict.reading import Picture
from jaxpneumo.process.errors import InputError
from jaxpneumo.process.files import printable

if TYPE_CHECKING:  # what needs JAX is imported where it is used
    from jaxpneumo.predict.infer import Predictor
    from jaxpneumo.predict.native import NativeMask
    from jaxpneumo.run.config import Predict

ONE_SIDE = 0.9  # share of a mask's pixels that lie on the side it is said to be on
BY_CONVENTION = "the side follows the convention for frontal views, as the header has no usable Patient Orientation"


@dataclass(frozen=True, eq=False, kw_only=True)
class Finding:
    """What a model finds in one radiograph.

    Attributes:
      picture: the radiograph without its image: source, uid, native height and width, pixel spacing, view, remarks.
      bits: the mask after thresholds and removal, packed: uint8 (H, ceil(W / 8)), in the order of np.packbits.
      area: number of pixels in the mask.
      largest: number of pixels in its largest 8-connected component.
      score: image-level score between 0 and 1: the classifier's probability if the network has one, else the mean of
        the greatest probabilities (`image_scores.top_pixels`).
      side: the patient's side, "left" or "right", that holds 90 % or more of the mask; None where there is none.
      side_remark: a remark about the rule of `side`, or "".
      certainty: how certain the decision is.
      classifier: the classifier's probability; None without a classifier.
      emptied_by: "gate" or "classifier", which emptied a mask that had pixels; "" for all other masks.
      probability: float32 (S, S) at the network's size, before thresholds; None unless it was asked for.
    """

    picture: Picture
    bits: np.ndarray
    area: int
    largest: int
    score: float
    side: str | None
    side_remark: str
    certainty: Certainty
    classifier: float | None = None
    emptied_by: str = ""
    probability: np.ndarray | None = None

    @property
    def mask(self) -> np.ndarray:
        """The mask, uint8 (H, W) of 0 and 1. It is unpacked each time, so that waiting findings take little memory."""
        return np.unpackbits(self.bits, axis=-1, count=self.picture.width)

    @property
    def area_mm2(self) -> float | None:
        """The area in square millimetres; None without pixel spacing."""
        return in_mm2(self.area, self.picture.pixel_spacing)

    @property
    def largest_mm2(self) -> float | None:
        """The area of the largest component in square millimetres; None without pixel spacing."""
        return in_mm2(self.largest, self.picture.pixel_spacing)

    @property
    def remarks(self) -> tuple[str, ...]:
        """Remarks about the header and the side."""
        return (*self.picture.remarks, self.side_remark) if self.side_remark else self.picture.remarks


def predict_findings(
    predictor: "Predictor", pictures: Iterable[Picture], bands: Bands, probability: bool = False
) -> Iterator[tuple[Picture, Callable[[], Finding]]]:
    """Predicts radiographs in compiled batches, with the predictor's settings.

    Args:
      predictor: the result of `load_predictor` or of `onnx_predictor.load_onnx`.
      pictures: radiographs with images, without files that could not be used.
      bands: the result of `certainty.bands_of`.
      probability: whether the findings have their probabilities.

    Yields:
      For each picture, in order, the picture without its image, and a function that makes its finding: work of a few
      milliseconds on the host that may be done in another thread.
    """
    stream = (
        (replace(picture, image=None), cast(np.ndarray, picture.image), (picture.height, picture.width))
        for picture in pictures
    )
    for picture, mask, score, pixels in predictor.find(stream, probability):
        yield picture, functools.partial(make_finding, picture, mask, score, predictor.settings, bands, pixels)


def make_finding(
    picture: Picture,
    mask: "NativeMask",
    score: float,
    settings: "Predict",
    bands: Bands,
    probability: np.ndarray | None = None,
) -> Finding:
    """Removes small components, if that is the rule, and measures what is left. For arguments see `Finding`.

    Raises:
      InputError: the score is not a finite number.
    """
    if not math.isfinite(score):
        raise InputError(
            f"the network's score of {printable(picture.source) or picture.uid} is {score}, which is no result: its "
            "weights are damaged, or its training failed. Predict with another run."
        )
    if mask.area:
        kept = remove_small(mask.unpack(), settings.removal_threshold, settings.removal_rule)
        bits, area, largest = np.packbits(kept, axis=-1), int(np.count_nonzero(kept)), largest_component(kept)
        side, remark = side_of(kept, picture.leads_to, picture.view, picture.orientation)
    else:
        bits, area, largest = np.zeros((mask.height, -(-mask.width // 8)), np.uint8), 0, 0
        side, remark = None, ""
    return Finding(
        picture=picture,
        bits=bits,
        area=area,
        largest=largest,
        score=score,
        side=side,
        side_remark=remark,
        certainty=judge(bands, score, area, mask.height, mask.width, settings.removal_threshold),
        classifier=mask.finding,
        emptied_by=mask.emptied_by,
        probability=probability,
    )


def side_of(mask: np.ndarray, leads_to: str, view: str, orientation: str = "") -> tuple[str | None, str]:
    """The patient's side that holds ONE_SIDE of a mask, and a remark about the rule or "".

    Args:
      mask: (H, W), 0 = background.
      leads_to: "L" or "R", where the header says that the image's rows lead; "" if it does not.
      view: View Position. For AP and PA the patient's right is at the image's left, unless `leads_to` says otherwise.
      orientation: of the `Radiograph`. Where the picture lies otherwise than by convention, this does not count.

    Returns:
      "left" or "right"; None without mask, for findings on both sides, and where the header says neither.
    """
    columns = np.count_nonzero(mask, axis=0)
    total, middle = columns.sum(), mask.shape[1] // 2
    # A middle column belongs to neither half.
    halves = {"L": columns[mask.shape[1] - middle :].sum(), "R": columns[:middle].sum()}
    if leads_to == "R":
        halves = {"L": halves["R"], "R": halves["L"]}
    side = next((name for name, pixels in halves.items() if total and pixels >= ONE_SIDE * total), None)
    if side is None or not (leads_to or (view in ("AP", "PA") and not orientation)):
        return None, ""
    return {"L": "left", "R": "right"}[side], "" if leads_to else BY_CONVENTION


def largest_component(mask: np.ndarray) -> int:
    """Number of pixels in the largest 8-connected component of a mask, uint8 (H, W) of 0 and 1; 0 if it is empty."""
    x, y, width, height = cv2.boundingRect(mask)
    if not width:
        return 0
    _, _, statistics, _ = cv2.connectedComponentsWithStats(mask[y : y + height, x : x + width], connectivity=8)
    return int(statistics[1:, cv2.CC_STAT_AREA].max())


def in_mm2(pixels: int, spacing: tuple[float, float] | None) -> float | None:
    """An area in square millimetres by the header's pixel spacing, which may be the detector's; None without it."""
    return None if spacing is None else pixels * spacing[0] * spacing[1]
