"""The radiograph as all other modules know it, and the error for a file that is not a usable radiograph."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxpneumo.dicom import patients, projection
from jaxpneumo.process.errors import InputError
from jaxpneumo.process.files import Stamp, stamp

MIN_SIDE = 16
MAX_PIXELS = 64 * 2**20  # the largest detectors give 20 megapixels; more is a broken header, not a radiograph
MAX_BYTES = 4 * MAX_PIXELS  # of a file, and of what a deflated one unfolds to
SPACING = (0.001, 1000.0)  # mm; what is beyond is a broken header
UNREADABLE = "unreadable image"
WRONG_SIZE = "wrong size"
SEVERAL_FRAMES = "several frames"
COLOUR = "colour image"
ONE_GREY = "a single grey"
# Elements whose free text may name the view of this picture. Study Description is none: a study often has both views.
NAMING = {
    "SeriesDescription": "Series Description",
    "ProtocolName": "Protocol Name",
    "AcquisitionDeviceProcessingDescription": "Acquisition Device Processing Description",
}
SYNTHETIC = "synthetic radiograph, not a patient"


class RadiographError(InputError):
    """A file that is not a usable radiograph; the message says why, `reason` is short."""

    def __init__(self, message: str, reason: str = UNREADABLE):
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Radiograph:
    """One frontal radiograph and what its header says about it.

    Attributes:
      image: (H, W) uint8, high values where little radiation came through (bones are white).
      uid: SOP instance UID, or the file's name without ending where there is none (PNG, JPEG).
      patient_id: Patient ID as in the header, "" when absent. Never to be logged or stored.
      sex: "F", "M", "O" or "".
      age: years, or None.
      view: View Position, such as "PA" or "AP", or "".
      pixel_spacing: (row, column) distance in mm, or None.
      leads_to: the patient's side at the right edge of the picture by Patient Orientation, "L" or "R"; "" if unknown.
      orientation: the main directions of rows and columns by Patient Orientation (`projection.main_directions`).
      intent: Presentation Intent Type, such as "FOR PROCESSING".
      view_code: which projection View Code Sequence names (`projection.of_code`).
      named: which projections other elements name (`projection.of_text`), by the element's name. Their texts are free,
        and so they are not kept.
      synthetic: the file was made by `dicom.write(..., synthetic=True)`.
      modality, body_part: Modality and Body Part Examined, upper case, "" when absent.
      sop_class: SOP Class UID, "" when absent.
      remarks: sentences about header elements that could not be used as they are.
    """

    image: np.ndarray
    uid: str
    patient_id: str = ""
    sex: str = ""
    age: int | None = None
    view: str = ""
    pixel_spacing: tuple[float, float] | None = None
    synthetic: bool = False
    modality: str = ""
    body_part: str = ""
    sop_class: str = ""
    leads_to: str = ""
    orientation: str = ""
    intent: str = ""
    view_code: str = ""
    named: tuple[tuple[str, str], ...] = ()
    remarks: tuple[str, ...] = ()


def file_id(path: Path | str) -> str:
    """A file's name without the ending of an image format; the numbers of a bare UID are no ending."""
    return re.sub(r"\.(dcm|dicom|png|jpe?g|jpe|jfif)$", "", Path(path).name, flags=re.IGNORECASE)


def read_file(path: Path, name: Path | str) -> tuple[bytes, Stamp]:
    """The bytes of a file that may be a radiograph, and its stamp (`files.stamp`).

    Args:
      path: of the file.
      name: what messages call it.

    Raises:
      RadiographError: it is larger than any radiograph; nothing is read.
      OSError: it cannot be read.
    """
    stamped = stamp(path)
    if stamped[0] > MAX_BYTES:
        raise RadiographError(f"{name} has {stamped[0] >> 20} MiB; no radiograph has that. Export it again.")
    return path.read_bytes(), stamped


def check_size(rows: int, columns: int, name: Path | str) -> None:
    """Refuses a size that no radiograph has; RadiographError."""
    if min(rows, columns) < MIN_SIDE or rows * columns > MAX_PIXELS:
        message = f"{name} has {rows} x {columns} pixels by its header, which no radiograph has. Export it again."
        raise RadiographError(message, WRONG_SIZE)


def one_grey(name: Path | str) -> RadiographError:
    """The refusal of a picture that shows nothing."""
    return RadiographError(f"{name} is a single grey: its pixels all have the same value. Export it again.", ONE_GREY)


def is_spacing(numbers: Sequence[float]) -> bool:
    """Whether numbers can be a radiograph's row and column distance in mm: a pair within SPACING."""
    return len(numbers) == 2 and SPACING[0] <= min(numbers) and max(numbers) <= SPACING[1]


def header_fields(
    uid: str,
    patient_id: str,
    sex: str,
    age: str,
    view: str,
    pixel_spacing: list[float],
    derivation: str,
    modality: str,
    body_part: str,
    sop_class: str = "",
    orientation: Sequence[str] = (),
    intent: str = "",
    view_code: str = "",
    texts: Sequence[str] = (),
) -> dict[str, Any]:
    """The header's share of a `Radiograph`, from the elements' values ("" where there is none).

    Args:
      uid, patient_id, sex, age, view, pixel_spacing, derivation, modality, body_part, sop_class: of the element.
      orientation: the values of Patient Orientation.
      intent: Presentation Intent Type.
      view_code: as in `Radiograph`.
      texts: of the elements in NAMING.
    """
    directions = projection.main_directions(orientation)
    named = ((words, projection.of_text(text)) for words, text in zip(NAMING.values(), texts, strict=False))
    return {
        "uid": uid,
        "patient_id": patient_id.strip(),
        "sex": patients.sex(sex) or "",
        "age": _years(age),
        "view": patients.view(view),
        "pixel_spacing": tuple(pixel_spacing) if is_spacing(pixel_spacing) else None,
        "synthetic": derivation == SYNTHETIC,
        "modality": modality.strip().upper(),
        "body_part": body_part.strip().upper(),
        "sop_class": sop_class.strip(),
        "leads_to": directions[0] if re.fullmatch("[LR][FH]", directions) else "",
        "orientation": directions,
        "intent": intent.strip().upper(),
        "view_code": view_code,
        "named": tuple((words, kind) for words, kind in named if kind),
    }


def _years(age: str) -> int | None:
    """Whole years of an age string (DICOM PS3.5 AS: "034Y", "018M"); the challenge writes just "34"."""
    match = re.fullmatch(r"([0-9]{1,3})([YMWD]?)", age.strip())
    if match is None:
        return None
    years = int(match[1]) // {"Y": 1, "": 1, "M": 12, "W": 52, "D": 365}[match[2]]
    return years if years <= patients.MAX_AGE else None
