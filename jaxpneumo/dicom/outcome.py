"""What a DICOM result says, and what results of all kinds have in common: UIDs, series, software, dates, references.

The same radiograph, model, settings and version of this software give the same UIDs and the same bytes: a result that
is made or sent twice is one object. So its dates are the radiograph's; there is no time of making in it. Of an image
whose patient or study was corrected the results are other objects than before.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydicom.charset import convert_encodings, default_encoding
from pydicom.dataset import Dataset
from pydicom.filewriter import correct_ambiguous_vr
from pydicom.uid import generate_uid

from jaxpneumo.dicom.origin import Origin

NAME = "jaxpneumo"
FINDING = "Pneumothorax"
RESEARCH = "Research use only; not a medical device."
SYNTHETIC_MODEL = "Trained on synthetic radiographs: says nothing about patients."
SYNTHETIC_IMAGE = "The radiograph is synthetic and shows no patient."
# By kind of result: the end of its series' description, and the number of its series
SERIES = {
    "seg": ("segmentation", 9001),
    "sr": ("report", 9002),
    "presentation": ("outlines", 9003),
    "capture": ("picture", 9004),
}
ORANGE = (230, 159, 0)  # RGB of outlines, as in pictures
LONG = 64  # characters of most texts (DICOM PS3.5 6.2)
# What highdicom fills with the time of making
_MADE = ("ContentDate", "ContentTime", "PresentationCreationDate", "PresentationCreationTime")
_MADE_TOO = ("InstanceCreationDate", "InstanceCreationTime", "DateOfSecondaryCapture", "TimeOfSecondaryCapture")


@dataclass(frozen=True)
class Algorithm:
    """What made a result.

    Attributes:
      version: of this software.
      model: fingerprint of the weights; of an ensemble those of all runs.
      settings: all settings that change a mask, as text.
      synthetic: the model was trained on synthetic radiographs.
    """

    version: str
    model: str
    settings: str
    synthetic: bool = False


@dataclass(frozen=True)
class ImageOutcome:
    """What was found in a radiograph.

    Attributes:
      mask: uint8 (H, W) of 0 and 1 at the radiograph's native size. The result is positive if any pixel is 1.
      score: the image's, from 0 to 1; None if it has none.
      side: of the patient, "left" or "right"; None if it is both or not known.
    """

    mask: np.ndarray
    score: float | None = None
    side: str | None = None

    @property
    def area(self) -> int:
        """Pixels of the mask."""
        return int(np.count_nonzero(self.mask))


def uid(algorithm: Algorithm, *what: str) -> str:
    """The UID of `what` a model with its settings makes, such as a result of a radiograph's UID; always the same."""
    parts = (algorithm.model, algorithm.settings, algorithm.version, *what)
    return str(generate_uid(entropy_srcs=[f"{part}\n" for part in parts]))


def remarks(origin: Origin, algorithm: Algorithm) -> list[str]:
    """What every reader of a result must know, in sentences."""
    said = ((True, RESEARCH), (algorithm.synthetic, SYNTHETIC_MODEL), (origin.synthetic, SYNTHETIC_IMAGE))
    return [sentence for holds, sentence in said if holds]


def common(origin: Origin, algorithm: Algorithm, kind: str, *variant: str) -> dict[str, Any]:
    """Arguments of highdicom that results of all kinds have.

    Each result is a series of its own: viewers show only one segmentation or report of a series.

    Args:
      origin: of the radiograph.
      algorithm: what made the result.
      kind: a key of SERIES.
      variant: what else the content depends on.
    """
    what, number = SERIES[kind]
    model = algorithm.model
    synthetic = ", synthetic" if algorithm.synthetic or origin.synthetic else ""
    return {
        "series_instance_uid": uid(algorithm, origin.uid, origin.owner, kind, *variant, "series"),
        "series_number": number,
        # Viewers cut descriptions short: what must be read comes first.
        "series_description": f"Research use only: pneumothorax {what}{synthetic}",
        "sop_instance_uid": uid(algorithm, origin.uid, origin.owner, kind, *variant),
        "instance_number": 1,
        "manufacturer": NAME,
        "manufacturer_model_name": NAME,
        "software_versions": algorithm.version[:LONG],
        "device_serial_number": model if len(model) <= LONG else hashlib.sha256(model.encode()).hexdigest(),
    }


def name_part(result: Dataset, origin: Origin) -> None:
    """Says in a result which part and side of the body it shows, as far as the radiograph says it.

    The side must be there, if only as unknown, unless the part is known to have none (DICOM PS3.3 C.7.3.1).
    """
    for keyword in ("BodyPartExamined", "Laterality"):
        if keyword in origin.dataset:
            setattr(result, keyword, origin.dataset[keyword].value)
    if "Laterality" not in result and result.get("BodyPartExamined") != "CHEST":
        result.Laterality = ""


def finish(result: Dataset, origin: Origin) -> Dataset:
    """Gives a result what highdicom cannot: the identity byte for byte, the radiograph's dates, true references."""
    for keyword in _MADE_TOO:
        if keyword in result:
            delattr(result, keyword)
    for keyword in _MADE:
        if keyword in result:
            setattr(result, keyword, origin.date if keyword.endswith("Date") else origin.time)
    _correct(result, origin)
    correct_ambiguous_vr(result, is_little_endian=True)
    for element in origin.identity:
        result[element.tag] = element
    # Explicit VR, little endian, this character set: what is so already is written as it is, not encoded anew.
    sets = result.get("SpecificCharacterSet")
    result.set_original_encoding(False, True, convert_encodings(sets) if sets else default_encoding)
    return result


def _correct(item: Dataset, origin: Origin) -> None:
    """Of all items: the radiograph's true SOP Class, and no time of making."""
    if item.get("ReferencedSOPInstanceUID") == origin.uid:
        item.ReferencedSOPClassUID = origin.sop_class
    if "ContributionDateTime" in item:
        del item.ContributionDateTime
    for element in item:
        if element.VR == "SQ":
            for each in element.value:
                _correct(each, origin)
