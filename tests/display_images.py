"""Small DICOM images of two grey ramps, of 8 and of 12 bits, and the pictures that are right for them."""

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from jaxpneumo.dicom import dicom

ROWS, COLUMNS = 40, 56
SHARE = (np.mgrid[:ROWS, :COLUMNS][0] / (ROWS - 1) + np.mgrid[:ROWS, :COLUMNS][1] / (COLUMNS - 1)) / 2
WORDS = np.rint(100 + SHARE * 3900).astype("<u2")  # 12 bits
BYTES = np.rint(10 + SHARE * 230).astype("u1")
BORDER = np.zeros(SHARE.shape, bool)
BORDER[:6] = BORDER[:, -9:] = True


def image(values: np.ndarray, bits: int | None = None, photometric: str = "MONOCHROME2", **elements) -> Dataset:
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = "1.2.3"
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, photometric
    made.Rows, made.Columns = values.shape
    made.BitsAllocated = 8 * values.itemsize
    made.BitsStored = bits or made.BitsAllocated
    made.HighBit, made.PixelRepresentation = made.BitsStored - 1, int(values.dtype.kind == "i")
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    made.PixelData = values.tobytes()
    made["PixelData"].VR = "OW" if values.itemsize == 2 else "OB"
    return made


def read(made: Dataset, implicit: bool = False) -> dicom.Radiograph:
    buffer = pydicom.filebase.DicomBytesIO()
    made.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    made.save_as(buffer, implicit_vr=implicit, little_endian=True, enforce_file_format=True)
    return dicom.parse(buffer.getvalue(), "a.dcm")


def table(entries: np.ndarray, first: int, bits: int, vr: str = "US", one_byte: bool = False) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", vr, [len(entries) % 65536, first, bits])
    item.add_new("LUTData", "OW", np.asarray(entries, "u1" if one_byte else "<u2").tobytes())
    item.ModalityLUTType = "US"
    return item


def stretched(values: np.ndarray, use: np.ndarray | slice = slice(None)) -> np.ndarray:
    low, high = float(values[use].min()), float(values[use].max())
    return np.clip((values - low) / (high - low) * 255, 0, 255)


def close(shown: np.ndarray, right: np.ndarray) -> bool:
    return bool(np.abs(shown.astype(float) - right).max() <= 0.51)
