"""What a DICOM result takes over from its radiograph: patient, study, and references to the image.

A result belongs to the patient and the study of its radiograph. So what identifies them is taken over byte for byte,
with its character set, also where it breaks a rule of the standard; nothing else ever reads it. All other values are
taken over only if they keep to the rules. Private elements and pixels are left behind.
"""

import hashlib
import re
from dataclasses import dataclass

import pydicom.config
from pydicom.datadict import dictionary_description, dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import SecondaryCaptureImageStorage
from pydicom.valuerep import DA, TM, validate_value

from jaxpneumo.dicom import dicom
from jaxpneumo.dicom.elements import Elements
from jaxpneumo.dicom.radiograph import SYNTHETIC, is_spacing
from jaxpneumo.process.errors import InputError

UIDS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
# Byte for byte; a result has the first ones empty where the radiograph has none.
IDENTITY = ("PatientName", "PatientID", "AccessionNumber", "StudyID", "ReferringPhysicianName")
ALSO = ("SpecificCharacterSet", "IssuerOfPatientID", "StudyDescription", "DeidentificationMethod")
# What must keep to the rules; again, a result has the first ones empty where the radiograph has none.
REQUIRED = ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime")
OPTIONAL = ("PatientAge", "PatientIdentityRemoved", "BodyPartExamined", "Laterality")
CODES = {"PatientSex": ("F", "M", "O"), "PatientIdentityRemoved": ("YES", "NO"), "Laterality": ("L", "R")}
# Dates of the radiograph; the first that is known is also the result's.
DATES = ("Content", "Acquisition", "Series", "Study")
POINTS = {"DA": DA, "TM": TM}  # of time: a range of them is none, and a 30 February neither
NO_DATE, MIDNIGHT = "19000101", "000000"


class NoResultError(InputError):
    """There can be no DICOM results of a radiograph, or none of one kind; the message says why, of "it" and "they"."""


@dataclass(frozen=True)
class Origin:
    """What results take over from their radiograph.

    Attributes:
      dataset: study, series and image, without `identity`. It is a Secondary Capture whatever the radiograph is, as
        these need nothing else: so results of all kinds of radiographs are made in one way.
      identity: the elements that are taken over byte for byte.
      sop_class: SOP Class UID of the radiograph.
      date, time: of the radiograph's content; NO_DATE and MIDNIGHT where it does not say it.
      pixel_spacing: row and column distance in mm by Pixel Spacing (0028,0030), or None. Imager Pixel Spacing does not
        count: lengths on the detector are larger than in the patient.
      header: the whole header, for what only one kind of result needs.
      synthetic: the radiograph says that it shows no patient.
    """

    dataset: Dataset
    identity: tuple[RawDataElement, ...]
    sop_class: str
    date: str
    time: str
    pixel_spacing: tuple[float, float] | None
    header: Dataset
    synthetic: bool

    @property
    def uid(self) -> str:
        """SOP Instance UID of the radiograph."""
        return str(self.dataset.SOPInstanceUID)

    @property
    def owner(self) -> str:
        """A digest of the study's UID and of what identifies the patient: others, where an archive corrects them."""
        elements = (f"{element.tag} {element.value!r}" for element in self.identity)
        return hashlib.sha256("\n".join([str(self.dataset.StudyInstanceUID), *elements]).encode()).hexdigest()


def read_origin(data: bytes, shape: tuple[int, ...]) -> Origin:
    """Reads from a radiograph's header what results take over.

    Args:
      data: the whole file, a radiograph that `dicom.parse_image` can read.
      shape: (H, W) of the mask that was found in it.

    Raises:
      NoResultError: the file is not DICOM, or it lacks a UID that results refer to.
      InputError: its image has another size.
    """
    if not dicom.is_dicom(data):
        raise NoResultError("it is not a DICOM file, so it does not say to whom they would belong.")
    header = dicom.read_header(data)
    identity = tuple(filter(None, (_raw(header, keyword) for keyword in (*IDENTITY, *ALSO))))
    elements = Elements(header)
    if (size := (elements.whole("Rows"), elements.whole("Columns"))) != shape:
        raise InputError(f"the radiograph has {size[0]} x {size[1]} pixels and its mask {shape[0]} x {shape[1]}.")
    uids = {keyword: elements.text(keyword) for keyword in UIDS}
    for keyword, uid in uids.items():
        if not re.fullmatch(r"[0-9.]{1,64}", uid):
            raise NoResultError(f"it has no usable {dictionary_description(keyword)}, which they must refer to.")
    dataset = Dataset()
    for keyword in (*IDENTITY, *REQUIRED):
        setattr(dataset, keyword, "")
    for keyword in (*REQUIRED, *OPTIONAL):
        if (text := elements.text(keyword)) and is_valid(keyword, text):
            setattr(dataset, keyword, text)
    for keyword, uid in {**uids, "SOPClassUID": SecondaryCaptureImageStorage}.items():
        setattr(dataset, keyword, uid)
    dataset.PatientOrientation = _orientation(header)
    dataset.Rows, dataset.Columns = shape
    dataset.Modality, dataset.SamplesPerPixel, dataset.PhotometricInterpretation = "OT", 1, "MONOCHROME2"
    date, time = _when(elements)
    spacing = elements.numbers("PixelSpacing")
    return Origin(
        dataset=dataset,
        identity=identity,
        sop_class=uids["SOPClassUID"],
        date=date,
        time=time,
        pixel_spacing=(spacing[0], spacing[1]) if is_spacing(spacing) else None,
        header=header,
        synthetic=elements.text("DerivationDescription") == SYNTHETIC,
    )


def is_valid(keyword: str, text: str) -> bool:
    """Whether a text is a single value that keeps to the rules of an element."""
    vr = dictionary_VR(keyword)
    try:
        validate_value(vr, text, pydicom.config.RAISE)
        if vr in POINTS:
            POINTS[vr](text)
    except ValueError:
        return False
    if vr in POINTS and "-" in text:
        return False
    return "\\" not in text and text in CODES.get(keyword, (text,))


def _raw(header: Dataset, keyword: str) -> RawDataElement | None:
    """An element's bytes with the VR that the standard gives it; None where it is absent or has no bytes."""
    tag = Tag(tag_for_keyword(keyword) or 0)
    value = getattr(header.get_item(tag), "value", None) if tag in header else None
    if keyword == "SpecificCharacterSet" and value:  # pydicom has decoded it, to read the others
        value = "\\".join([value] if isinstance(value, str) else value).encode("ascii", "replace")
    if not isinstance(value, bytes):
        return None
    value += b" " * (len(value) % 2)
    return RawDataElement(tag, dictionary_VR(tag), len(value), value, 0, False, True)


def _orientation(header: Dataset) -> list[str]:
    """Patient Orientation, the directions of rows and columns such as L and F; empty where it is unknown."""
    try:
        value = header.get("PatientOrientation")
        values = [] if value is None or isinstance(value, str) else [str(each) for each in value]
    except Exception:  # pydicom raises nearly anything for what an element must not hold
        return []
    return values if len(values) == 2 and all(re.fullmatch("[AFHLPR]{1,3}", each) for each in values) else []


def _when(elements: Elements) -> tuple[str, str]:
    for what in DATES:
        date, time = elements.text(f"{what}Date"), elements.text(f"{what}Time")
        if date and is_valid("ContentDate", date):
            return date, time if time and is_valid("ContentTime", time) else MIDNIGHT
    return NO_DATE, MIDNIGHT
