"""DICOM radiographs in and out: the only module that knows pydicom.

Reading gives every radiograph the same form, 8-bit grey with white bones, whatever its bit depth, photometric
interpretation, look-up tables and transfer syntax (DICOM PS3.3 C.7.6.3 and C.11). Writing makes JPEG Baseline
Secondary Capture files with the elements that the SIIM-ACR challenge's files have.
"""

import logging
import re
import warnings
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pydicom.config
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_modality_lut, apply_voi
from pydicom.uid import JPEGBaseline8Bit, SecondaryCaptureImageStorage, generate_uid

from jaxpneumo.errors import InputError
from jaxpneumo.files import write_atomically

MAX_PIXELS = 64 * 2**20  # the largest detectors give 20 megapixels; more is a broken header, not a radiograph
SYNTHETIC = "synthetic radiograph, not a patient"
PIXEL_DATA_TAG = b"\xe0\x7f\x10\x00"  # (7FE0,0010), little endian
SEQUENCE_END = b"\xfe\xff\xdd\xe0\0\0\0\0"  # closes encapsulated pixel data (DICOM PS3.5 A.4)
IMPLEMENTATION_UID = "2.25.301846520934756201847365920174836520947"

# pydicom's warnings quote the offending values, and those may be a patient's.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
warnings.filterwarnings("ignore", module="pydicom")
logging.getLogger("pydicom").setLevel(logging.CRITICAL)


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
      synthetic: the file was made by `write(..., synthetic=True)`.
    """

    image: np.ndarray
    uid: str
    patient_id: str = ""
    sex: str = ""
    age: int | None = None
    view: str = ""
    pixel_spacing: tuple[float, float] | None = None
    synthetic: bool = False


def file_id(path: Path | str) -> str:
    """A file's name without the ending of an image format; the numbers of a bare UID are no ending."""
    return re.sub(r"\.(dcm|dicom|png|jpe?g)$", "", Path(path).name, flags=re.IGNORECASE)


def read(path: Path | str) -> Radiograph:
    """Reads a DICOM radiograph. Values and errors as in `parse`."""
    return parse(_read_bytes(path), path)


def read_image(path: Path | str) -> Radiograph:
    """Reads a radiograph from DICOM, or from a grey PNG or JPEG picture (uid = its file name).

    Pictures of 16 bits are stretched from their smallest to their largest value. Errors as in `parse`.
    """
    path = Path(path)
    data = _read_bytes(path)
    if data[128:132] == b"DICM":
        return parse(data, path)
    if not data.startswith((b"\x89PNG", b"\xff\xd8")):
        raise InputError(f"{path} is not a DICOM, PNG or JPEG file. Give radiographs in one of these formats.")
    ended = b"IEND" in data[-32:] if data.startswith(b"\x89PNG") else _jpeg_has_end(data)
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if ended else None
    if pixels is None:
        raise InputError(f"{path} is truncated or damaged. Copy or export it again.")
    if pixels.ndim == 3:
        channels = pixels[..., :3]
        if (channels != channels[..., :1]).any():
            raise InputError(f"{path} is a colour picture. Give the radiograph in grey.")
        pixels = channels[..., 0]
    image = pixels if pixels.dtype == np.uint8 else _stretch(pixels, np.ones(pixels.shape, bool))
    return Radiograph(image=np.ascontiguousarray(image), uid=file_id(path))


def parse(data: bytes, name: Path | str) -> Radiograph:
    """Reads a DICOM radiograph from the bytes of its file.

    8-bit MONOCHROME2 images without look-up tables keep their values. All others pass through the modality
    LUT (or rescale slope and intercept) and the VOI LUT or first window (DICOM PS3.3 C.11.1, C.11.2) to
    0..255; without a VOI transformation their smallest and largest values, padding apart, become 0 and 255.
    MONOCHROME1 is inverted.

    Args:
      data: the whole file.
      name: what messages call it.

    Raises:
      InputError: not DICOM, truncated, without pixel data, several frames, colour, an impossible size, or
        pixel data that cannot be decoded. The message holds nothing about the patient.
    """
    try:
        dataset = pydicom.dcmread(BytesIO(data))
        _check_header(dataset, data, name)
        pixels = _decode(dataset, name)
        image = _to_grey(dataset, pixels)
        if dataset.PhotometricInterpretation == "MONOCHROME1":
            image = 255 - image
        return _radiograph(dataset, image, name)
    except InputError:
        raise
    except InvalidDicomError:
        raise InputError(f"{name} is not a DICOM file (no DICM mark at byte 128). Remove or convert it.") from None
    except Exception as error:
        # Damaged files make pydicom and its decoders raise nearly anything, with header values in the text.
        raise InputError(
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
    meta.MediaStorageSOPInstanceUID = uid
    meta.TransferSyntaxUID = JPEGBaseline8Bit
    meta.ImplementationClassUID = IMPLEMENTATION_UID
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
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error


def _check_header(dataset: Dataset, data: bytes, name: Path | str) -> None:
    """Refuses what is not one grey image of a sensible size, before anything is decoded."""
    last = dataset.get_item(max(dataset.keys())) if len(dataset) else None
    cut = last is not None and last.value is not None and 0 < getattr(last, "length", 0) < 0xFFFFFFFF
    if cut and len(last.value) < last.length:
        raise InputError(f"{name} is truncated. Copy or download it again.")
    element = dataset.get((0x7FE0, 0x0010))
    # pydicom drops an encapsulated element whose end is missing; its tag is still in the file.
    if element is None and PIXEL_DATA_TAG not in data:
        raise InputError(f"{name} has no pixel data: cut short, or not an image. Copy it again or remove it.")
    if element is None or (element.is_undefined_length and data.rfind(SEQUENCE_END) < element.file_tell):
        raise InputError(f"{name} is truncated: its pixel data end too early. Copy or download it again.")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise InputError(f"{name} has {frames} frames. Give one radiograph a file.")
    photometric = dataset.get("PhotometricInterpretation", "")
    if dataset.get("SamplesPerPixel", 1) != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise InputError(f"{name} is a colour image ({photometric}). Give grey radiographs.")
    rows, columns = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
    if min(rows, columns) < 16 or rows * columns > MAX_PIXELS:
        raise InputError(f"{name} claims {rows} x {columns} pixels; no radiograph has that. Export it again.")
    if dataset.get("BitsAllocated") not in (8, 16):
        raise InputError(f"{name} has {dataset.get('BitsAllocated')} bits a pixel; 8 and 16 can be read.")


def _jpeg_has_end(jpeg: bytes) -> bool:
    """Without the end-of-image marker libjpeg fills the missing part with grey and says nothing."""
    return jpeg[-64:].rstrip(b"\0").endswith(b"\xff\xd9")


def _decode(dataset: Dataset, name: Path | str) -> np.ndarray:
    """Stored values (H, W)."""
    if dataset.file_meta.TransferSyntaxUID != JPEGBaseline8Bit or dataset.BitsAllocated != 8:
        return dataset.pixel_array
    # The same values as pydicom with Pillow in half the time; pylibjpeg's differ by one at most.
    jpeg = get_frame(dataset.PixelData, 0, number_of_frames=1)
    if not _jpeg_has_end(jpeg):
        raise InputError(f"{name} is truncated: its JPEG has no end. Copy or download it again.")
    pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.shape != (dataset.Rows, dataset.Columns):
        raise InputError(f"{name} holds a JPEG that is damaged or of another size. Export it again.")
    return pixels


def _to_grey(dataset: Dataset, pixels: np.ndarray) -> np.ndarray:
    """Stored values to 0..255 by the header's transformations; uint8."""
    rescale = _first(dataset.get("RescaleSlope")), _first(dataset.get("RescaleIntercept"))
    modality = "ModalityLUTSequence" in dataset or rescale not in ((None, None), (1, 0))
    values = apply_modality_lut(pixels, dataset) if modality else pixels
    if dataset.get("VOILUTSequence"):
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        looked_up = apply_voi(np.rint(values).astype(np.int32), dataset)
        return _to_uint8(looked_up / (2**bits - 1) * 255)
    width = _first(dataset.get("WindowWidth"))
    if width is not None and width >= 1 and _first(dataset.get("WindowCenter")) is not None:
        function = dataset.get("VOILUTFunction") or "LINEAR"
        return _window(values, _first(dataset.WindowCenter), width, function)
    if not modality and pixels.dtype == np.uint8 and dataset.BitsStored == 8:
        return pixels
    padding = _padding(dataset, pixels)
    image = _stretch(values, ~padding)
    image[padding] = 255 if dataset.PhotometricInterpretation == "MONOCHROME1" else 0
    return image


def _window(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    """The window of DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3, to 0..255."""
    values = values.astype(np.float32)
    if function == "SIGMOID":
        return _to_uint8(255 / (1 + np.exp(-4 * (values - center) / width)))
    if function == "LINEAR_EXACT":
        return _to_uint8(((values - center) / width + 0.5) * 255)
    return _to_uint8(((values - (center - 0.5)) / max(width - 1, 1e-6) + 0.5) * 255)


def _padding(dataset: Dataset, pixels: np.ndarray) -> np.ndarray:
    """True where a pixel lies outside the exposed field (DICOM PS3.3 C.7.5.1.1.2)."""
    if dataset.get("PixelPaddingValue") is None:
        return np.zeros(pixels.shape, bool)
    start = int(dataset.PixelPaddingValue)
    end = int(dataset.get("PixelPaddingRangeLimit", start))
    return (pixels >= min(start, end)) & (pixels <= max(start, end))


def _stretch(values: np.ndarray, use: np.ndarray) -> np.ndarray:
    """The smallest and largest of the used values become 0 and 255; a constant image becomes 0."""
    if not use.any():
        return np.zeros(values.shape, np.uint8)
    low, high = float(values[use].min()), float(values[use].max())
    return _to_uint8((values.astype(np.float32) - low) * (255 / max(high - low, 1e-6)))


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(values, 0, 255)).astype(np.uint8)


def _first(value) -> float | None:
    """The first of a possibly multi-valued number, None when there is none."""
    values = value if isinstance(value, (list, pydicom.multival.MultiValue)) else [value]
    return None if not values or values[0] in (None, "") else float(values[0])


def _radiograph(dataset: Dataset, image: np.ndarray, name: Path | str) -> Radiograph:
    sex = str(dataset.get("PatientSex") or "").strip().upper()
    spacing = dataset.get("PixelSpacing") or dataset.get("ImagerPixelSpacing") or ()
    spacing = [float(value) for value in spacing]
    return Radiograph(
        image=image,
        uid=str(dataset.get("SOPInstanceUID") or file_id(name)),
        patient_id=str(dataset.get("PatientID") or "").strip(),
        sex=sex if sex in ("F", "M", "O") else "",
        age=_years(str(dataset.get("PatientAge") or "")),
        view=str(dataset.get("ViewPosition") or "").strip().upper(),
        pixel_spacing=(spacing[0], spacing[1]) if len(spacing) == 2 and min(spacing) > 0 else None,
        synthetic=dataset.get("DerivationDescription") == SYNTHETIC,
    )


def _years(age: str) -> int | None:
    """Whole years of an age string (DICOM PS3.5 AS: "034Y", "018M"); the challenge writes just "34"."""
    match = re.fullmatch(r"(\d{1,3})([YMWD]?)", age.strip())
    if match is None:
        return None
    return int(match[1]) // {"Y": 1, "": 1, "M": 12, "W": 52, "D": 365}[match[2]]
