"""DICOM radiographs in and out: `parse` reads every kind that hospitals make, `write` makes the challenge's kind.

Reading gives every radiograph the same form, 8-bit grey with white bones, whatever its bit depth, photometric
interpretation, look-up tables and transfer syntax (DICOM PS3.3 C.7.6.3 and C.11). Writing makes JPEG Baseline
Secondary Capture files with the elements that the SIIM-ACR challenge's files have.

Nothing is decoded before two checks: the header describes one grey image of a sensible size, and the compressed data
have that size.
"""

import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pydicom.config
import simplejpeg
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.errors import InvalidDicomError
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from jaxpneumo.dicom import codestream, damage, display, fast_header, grey, picture, projection
from jaxpneumo.dicom.elements import Elements
from jaxpneumo.dicom.radiograph import (
    MAX_BYTES,
    NAMING,
    SPACING,
    SYNTHETIC,
    Radiograph,
    RadiographError,
    check_size,
    file_id,
    header_fields,
    is_spacing,
)
from jaxpneumo.dicom.stored import check_header, read_stored
from jaxpneumo.process.atomic import write_atomically
from jaxpneumo.process.errors import InputError
from jaxpneumo.process.runtime import quiet_libraries

MAX_META_BYTES = 1 << 16
PIXEL_DATA_TAG = b"\xe0\x7f\x10\x00"  # (7FE0,0010), little endian
IMPLEMENTATION_UID = "2.25.301846520934756201847365920174836520947"
_FIRST_GROUPS = (b"\x02\0", b"\x08\0")  # with which a data set without preamble begins (DICOM PS3.10 7.1)


def read(path: Path | str) -> Radiograph:
    """Reads a DICOM radiograph. Values and errors as in `parse`."""
    return parse(_read_bytes(path), path)


def read_image(path: Path | str) -> Radiograph:
    """Reads a radiograph from a DICOM, PNG or JPEG file. Values and errors as in `parse_image`."""
    return parse_image(_read_bytes(path), path)


def parse_image(data: bytes, name: Path | str) -> Radiograph:
    """Reads a radiograph from the bytes of a DICOM, PNG or JPEG file; as `parse` and `picture.parse_picture`."""
    if is_dicom(data):
        return parse(data, name)
    if picture.is_picture(data):
        return picture.parse_picture(data, name)
    raise RadiographError(f"{name} is not a DICOM, PNG or JPEG file. Give radiographs in one of these formats.")


def is_dicom(data: bytes) -> bool:
    """Whether a file has the mark of DICOM files, or begins as one without it."""
    return has_mark(data) or data[:2] in _FIRST_GROUPS


def has_mark(data: bytes) -> bool:
    """Whether a file has the mark of DICOM files at its place (DICOM PS3.10 7.1)."""
    return data[128:132] == b"DICM"


def read_header(data: bytes) -> FileDataset:
    """The elements before the pixels of a DICOM file that `parse` can read; errors as pydicom's."""
    return _read_dataset(data, stop_before_pixels=True)


def jpeg_frame(data: bytes) -> bytes:
    """The JPEG of a compressed DICOM file as it is, undecoded and unchecked; errors as pydicom's."""
    return get_frame(_dcmread(data).PixelData, 0, number_of_frames=1)


def as_data_set(data: bytes) -> FileDataset:
    """A DICOM file as pydicom has it, for libraries that send such; errors as pydicom's."""
    return _dcmread(data)


def as_file(data_set: Dataset) -> bytes:
    """A data set as a DICOM file, in its own transfer syntax; errors as pydicom's."""
    file = BytesIO()
    data_set.save_as(file, enforce_file_format=True)
    return file.getvalue()


def read_uid(data: bytes) -> str:
    """SOP instance UID of a DICOM file whose pixels may be beyond reading; "" where it cannot be found."""
    try:
        found = _dcmread(data, stop_before_pixels=True, specific_tags=["SOPInstanceUID"])
        return str(found.get("SOPInstanceUID") or "").strip()
    except Exception:  # damaged files make pydicom raise nearly anything
        return ""


def parse(data: bytes, name: Path | str) -> Radiograph:
    """Reads a DICOM radiograph from the bytes of its file.

    8-bit images without transformations keep their values. All others pass through the modality LUT (or rescale
    slope and intercept) and the VOI LUT or first window to 0..255 (`display.to_grey`). MONOCHROME1 is inverted,
    padding is black. Grey stored as RGB or with a palette is grey. Elements that make no sense and are not needed
    are ignored; `Radiograph.remarks` says so.

    Args:
      data: the whole file.
      name: what messages call it.

    Raises:
      RadiographError: not DICOM, truncated, without pixel data, several frames, colour, a single grey, an
        impossible size, or pixel data that cannot be decoded. The message holds nothing about the patient.
    """
    if len(data) > MAX_BYTES:
        raise RadiographError(
            f"{name} has {len(data) >> 20} MiB, more than any radiograph. Remove it or export it again."
        )
    if (radiograph := _parse_plain(data)) is not None:
        return radiograph
    try:
        _check_deflated(data, name)
        dataset = _read_dataset(data)
        elements = Elements(dataset)
        _check_pixel_data(dataset, data, name)
        check_header(elements, name)
        syntax = _transfer_syntax(dataset, elements, name)
        image = display.to_grey(elements, read_stored(elements, syntax, data, name), name)
        return Radiograph(image, **_fields(elements, name), remarks=tuple(elements.remarks))
    except InputError:
        raise
    except InvalidDicomError:
        raise RadiographError(f"{name} is not a DICOM file (no DICM mark at byte 128). Remove or convert it.") from None
    except Exception as error:
        # Damaged files make pydicom and its decoders raise nearly anything, with header values in the text.
        raise RadiographError(
            f"{name} cannot be decoded ({type(error).__name__}): truncated, damaged, or compressed in an "
            "unknown way. Copy it again, or export it uncompressed."
        ) from None


def write(
    path: Path | str,
    image: np.ndarray,
    uid: str,
    patient_id: str = "",
    sex: str = "",
    age: int | None = None,
    view: str = "",
    study_uid: str | None = None,
    series_uid: str | None = None,
    quality: int = 95,
    synthetic: bool = False,
) -> None:
    """Writes a radiograph as an 8-bit MONOCHROME2 JPEG Baseline Secondary Capture file, atomically.

    The same arguments give the same bytes. Pixel spacing is 0.139 mm, as in the challenge's files.

    Args:
      path: the file to write.
      image: (H, W) uint8.
      uid: SOP instance UID.
      patient_id: Patient ID and Patient's Name.
      sex: "F", "M", "O" or "" for unknown.
      age: in years, or None.
      view: "AP", "PA" or "" for unknown.
      study_uid, series_uid: derived from `uid` when None.
      quality: JPEG quality, 1 to 100.
      synthetic: notes in Derivation Description that no patient is shown; `read` finds it there.

    Raises:
      ValueError: the image is not (H, W) uint8.
    """
    if image.ndim != 2 or image.dtype != np.uint8:
        raise ValueError(f"a radiograph is (H, W) uint8, not {image.shape} {image.dtype}")
    jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.add_new("MediaStorageSOPInstanceUID", "UI", uid)
    meta.TransferSyntaxUID = JPEGBaseline8Bit
    meta.add_new("ImplementationClassUID", "UI", IMPLEMENTATION_UID)
    meta.ImplementationVersionName = "JAXPNEUMO"

    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = uid
    dataset.StudyDate = "19010101"
    dataset.StudyTime = "000000.00"
    dataset.AccessionNumber = ""
    dataset.Modality = "CR"
    dataset.ConversionType = "WSD"
    dataset.ReferringPhysicianName = ""
    dataset.SeriesDescription = f"view: {view}"
    if synthetic:
        dataset.DerivationDescription = SYNTHETIC
    dataset.PatientName = patient_id
    dataset.PatientID = patient_id
    dataset.PatientBirthDate = ""
    dataset.PatientSex = sex
    dataset.PatientAge = "" if age is None else f"{age:03d}Y"
    dataset.BodyPartExamined = "CHEST"
    dataset.ViewPosition = view
    dataset.StudyInstanceUID = study_uid or generate_uid(entropy_srcs=[uid, "study"])
    dataset.SeriesInstanceUID = series_uid or generate_uid(entropy_srcs=[uid, "series"])
    dataset.StudyID = ""
    dataset.SeriesNumber = 1
    dataset.InstanceNumber = 1
    dataset.PatientOrientation = ""
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = image.shape
    dataset.PixelSpacing = [0.139, 0.139]
    dataset.BitsAllocated = 8
    dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelRepresentation = 0
    dataset.LossyImageCompression = "01"
    dataset.LossyImageCompressionRatio = f"{image.size / len(jpeg):.3f}"
    dataset.LossyImageCompressionMethod = "ISO_10918_1"
    dataset.PixelData = encapsulate([jpeg])
    dataset["PixelData"].VR = "OB"
    with write_atomically(path, "wb") as file:
        dataset.save_as(file, enforce_file_format=True)


def _read_bytes(path: Path | str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise RadiographError(f"{path} cannot be read: {error.strerror}.") from error


def _parse_plain(data: bytes) -> Radiograph | None:
    """The same as `parse`, faster, for an undamaged file of the most common kind; None for all others."""
    found = fast_header.plain(data)
    if found is None or not codestream.jpeg_has_end(found.frame) or damage.has_second_frame(found.frame):
        return None
    if codestream.describe(found.frame) != codestream.Codestream("JPEG", found.rows, found.columns, 1, 8):
        return None
    try:
        check_size(found.rows, found.columns, "")
        image = simplejpeg.decode_jpeg(found.frame, "GRAY")[..., 0]
    except ValueError:  # the long way finds the words
        return None
    return None if grey.image_is_one(image) else Radiograph(image, **found.fields)


def _dcmread(data: bytes, **options: Any) -> FileDataset:
    """pydicom's `dcmread`, without its warnings: they quote the offending values, which may be a patient's."""
    quiet_libraries()
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    return pydicom.dcmread(BytesIO(data), **options)


def _read_dataset(data: bytes, **options: Any) -> FileDataset:
    """The data set, also of a file without preamble; InvalidDicomError where it is none."""
    if has_mark(data):
        return _dcmread(data, **options)
    if data[:2] not in _FIRST_GROUPS:
        raise InvalidDicomError
    dataset = _dcmread(data, force=True, **options)
    if "SOPClassUID" not in dataset and "Modality" not in dataset:
        raise InvalidDicomError
    return dataset


def _transfer_syntax(dataset: FileDataset, elements: Elements, name: Path | str) -> UID:
    """The file's transfer syntax, found out for uncompressed pixels where it does not say it (DICOM PS3.10 7.1)."""
    syntax = getattr(dataset, "file_meta", {}).get("TransferSyntaxUID")
    if syntax:
        return UID(syntax)
    if dataset["PixelData"].is_undefined_length:
        raise RadiographError(
            f"{name} has no Transfer Syntax UID (0002,0010), and its pixels are compressed. Export it again."
        )
    implicit, little = dataset.original_encoding
    syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    dataset.file_meta = getattr(dataset, "file_meta", FileMetaDataset())
    dataset.file_meta.TransferSyntaxUID = syntax
    elements.remark(f"Transfer Syntax UID is missing; it is read as {syntax.name}")
    return syntax


def _check_deflated(data: bytes, name: Path | str) -> None:
    """Refuses a deflated file that unfolds to more than a radiograph; pydicom would fill the memory with it."""
    if DeflatedExplicitVRLittleEndian.encode() not in data[:MAX_META_BYTES]:
        return
    # The file meta information begins with its own length (DICOM PS3.10, 7.1).
    start = 144 + int.from_bytes(data[140:144], "little")
    unfold = zlib.decompressobj(-zlib.MAX_WBITS)
    unfold.decompress(data[start:], MAX_BYTES)
    if unfold.unconsumed_tail:
        raise RadiographError(
            f"{name} unpacks to more than {MAX_BYTES >> 20} MiB, more than any radiograph. Remove it."
        )


def _check_pixel_data(dataset: Dataset, data: bytes, name: Path | str) -> None:
    """Refuses a file that ends too early, or has no pixel data."""
    last = dataset.get_item(max(dataset.keys())) if len(dataset) else None
    value, length = getattr(last, "value", None), getattr(last, "length", 0)
    if value is not None and 0 < length < 0xFFFFFFFF and len(value) < length:
        raise RadiographError(f"{name} is truncated. Copy or download it again.")
    element = dataset.get((0x7FE0, 0x0010))
    # pydicom drops an encapsulated element whose end is missing; its tag is still in the file.
    if element is None and PIXEL_DATA_TAG not in data:
        raise RadiographError(f"{name} has no pixel data: cut short, or not an image. Copy it again or remove it.")
    if element is None:
        raise RadiographError(f"{name} is truncated: its pixel data end too early. Copy or download it again.")


def _fields(elements: Elements, name: Path | str) -> dict[str, Any]:
    """The header's share of a radiograph."""
    orientation = elements.texts("PatientOrientation")
    meaning, value = _view_code(elements)
    fields = header_fields(
        uid=elements.text("SOPInstanceUID") or file_id(name),
        patient_id=elements.text("PatientID"),
        sex=elements.text("PatientSex"),
        age=elements.text("PatientAge"),
        view=elements.text("ViewPosition") or meaning or projection.view_of_code(value),
        pixel_spacing=_spacing(elements),
        derivation=elements.text("DerivationDescription"),
        modality=elements.text("Modality"),
        body_part=elements.text("BodyPartExamined"),
        sop_class=elements.text("SOPClassUID"),
        orientation=orientation,
        intent=elements.text("PresentationIntentType"),
        view_code=projection.of_code(value, meaning),
        texts=[elements.text(keyword) for keyword in NAMING],
    )
    if any(orientation) and not fields["orientation"]:
        elements.remark("Patient Orientation is not a pair of directions such as L and F; it is ignored")
    elif projection.UNKNOWN in fields["orientation"]:
        elements.remark("Patient Orientation has one direction instead of two; it does not say the side")
    return fields


def _view_code(elements: Elements) -> tuple[str, str]:
    """Meaning and value of the view's code, which some files have instead of View Position; "" for none."""
    code = next(iter(elements.items("ViewCodeSequence")), None)
    return ("", "") if code is None else (code.text("CodeMeaning"), code.text("CodeValue"))


def _spacing(elements: Elements) -> list[float]:
    """Row and column distance in mm; empty where they are unknown."""
    for keyword, words in (("PixelSpacing", "Pixel Spacing"), ("ImagerPixelSpacing", "Imager Pixel Spacing")):
        spacing = elements.numbers(keyword)
        if is_spacing(spacing):
            return spacing
        if spacing:
            elements.remark(f"{words} is not a pair of numbers from {SPACING[0]:g} to {SPACING[1]:g}; it is ignored")
    return []
