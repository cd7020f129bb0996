"""What the page is told about a radiograph: the picture, the facts, and levels from which it makes the region itself.

A level says for each pixel how many of the slider's thresholds its probability reaches. There are at most 255 of them,
and the run's own is among them. So one byte a pixel holds the region at every position of the slider without rounding,
and moving the slider asks nothing of the server.
"""

import base64
import zlib
from typing import Any

import cv2
import numpy as np

from jaxpneumo.api import Result
from jaxpneumo.dicom.radiograph import Radiograph
from jaxpneumo.predict import saved_thresholds
from jaxpneumo.predict.infer import Predictor
from jaxpneumo.run.config import Predict

STEPS = 200  # of the slider, from 1/200 to 1


def slider(settings: Predict) -> list[float]:
    """The thresholds of the slider, ascending: equal steps, and those that the settings have."""
    own = [settings.threshold, *([] if settings.top_threshold is None else [settings.top_threshold])]
    steps = [step / STEPS for step in range(1, STEPS + 1)]
    # Thresholds are compared as float32: two that are one number then are one position.
    return sorted({float(np.float32(value)): value for value in (*steps, *own)}.values())


def levels(result: Result, settings: Predict) -> np.ndarray:
    """How many of the slider's thresholds each pixel reaches, uint8 (H, W).

    They are made of the host's probabilities, whose last bit may differ from the device's. So they are made to agree
    with the mask, which the device made at the run's own threshold.
    """
    reached = np.searchsorted(np.array(slider(settings), np.float32), result.probability, side="right")
    reached, own = reached.astype(np.uint8), position(settings.threshold, settings)
    if result.area:
        reached[result.mask & (reached < own)] = own
        beyond = ~result.mask & (reached >= own)
        if settings.removal_rule == "component":  # other components were removed; a kept one has no neighbours
            beyond &= cv2.dilate(result.mask.view(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
        reached[beyond] = own - 1
    return reached


def position(threshold: float, settings: Predict) -> int:
    """The level that a pixel has at least if it reaches a threshold of the slider."""
    return 1 + list(map(np.float32, slider(settings))).index(np.float32(threshold))


def run_facts(predictor: Predictor, name: str) -> dict[str, Any]:
    """What the page has to know of the run: thresholds, rules, words."""
    settings = predictor.settings
    top = settings.top_threshold
    return {
        "name": name,
        "model": predictor.model_id[:12],
        "words": rule_words(settings),
        "synthetic": predictor.synthetic,
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


def answer(radiograph: Radiograph, result: Result, settings: Predict) -> dict[str, Any]:
    """What the page shows of a radiograph, as JSON: `image` is a PNG, `levels` zlib's; both in base64."""
    return {
        "id": result.id,
        "height": result.mask.shape[0],
        "width": result.mask.shape[1],
        "image": _text(png(radiograph.image)),
        "levels": _text(zlib.compress(levels(result, settings).tobytes(), 1)),
        "area": result.area,
        "area_mm2": result.area_mm2,
        "pixel_spacing": radiograph.pixel_spacing,
        "score": result.score,
        "side": result.side,
        "remarks": result.remarks,
    }


def png(picture: np.ndarray) -> bytes:
    """A picture as the bytes of a PNG, uint8 (H, W) or RGB (H, W, 3)."""
    if picture.ndim == 3:
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".png", picture)[1].tobytes()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
