"""What the page is told about a radiograph: the picture, the facts, and levels from which it makes the region itself.

A level says for each pixel how many of the slider's thresholds its probability reaches. There are at most 255 of them,
and the run's own is among them. So one byte a pixel holds the region at every position of the slider without rounding,
and moving the slider asks nothing of the server.
"""

import base64
import zlib
from typing import Any, cast

import cv2
import numpy as np

from jaxpneumo.predict.certainty import Bands
from jaxpneumo.predict.finding import Finding
from jaxpneumo.predict.infer import Predictor
from jaxpneumo.predict.native import GATE, to_native_on_host
from jaxpneumo.predict.png import png
from jaxpneumo.run.config import Predict

STEPS = 200  # of the slider, from 1/200 to 1


def slider(settings: Predict) -> list[float]:
    """The thresholds of the slider, ascending: equal steps, and those that the settings have."""
    own = [settings.threshold, *([] if settings.top_threshold is None else [settings.top_threshold])]
    steps = [step / STEPS for step in range(1, STEPS + 1)]
    # Thresholds are compared as float32: two that are one number then are one position.
    return sorted({float(np.float32(value)): value for value in (*steps, *own)}.values())


def levels(finding: Finding, settings: Predict) -> np.ndarray:
    """How many of the slider's thresholds each pixel reaches, uint8 (H, W).

    The host makes them of the probabilities, and may round their last bit otherwise than the device that made the mask.
    So they are made to agree with the mask at the run's own threshold.

    Args:
      finding: with its probability, at the threshold of the settings.
      settings: the run's.
    """
    reached = np.searchsorted(np.array(slider(settings), np.float32), native(finding), side="right").astype(np.uint8)
    own = position(settings.threshold, settings)
    if finding.area:
        mask = finding.mask.astype(bool)
        reached[mask & (reached < own)] = own
        beyond = ~mask & (reached >= own)
        if settings.removal_rule == "component":  # other components were removed; a kept one has no neighbours
            beyond &= cv2.dilate(mask.view(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
        reached[beyond] = own - 1
    return reached


def native(finding: Finding) -> np.ndarray:
    """The probability of each pixel at native size, float32 (H, W)."""
    probability = cast(np.ndarray, finding.probability)
    return to_native_on_host(probability, finding.picture.height, finding.picture.width)


def position(threshold: float, settings: Predict) -> int:
    """The level that a pixel has at least if it reaches a threshold of the slider."""
    return 1 + list(map(np.float32, slider(settings))).index(np.float32(threshold))


def run_facts(predictor: Predictor, bands: Bands, name: str) -> dict[str, Any]:
    """What the page has to know of the run: thresholds, rules, words."""
    settings = predictor.settings
    top = settings.top_threshold
    return {
        "name": name,
        "model": predictor.model_id[:12],
        "words": rule_words(settings),
        "synthetic": predictor.synthetic,
        "calibrated": bands.calibrated,
        "thresholds": slider(settings),
        "own": position(settings.threshold, settings),
        "rules": {
            "removal": settings.removal_threshold,
            "rule": settings.removal_rule,
            "topLevel": None if top is None else position(top, settings),
            "topArea": settings.top_area or 0,
        },
    }


def rule_words(settings: Predict) -> str:
    """Which pixels are outlined, in a sentence."""
    words = f"Outlined: probability of {settings.threshold:g} and more"
    if settings.top_threshold is not None:
        words += f", if {settings.top_area:,} px reach {settings.top_threshold:g}"
    if settings.removal_threshold:
        what = "regions" if settings.removal_rule == "component" else "results"
        words += f"; {what} below {settings.removal_threshold:,} px are dropped"
    return f"{words}. Areas of rules are in pixels of a 1024 x 1024 image."


def answer(image: np.ndarray, finding: Finding, predictor: Predictor) -> dict[str, Any]:
    """What the page shows of a radiograph, as JSON: `image` is a PNG, `levels` zlib's; both in base64.

    Args:
      image: uint8 (H, W), native size.
      finding: of the same, with its probability.
      predictor: with the run's settings.
    """
    reached = levels(finding, predictor.settings)
    return {
        "id": finding.picture.uid,
        "height": finding.picture.height,
        "width": finding.picture.width,
        "image": _text(png(image)),
        "levels": _text(zlib.compress(reached.tobytes(), 1)),
        "area": finding.area,
        "area_mm2": finding.area_mm2,
        "pixel_spacing": finding.picture.pixel_spacing,
        "score": finding.score,
        "band": finding.certainty.band,
        "why": finding.certainty.why,
        "side": finding.side,
        "emptied": emptied(finding, predictor.settings),
        "remarks": finding.remarks,
    }


def emptied(finding: Finding, settings: Predict) -> str:
    """Why a mask is empty at every threshold, in words; "" if it is not."""
    own = settings.classifier_threshold
    if own is not None and finding.classifier is not None and finding.classifier < own:
        return f"Left empty: the classifier's {finding.classifier:.3f} is below its threshold, {own:g}."
    return "Left empty: the gate, another run, outlines nothing here." if finding.emptied_by == GATE else ""


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
