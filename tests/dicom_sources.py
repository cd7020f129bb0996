"""Radiographs with headers of all kinds, masks on them, and what their DICOM results are made with."""

import warnings
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from jaxpneumo.dicom import dicom
from jaxpneumo.dicom.outcome import Algorithm, ImageOutcome

SHAPE = (91, 75)  # no multiples of eight
CR = "1.2.840.10008.5.1.4.1.1.1"
ALGORITHM = Algorithm("0.1.0", "ab" * 32, '{"threshold": 0.5}')


def ramp(dtype: type = np.uint8, largest: int = 255) -> np.ndarray:
    """Stored values (91, 75) that rise from the upper left corner to the lower right."""
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    return np.rint(largest * (rows + columns) / (sum(SHAPE) - 2)).astype(dtype)


def radiograph(path: Path, pixels: np.ndarray | None = None, implicit: bool = False, **elements) -> Path:
    """A file with these stored values, uncompressed, its header changed by `elements` (None removes one)."""
    dicom.write(path, np.zeros(SHAPE, np.uint8), "1.2.3.4", "P1", "F", 34, "PA", "1.2.3", "1.2.3.1")
    dataset = pydicom.dcmread(path)
    pixels = ramp() if pixels is None else pixels
    bits = 8 * pixels.dtype.itemsize
    del dataset.PixelData
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    dataset["PixelData"].VR = "OW" if bits > 8 else "OB"
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some tests want values that the standard forbids
        for name, value in elements.items():
            if value is None:
                delattr(dataset, name)
            else:
                setattr(dataset, name, value)
                if dataset[name].VR == "US or SS":
                    dataset[name].VR = "US"
        dataset.file_meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", CR)
        dataset.save_as(path, implicit_vr=implicit, little_endian=True)
    return path


def lut(values: list[int], first: int, bits: int) -> Dataset:
    """An item of a VOI LUT Sequence."""
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(values), first, bits])
    item.add_new("LUTData", "OW", np.array(values, "<u2").tobytes())
    return item


def outlined() -> np.ndarray:
    """A mask with a hole, an island in it, a part that meets another at a corner, and one at the image's corner."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[20:50, 10:31] = 1
    mask[30:40, 15:25] = 0
    mask[34:36, 18:20] = 1
    mask[50:55, 31:40] = 1
    mask[-1, -1] = 1
    return mask


def positive() -> ImageOutcome:
    return ImageOutcome(outlined(), 0.93456, "left")


def negative() -> ImageOutcome:
    return ImageOutcome(np.zeros(SHAPE, np.uint8), 0.1)


def odd_radiographs(folder: Path) -> dict[str, Path]:
    """Sound radiographs whose headers or pixels are unusual, by what is unusual."""
    grey = ramp()
    rgb = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    palette = {"PhotometricInterpretation": "PALETTE COLOR"}
    for color in ("Red", "Green", "Blue"):
        palette[f"{color}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        palette[f"{color}PaletteColorLookupTableData"] = (np.arange(256) * 257).astype("<u2").tobytes()
    twelve = {"BitsStored": 12, "HighBit": 11}
    window = {"WindowCenter": [1500, 2000], "WindowWidth": [2400, 3000], "PhotometricInterpretation": "MONOCHROME1"}
    table = lut([16 * value for value in range(256)], 0, 12)
    signed = lut([16 * value for value in range(256)], -128, 12)
    cases = {
        "plain": (grey, {}),
        "no spacing": (grey, {"PixelSpacing": None}),
        "no dates, ids, orientation or part": (
            grey,
            dict.fromkeys(("StudyDate", "StudyTime", "PatientID", "PatientOrientation", "BodyPartExamined", "StudyID")),
        ),
        "16 bits, MONOCHROME1, two windows": (ramp(np.uint16, 4095), twelve | window),
        "CR": (grey, {"SOPClassUID": CR, "ImagerPixelSpacing": [0.2, 0.2], "PixelSpacing": None}),
        "fluoroscopy": (grey, {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.12.2", "Modality": "RF", "NumberOfFrames": 1}),
        "ultrasound": (grey, {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.6.1", "Modality": "US"}),
        "unknown class and modality": (grey, {"SOPClassUID": "1.2.3.99", "Modality": "OT"}),
        "VOI LUT of 12 bits": (grey, {"VOILUTSequence": [table]}),
        "VOI LUT of signed values": (grey, {"RescaleSlope": 1, "RescaleIntercept": -128, "VOILUTSequence": [signed]}),
        "RGB": (np.repeat(grey[..., None], 3, -1), rgb),
        "palette": (grey, palette),
        "lateral view, odd sex, age and part": (
            grey,
            {"ViewPosition": "LL", "PatientSex": "female", "PatientAge": "33", "BodyPartExamined": "Thorax, seitlich"},
        ),
    }
    folder.mkdir(exist_ok=True)
    made = {}
    for number, (name, (pixels, elements)) in enumerate(cases.items()):
        made[name] = radiograph(folder / f"{number}.dcm", pixels, name == "VOI LUT of signed values", **elements)
    return made
