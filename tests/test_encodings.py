"""Every encoding of a radiograph is read right: transfer syntax x bits x sign x photometric x VOI transformation.

The files are made here, by pydicom's own encoders or imagecodecs; what they must show is computed from the
stored values by the formulas of DICOM PS3.3 C.11.2.1.2.
"""

import itertools

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_encoder
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from jaxpneumo.dicom import dicom

PLAIN = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
LOSSLESS = [*PLAIN, RLELossless, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless]
LOSSY = [JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless, JPEG2000]
BITS = (8, 10, 12, 15, 16)
MOST_BITS = {JPEGBaseline8Bit: 8, JPEGExtended12Bit: 12}
TRANSFORMATIONS = ("none", "window", "table")
ROWS, COLUMNS = 36, 64


def stored_values(bits: int, signed: bool) -> np.ndarray:
    """A slanted ramp (36, 64) through almost all of the range that so many bits have."""
    rows, columns = np.mgrid[:ROWS, :COLUMNS]
    share = 0.04 + 0.92 * (rows / (ROWS - 1) + columns / (COLUMNS - 1)) / 2
    values = np.rint(share * (2**bits - 1)).astype(np.int64) - (2 ** (bits - 1) if signed else 0)
    return values.astype(f"{'i' if signed else 'u'}{1 if bits == 8 else 2}")


def compress(values: np.ndarray, syntax: str, bits: int, dataset: Dataset) -> None:
    """Sets the pixel data of a data set."""
    dataset["PixelData"] = pydicom.DataElement("PixelData", "OW" if syntax in PLAIN and bits > 8 else "OB", b"")
    if syntax in PLAIN:
        order = ">" if syntax == ExplicitVRBigEndian else "<"
        dataset.PixelData = values.astype(values.dtype.newbyteorder(order)).tobytes()
    elif syntax in (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1):
        # JPEG knows no sign: the bits are coded as they are.
        raw = (values.astype(np.int64) & (2**bits - 1)).astype(f"u{values.itemsize}")
        lossless = syntax in (JPEGLossless, JPEGLosslessSV1)
        options = {"level": 100} if not lossless else {"lossless": True, "predictor": 1}
        precision = max(bits, 12) if syntax == JPEGExtended12Bit and bits > 8 else bits
        frame = imagecodecs.jpeg8_encode(raw, bitspersample=precision, **options)
        dataset.PixelData = encapsulate([frame])
    else:
        options = {JPEGLSNearLossless: {"jls_error": 1}, JPEG2000: {"j2k_cr": [1.5]}}.get(syntax, {})
        encoder = get_encoder(syntax)
        dataset.PixelData = encapsulate([encoder.encode(values, **encoding(values, bits), **options)])
    dataset["PixelData"].is_undefined_length = syntax not in PLAIN


def encoding(values: np.ndarray, bits: int) -> dict:
    return {
        "rows": ROWS,
        "columns": COLUMNS,
        "samples_per_pixel": 1,
        "bits_allocated": values.itemsize * 8,
        "bits_stored": bits,
        "pixel_representation": int(values.dtype.kind == "i"),
        "photometric_interpretation": "MONOCHROME2",
        "number_of_frames": 1,
        "encoding_plugin": "",
    }


def make(values: np.ndarray, syntax: str, bits: int, photometric: str, transformation: str) -> Dataset:
    """A Secondary Capture file of these stored values."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3"
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = photometric
    dataset.Rows, dataset.Columns = values.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = values.itemsize * 8, bits, bits - 1
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    low, high = int(values.min()), int(values.max())
    if transformation == "window":
        dataset.WindowCenter, dataset.WindowWidth = (low + high) // 2, (high - low) // 2
    if transformation == "table":
        item = Dataset()
        item.add_new("LUTDescriptor", "SS" if low < 0 else "US", [len(table(low, high)), low, 12])
        item.add_new("LUTData", "US", table(low, high).tolist())
        dataset.VOILUTSequence = [item]
    compress(values, syntax, bits, dataset)
    return dataset


def table(low: int, high: int) -> np.ndarray:
    """A VOI LUT to 12 bits, rising by the square; values beyond its entries get the last one."""
    entries = min(high - low + 1, 0x7FFF)
    return np.rint((np.arange(entries) / (entries - 1)) ** 2 * 4095).astype(np.int64)


def expected(values: np.ndarray, bits: int, photometric: str, transformation: str) -> np.ndarray:
    """What must be shown, float 0..255, by the standard's formulas."""
    values, signed = values.astype(np.int64), values.dtype.kind == "i"
    low, high = int(values.min()), int(values.max())
    if transformation == "window":
        centre, width = (low + high) // 2, (high - low) // 2
        shown = np.clip(((values - (centre - 0.5)) / (width - 1) + 0.5) * 255, 0, 255)
    elif transformation == "table":
        shown = table(low, high)[np.clip(values - low, 0, len(table(low, high)) - 1)] / 4095 * 255
    elif bits == 8 and not signed:
        shown = values.astype(float)
    else:
        shown = (values - low) * 255 / (high - low)
    return 255 - shown if photometric == "MONOCHROME1" else shown


def read(dataset: Dataset) -> np.ndarray:
    buffer = pydicom.filebase.DicomBytesIO()
    syntax = dataset.file_meta.TransferSyntaxUID
    dataset.save_as(
        buffer,
        implicit_vr=syntax == ImplicitVRLittleEndian,
        little_endian=syntax != ExplicitVRBigEndian,
        enforce_file_format=True,
    )
    return dicom.parse(buffer.getvalue(), "made here").image


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda syntax: syntax.keyword)
def test_lossless(syntax, bits, signed):
    values = stored_values(bits, signed)
    for photometric, transformation in itertools.product(("MONOCHROME1", "MONOCHROME2"), TRANSFORMATIONS):
        image = read(make(values, syntax, bits, photometric, transformation))
        difference = np.abs(image - expected(values, bits, photometric, transformation)).max()
        assert difference <= 0.51, (photometric, transformation)


@pytest.mark.parametrize(
    ("syntax", "bits"),
    [(syntax, bits) for syntax in LOSSY for bits in BITS if bits <= MOST_BITS.get(syntax, 16)],
    ids=lambda value: getattr(value, "keyword", value),
)
def test_lossy(syntax, bits):
    """Almost the stored values; unsigned, as no lossy coder that knows no sign serves signed ones."""
    values = stored_values(bits, False)
    for photometric, transformation in itertools.product(("MONOCHROME1", "MONOCHROME2"), TRANSFORMATIONS):
        image = read(make(values, syntax, bits, photometric, transformation))
        difference = np.abs(image - expected(values, bits, photometric, transformation)).max()
        assert difference <= 6, (photometric, transformation)
