"""DICOM radiographs in and out: the only module that knows pydicom.

Reading gives every radiograph the same form, 8-bit grey with white bones, whatever its bit depth, photometric
interpretation, look-up tables and transfer syntax (DICOM PS3.3 C.7.6.3 and C.11). Writing makes JPEG Baseline
Secondary Capture files with the elements that the SIIM-ACR challenge's files have.

JPEG Baseline goes through simplejpeg, JPEG Extended and Lossless through imagecodecs, everything else through
pydicom. simplejpeg gives the very values that pydicom gives with its plugin "pillow", as both wrap libjpeg-turbo
and its accurate integer transform, in half the time, and it refuses damaged data that Pillow and OpenCV fill
with grey. pydicom's plugin "pylibjpeg" rounds otherwise: its values differ by 1 at most.

Nothing is decoded before the header has said that it is one grey image of a sensible size, and the compressed
data that they are of that very size.
"""

import logging
import warnings
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pydicom
import pydicom.config
import simplejpeg
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_modality_lut, apply_voi
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from jaxpneumo.data import codestream, grey, header
from jaxpneumo.data.radiograph import (
    COLOUR,
    MAX_PIXELS,
    SEVERAL_FRAMES,
    SYNTHETIC,
    Radiograph,
    RadiographError,
    check_size,
    file_id,
    header_fields,
)
from jaxpneumo.errors import InputError
from jaxpneumo.files import write_atomically

MAX_BYTES = 4 * MAX_PIXELS  # of a file, and of what a deflated one unfolds to
MAX_META_BYTES = 1 << 16
PIXEL_DATA_TAG = b"\xe0\x7f\x10\x00"  # (7FE0,0010), little endian
SEQUENCE_END = b"\xfe\xff\xdd\xe0\0\0\0\0"  # closes encapsulated pixel data (DICOM PS3.5 A.4)
IMPLEMENTATION_UID = "2.25.301846520934756201847365920174836520947"

# pydicom's warnings quote the offending values, and those may be a patient's.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
warnings.filterwarnings("ignore", module="pydicom")
logging.getLogger("pydicom").setLevel(logging.CRITICAL)


def read(path: Path | str) -> Radiograph:
    """Reads a DICOM radiograph. Values and errors as in `parse`."""
    return parse(_read_bytes(path), path)


def read_image(path: Path | str) -> Radiograph:
    """Reads a radiograph from a DICOM, PNG or JPEG file. Values and errors as in `parse_image`."""
    return parse_image(_read_bytes(path), path)


def parse_image(data: bytes, name: Path | str) -> Radiograph:
    """Reads a radiograph from the bytes of a DICOM file, or of a grey PNG or JPEG picture.

    A picture's uid is its file name without ending; one of 16 bits is stretched from its smallest to its
    largest value. Arguments and errors as in `parse`.
    """
    if data[128:132] == b"DICM":
        return parse(data, name)
    if not data.startswith((codestream.PNG_SIGNATURE, b"\xff\xd8")):
        raise RadiographError(f"{name} is not a DICOM, PNG or JPEG file. Give radiographs in one of these formats.")
    shape = codestream.shape(data)
    if shape is None:
        raise RadiographError(f"{name} is truncated or damaged. Copy or export it again.")
    check_size(*shape[:2], name)
    try:
        pixels = _decode_picture(data, shape)
    except (ValueError, cv2.error):
        pixels = None
    if pixels is None:
        raise RadiographError(f"{name} is truncated or damaged. Copy or export it again.")
    if pixels.ndim == 3:
        channels = pixels[..., :3]
        if (channels != channels[..., :1]).any():
            raise RadiographError(f"{name} is a colour picture. Give the radiograph in grey.", COLOUR)
        pixels = channels[..., 0]
    image = pixels if pixels.dtype == np.uint8 else grey.stretch(pixels, np.ones(pixels.shape, bool))
    return Radiograph(image=np.ascontiguousarray(image), uid=file_id(name))


def jpeg_frame(data: bytes) -> bytes:
    """The JPEG of a compressed DICOM file as it is, undecoded and unchecked; errors as pydicom's."""
    return get_frame(pydicom.dcmread(BytesIO(data)).PixelData, 0, number_of_frames=1)


def read_uid(data: bytes) -> str:
    """SOP instance UID of a DICOM file whose pixels may be beyond reading; "" where it cannot be found."""
    try:
        header = pydicom.dcmread(BytesIO(data), stop_before_pixels=True, specific_tags=["SOPInstanceUID"])
        return str(header.get("SOPInstanceUID") or "").strip()
    except Exception:  # damaged files make pydicom raise nearly anything
        return ""


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
      RadiographError: not DICOM, truncated, without pixel data, several frames, colour, an impossible size, or
        pixel data that cannot be decoded. The message holds nothing about the patient.
    """
    if len(data) > MAX_BYTES:
        raise RadiographError(
            f"{name} has {len(data) >> 20} MiB; no radiograph has that. Remove it or export it again."
        )
    if (radiograph := _parse_plain(data)) is not None:
        return radiograph
    try:
        _check_deflated(data, name)
        dataset = pydicom.dcmread(BytesIO(data))
        _check_header(dataset, data, name)
        pixels = _decode(dataset, name)
        image = _to_grey(dataset, pixels)
        if dataset.PhotometricInterpretation == "MONOCHROME1":
            image = 255 - image
        return Radiograph(image, **_fields(dataset, name))
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
        raise RadiographError(f"{path} cannot be read: {error.strerror}.") from error


def _parse_plain(data: bytes) -> Radiograph | None:
    """What `parse` gives for a sound file of the commonest kind, in less time; None for all others."""
    found = header.plain(data)
    if found is None or codestream.shape(found.frame) != (found.rows, found.columns, 1) or not _has_end(found.frame):
        return None
    try:
        check_size(found.rows, found.columns, "")
        return Radiograph(simplejpeg.decode_jpeg(found.frame, "GRAY")[..., 0], **found.fields)
    except ValueError:  # the long way finds the words
        return None


def _has_end(jpeg: bytes) -> bool:
    return jpeg[-64:].rstrip(b"\0").endswith(b"\xff\xd9")


def _check_deflated(data: bytes, name: Path | str) -> None:
    """Refuses a deflated file that unfolds to more than a radiograph; pydicom would fill the memory with it."""
    if DeflatedExplicitVRLittleEndian.encode() not in data[:MAX_META_BYTES]:
        return
    # The file meta information begins with its own length (DICOM PS3.10, 7.1).
    start = 144 + int.from_bytes(data[140:144], "little")
    unfold = zlib.decompressobj(-zlib.MAX_WBITS)
    unfold.decompress(data[start:], MAX_BYTES)
    if unfold.unconsumed_tail:
        raise RadiographError(f"{name} unfolds to more than {MAX_BYTES >> 20} MiB; no radiograph has that. Remove it.")


def _check_header(dataset: Dataset, data: bytes, name: Path | str) -> None:
    """Refuses what is not one grey image of a sensible size, before anything is decoded."""
    last = dataset.get_item(max(dataset.keys())) if len(dataset) else None
    cut = last is not None and last.value is not None and 0 < getattr(last, "length", 0) < 0xFFFFFFFF
    if cut and len(last.value) < last.length:
        raise RadiographError(f"{name} is truncated. Copy or download it again.")
    element = dataset.get((0x7FE0, 0x0010))
    # pydicom drops an encapsulated element whose end is missing; its tag is still in the file.
    if element is None and PIXEL_DATA_TAG not in data:
        raise RadiographError(f"{name} has no pixel data: cut short, or not an image. Copy it again or remove it.")
    if element is None or (element.is_undefined_length and data.rfind(SEQUENCE_END) < element.file_tell):
        raise RadiographError(f"{name} is truncated: its pixel data end too early. Copy or download it again.")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise RadiographError(f"{name} has {frames} frames. Give one radiograph a file.", SEVERAL_FRAMES)
    photometric = dataset.get("PhotometricInterpretation", "")
    if dataset.get("SamplesPerPixel", 1) != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise RadiographError(f"{name} is a colour image ({str(photometric)[:16]}). Give grey radiographs.", COLOUR)
    check_size(int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0), name)
    if dataset.get("BitsAllocated") not in (8, 16):
        raise RadiographError(f"{name} has {dataset.get('BitsAllocated')} bits a pixel; 8 and 16 can be read.")


def _decode_picture(data: bytes, shape: tuple[int, int, int]) -> np.ndarray | None:
    """Pixels (H, W) or (H, W, C) of a PNG or JPEG file; None when it is damaged."""
    if data.startswith(b"\xff\xd8"):
        return simplejpeg.decode_jpeg(data, "GRAY")[..., 0] if shape[2] == 1 else simplejpeg.decode_jpeg(data)
    whole = codestream.png_is_whole(data)
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if whole else None


def _decode(dataset: Dataset, name: Path | str) -> np.ndarray:
    """Stored values (H, W)."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_compressed and syntax != DeflatedExplicitVRLittleEndian:
        frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
        shape = codestream.shape(frame)
        if shape != (dataset.Rows, dataset.Columns, 1) and syntax != RLELossless:
            raise RadiographError(
                f"{name} holds compressed pixels of another size than its header's {dataset.Rows} x {dataset.Columns}, "
                "or damaged ones. Export it again."
            )
        if syntax == JPEGBaseline8Bit and dataset.BitsAllocated == 8:
            # As an end that is missing is by far the most frequent damage, it has its own words.
            if not _has_end(frame):
                raise RadiographError(f"{name} is truncated: its JPEG has no end. Copy or download it again.")
            return _with_sign(simplejpeg.decode_jpeg(frame, "GRAY")[..., 0], dataset)
        if syntax in (JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1):
            # pydicom reads all of these with a plugin under the GPL alone.
            return _with_sign(imagecodecs.jpeg8_decode(frame), dataset)
    return dataset.pixel_array


def _with_sign(pixels: np.ndarray, dataset: Dataset) -> np.ndarray:
    """JPEG codes signed values by their low bits: spreads the sign over the bits above."""
    if not dataset.PixelRepresentation:
        return pixels
    unused = 8 * pixels.itemsize - dataset.BitsStored
    return (pixels << unused).view(f"i{pixels.itemsize}") >> unused


def _to_grey(dataset: Dataset, pixels: np.ndarray) -> np.ndarray:
    """Stored values to 0..255 by the header's transformations; uint8."""
    rescale = _first(dataset.get("RescaleSlope")), _first(dataset.get("RescaleIntercept"))
    modality = "ModalityLUTSequence" in dataset or rescale not in ((None, None), (1, 0))
    values = apply_modality_lut(pixels, dataset) if modality else pixels
    if dataset.get("VOILUTSequence"):
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        looked_up = apply_voi(np.rint(values).astype(np.int32), dataset)
        return grey.to_uint8(looked_up / (2**bits - 1) * 255)
    width = _first(dataset.get("WindowWidth"))
    if width is not None and width >= 1 and _first(dataset.get("WindowCenter")) is not None:
        function = dataset.get("VOILUTFunction") or "LINEAR"
        return grey.window(values, _first(dataset.WindowCenter), width, function)
    if not modality and pixels.dtype == np.uint8 and dataset.BitsStored == 8:
        return pixels
    padding = _padding(dataset, pixels)
    image = grey.stretch(values, ~padding)
    image[padding] = 255 if dataset.PhotometricInterpretation == "MONOCHROME1" else 0
    return image


def _padding(dataset: Dataset, pixels: np.ndarray) -> np.ndarray:
    """True where a pixel lies outside the exposed field (DICOM PS3.3 C.7.5.1.1.2)."""
    if dataset.get("PixelPaddingValue") is None:
        return np.zeros(pixels.shape, bool)
    start = int(dataset.PixelPaddingValue)
    end = int(dataset.get("PixelPaddingRangeLimit", start))
    return (pixels >= min(start, end)) & (pixels <= max(start, end))


def _first(value) -> float | None:
    """The first of a possibly multi-valued number, None when there is none."""
    values = value if isinstance(value, (list, pydicom.multival.MultiValue)) else [value]
    return None if not values or values[0] in (None, "") else float(values[0])


def _fields(dataset: Dataset, name: Path | str) -> dict[str, Any]:
    """The header's share of a radiograph."""

    def text(keyword: str) -> str:
        return str(dataset.get(keyword) or "")

    return header_fields(
        uid=text("SOPInstanceUID") or file_id(name),
        patient_id=text("PatientID"),
        sex=text("PatientSex"),
        age=text("PatientAge"),
        view=text("ViewPosition") or _first_meaning(dataset, "ViewCodeSequence"),
        pixel_spacing=[float(each) for each in dataset.get("PixelSpacing") or dataset.get("ImagerPixelSpacing") or ()],
        derivation=text("DerivationDescription"),
        modality=text("Modality"),
        body_part=text("BodyPartExamined"),
        sop_class=text("SOPClassUID"),
    )


def _first_meaning(dataset: Dataset, keyword: str) -> str:
    """Code Meaning of the first item of a code sequence, "" where there is none."""
    items = dataset.get(keyword)
    return str(items[0].get("CodeMeaning") or "") if items and isinstance(items[0], Dataset) else ""
