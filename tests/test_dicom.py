"""DICOM reading and writing: all forms of pixel data give one kind of image, everything else a sentence."""

import warnings

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import pixel_array
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from jaxpneumo.dicom import dicom
from jaxpneumo.process.errors import InputError

ODD = ["Fake_MONOHR1", "JPGLosslessP14SV1_1s_1f_8b", "RG1_J2KI", "vlut_04"]


@pytest.fixture
def grey() -> np.ndarray:
    """A smooth picture (48, 64) uint8 from 10 to 240."""
    rows, columns = np.mgrid[:48, :64]
    return np.rint(10 + 230 * (rows / 47 + columns / 63) / 2).astype(np.uint8)


def save(path, pixels: np.ndarray, syntax=ExplicitVRLittleEndian, **elements):
    """A file with these stored values, its header changed by `elements` (None removes one)."""
    dicom.write(path, np.zeros((48, 64), np.uint8), "1.2.3", "P1", "F", 34, "PA")
    dataset = pydicom.dcmread(path)
    bits = pixels.dtype.itemsize * 8
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset["PixelData"].is_undefined_length = False
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW" if bits == 16 else "OB"
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for name, value in elements.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
            if dataset[name].VR == "US or SS":
                dataset[name].VR = "US"
    if syntax != ExplicitVRLittleEndian:
        dataset.compress(syntax, generate_instance_uid=False)
    dataset.save_as(path, enforce_file_format=True)
    return path


def lut(values: list[int], first: int, bits: int) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(values), first, bits])
    item.add_new("LUTData", "US", values)
    item.ModalityLUTType = "US"
    return item


# Writing


def test_written_file_reads_back(tmp_path, grey):
    path = tmp_path / "a/b.dcm"
    dicom.write(path, grey, "1.2.3", "P1", "F", 7, "AP", quality=100, synthetic=True)
    radiograph = dicom.read(path)
    assert np.abs(radiograph.image.astype(int) - grey).max() <= 2
    assert radiograph.image.dtype == np.uint8
    fields = radiograph.uid, radiograph.patient_id, radiograph.sex, radiograph.age, radiograph.view
    assert fields == ("1.2.3", "P1", "F", 7, "AP")
    assert radiograph.pixel_spacing == (0.139, 0.139)
    assert radiograph.synthetic
    assert [entry.name for entry in path.parent.iterdir()] == ["b.dcm"]


def test_same_arguments_give_same_bytes(tmp_path, grey):
    for name in ("a.dcm", "b.dcm"):
        dicom.write(tmp_path / name, grey, "1.2.3", "P1", "M", 60, "PA")
    assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b.dcm").read_bytes()
    radiograph = dicom.read(tmp_path / "a.dcm")
    assert not radiograph.synthetic


def test_written_file_is_what_the_challenge_has(tmp_path, grey):
    dicom.write(tmp_path / "a.dcm", grey, "1.2.3", "P1", "M", None, "PA", study_uid="1.4", series_uid="1.5")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = pydicom.dcmread(tmp_path / "a.dcm")
        assert dataset.file_meta.TransferSyntaxUID.name == "JPEG Baseline (Process 1)"
        assert dataset.SOPClassUID.name == "Secondary Capture Image Storage"
        assert (dataset.PhotometricInterpretation, dataset.BitsStored) == ("MONOCHROME2", 8)
        assert (dataset.Modality, dataset.BodyPartExamined, dataset.ViewPosition) == ("CR", "CHEST", "PA")
        assert (dataset.StudyInstanceUID, dataset.SeriesInstanceUID) == ("1.4", "1.5")
        assert dataset.pixel_array.shape == grey.shape
    assert dicom.read(tmp_path / "a.dcm").age is None


def test_only_grey_bytes_can_be_written(tmp_path, grey):
    for image in (grey.astype(np.float32), np.stack([grey] * 3, axis=-1)):
        with pytest.raises(ValueError, match="uint8"):
            dicom.write(tmp_path / "a.dcm", image, "1.2.3")


# Pixel values


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless])
def test_eight_bits_stay_as_they_are(tmp_path, grey, syntax):
    np.testing.assert_array_equal(dicom.read(save(tmp_path / "a.dcm", grey, syntax)).image, grey)


def test_monochrome1_is_inverted(tmp_path, grey):
    path = save(tmp_path / "a.dcm", grey, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(dicom.read(path).image, 255 - grey)


@pytest.mark.parametrize(("bits", "kind"), [(10, np.uint16), (12, np.uint16), (16, np.uint16), (12, np.int16)])
def test_more_bits_are_stretched(tmp_path, grey, bits, kind):
    values = grey.astype(np.int64) * (2 ** (bits - 9)) - (500 if kind is np.int16 else 0)
    path = save(tmp_path / "a.dcm", values.astype(kind), BitsStored=bits, HighBit=bits - 1)
    expected = np.rint((grey - 10.0) * 255 / 230)
    assert np.abs(dicom.read(path).image - expected).max() <= 1


def test_padding_is_black_and_does_not_count(tmp_path, grey):
    for photometric in ("MONOCHROME2", "MONOCHROME1"):
        values = grey.astype(np.uint16)
        values[:4] = 60_000
        path = save(tmp_path / "a.dcm", values, PhotometricInterpretation=photometric, PixelPaddingValue=60_000)
        image = dicom.read(path).image
        assert not image[:4].any()
        assert (image[4:].min(), image[4:].max()) == (0, 255)


def test_window(tmp_path, grey):
    values = grey.astype(np.uint16) * 16
    path = save(tmp_path / "a.dcm", values, WindowCenter=[2048, 9], WindowWidth=[1025, 9])
    expected = np.clip(((values - 2047.5) / 1024 + 0.5) * 255, 0, 255)  # DICOM PS3.3 C.11.2.1.2.1
    assert np.abs(dicom.read(path).image - expected).max() <= 0.51
    exact = save(tmp_path / "b.dcm", values, WindowCenter=2048, WindowWidth=1024, VOILUTFunction="LINEAR_EXACT")
    expected = np.clip(((values - 2048.0) / 1024 + 0.5) * 255, 0, 255)
    assert np.abs(dicom.read(exact).image - expected).max() <= 0.51
    sigmoid = save(tmp_path / "c.dcm", values, WindowCenter=2048, WindowWidth=1024, VOILUTFunction="SIGMOID")
    expected = 255 / (1 + np.exp(-4 * (values - 2048.0) / 1024))
    assert np.abs(dicom.read(sigmoid).image - expected).max() <= 0.51


def test_rescale_comes_before_the_window(tmp_path, grey):
    path = save(tmp_path / "a.dcm", grey, RescaleSlope=2, RescaleIntercept=-100, WindowCenter=100, WindowWidth=200)
    expected = np.clip(((grey * 2.0 - 100 - 99.5) / 199 + 0.5) * 255, 0, 255)
    assert np.abs(dicom.read(path).image - expected).max() <= 0.51


def test_look_up_tables(tmp_path, grey):
    modality = save(tmp_path / "a.dcm", grey, ModalityLUTSequence=[lut(list(range(512, 0, -2)), 0, 16)])
    expected = 255 - np.rint((grey - 10.0) * 255 / 230)
    assert np.abs(dicom.read(modality).image - expected).max() <= 1
    squared = [int(value**2 / 255 * 16) for value in range(256)]
    voi = save(tmp_path / "b.dcm", grey, VOILUTSequence=[lut(squared, 0, 12)])
    expected = np.array(squared)[grey] / 4095 * 255
    assert np.abs(dicom.read(voi).image - expected).max() <= 0.51


def test_sample_has_pydicoms_values(shared):
    paths = sorted((shared / "data/siim-sample").rglob("*.dcm"))
    assert len(paths) == 118
    for path in paths[::10]:
        radiograph = dicom.read(path)
        np.testing.assert_array_equal(radiograph.image, pixel_array(path, decoding_plugin="pillow"))
        assert radiograph.uid == path.stem
        assert radiograph.view in ("AP", "PA")
        assert 0 < radiograph.age < 100


@pytest.mark.parametrize("name", ODD)
def test_odd_files_read(shared, name):
    image = dicom.read(shared / f"data/odd-dicom/{name}.dcm").image
    assert image.dtype == np.uint8
    assert image.min() < 40
    assert image.max() > 240
    if name == "RG1_J2KI":  # bright spine between dark lungs
        height, width = image.shape
        assert image[height // 4, int(width * 0.45) : int(width * 0.55)].mean() > 200
        assert image[height // 4, int(width * 0.25)] < 180
    if name == "vlut_04":  # test pattern with black and white fields
        assert image[310, 115] < 5
        assert image[118, 66] > 250


# Header


@pytest.mark.parametrize(
    ("age", "years"),
    [
        ("034Y", 34),
        ("34", 34),
        ("018M", 1),
        ("100D", 0),
        ("060W", 1),
        ("", None),
        ("x", None),
        ("abcY", None),
    ],
)
def test_age(tmp_path, grey, age, years):
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    try:
        path = save(tmp_path / "a.dcm", grey, PatientAge=age)
    finally:
        pydicom.config.settings.writing_validation_mode = None
    assert dicom.read(path).age == years


def test_scanty_header_reads(tmp_path, grey):
    names = "PatientID PatientSex PatientAge ViewPosition PixelSpacing"
    path = save(tmp_path / "1.2.9.dcm", grey, **dict.fromkeys(names.split()))
    radiograph = dicom.read(path)
    assert (radiograph.patient_id, radiograph.sex, radiograph.age, radiograph.view) == ("", "", None, "")
    assert radiograph.pixel_spacing is None


def test_file_id():
    names = ("1.2.3.dcm", "a/1.2.3", "ID_01.DCM", "x.y.png", "x.jpeg")
    assert [dicom.file_id(name) for name in names] == ["1.2.3", "1.2.3", "ID_01", "x.y", "x"]


# Refusals


def refused(path, words: str) -> None:
    """`path` is refused with these words, its own name, and nothing about the patient."""
    with pytest.raises(InputError, match=words) as caught:
        dicom.read(path)
    assert path.name in str(caught.value)
    assert "P1" not in str(caught.value)


def test_what_is_not_a_radiograph_is_refused(tmp_path, grey):
    (tmp_path / "text.dcm").write_text("hello")
    (tmp_path / "empty.dcm").write_bytes(b"")
    refused(tmp_path / "text.dcm", "not a DICOM file")
    refused(tmp_path / "empty.dcm", "not a DICOM file")
    refused(tmp_path / "missing.dcm", "cannot be read")
    refused(save(tmp_path / "none.dcm", grey, PixelData=None), "no pixel data")
    refused(save(tmp_path / "many.dcm", grey, NumberOfFrames=3, PixelData=grey.tobytes() * 3), "3 frames")
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    refused(save(tmp_path / "rgb.dcm", grey, PixelData=grey.tobytes() * 3, **colour), "colour image")
    refused(save(tmp_path / "huge.dcm", grey, Rows=65_535, Columns=65_535), "has 65535 x 65535 pixels")
    refused(save(tmp_path / "none.dcm", grey, Rows=0), "has 0 x 64 pixels")
    refused(save(tmp_path / "short.dcm", grey, PixelData=grey.tobytes()[:-100]), "truncated: 2972 bytes")


def test_every_truncation_is_refused(tmp_path, grey):
    dicom.write(tmp_path / "jpeg.dcm", grey, "1.2.3", "P1", "F", 34, "PA")
    paths = [tmp_path / "jpeg.dcm", save(tmp_path / "plain.dcm", grey)]
    paths.append(save(tmp_path / "rle.dcm", grey, RLELossless))
    for path in paths:
        data = path.read_bytes()
        for length in [*range(0, len(data) - 16, 13), *range(len(data) - 16, len(data))]:
            with pytest.raises(InputError):
                dicom.parse(data[:length], path.name)


def test_jpeg_without_its_end_is_refused(tmp_path):
    """The element is whole, the JPEG in it is not: decoders fill the rest with grey."""
    image = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    jpeg = cv2.imencode(".jpg", image)[1].tobytes()
    dicom.write(tmp_path / "a.dcm", image, "1.2.3")
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    dataset.PixelData = pydicom.encaps.encapsulate([jpeg[: len(jpeg) // 2]])
    dataset.save_as(tmp_path / "a.dcm")
    refused(tmp_path / "a.dcm", "truncated: its JPEG has no end")
    dataset.PixelData = pydicom.encaps.encapsulate([jpeg])
    dataset.Rows = 32
    dataset.save_as(tmp_path / "a.dcm")
    refused(tmp_path / "a.dcm", "of another size")


# Pictures


def test_pictures_read_like_radiographs(tmp_path, grey):
    cv2.imwrite(str(tmp_path / "x.1.png"), grey)
    radiograph = dicom.read_image(tmp_path / "x.1.png")
    np.testing.assert_array_equal(radiograph.image, grey)
    assert radiograph.uid == "x.1"
    cv2.imwrite(str(tmp_path / "grey3.png"), np.stack([grey] * 3, axis=-1))
    np.testing.assert_array_equal(dicom.read_image(tmp_path / "grey3.png").image, grey)
    cv2.imwrite(str(tmp_path / "deep.png"), grey.astype(np.uint16) * 200)
    deep = dicom.read_image(tmp_path / "deep.png").image
    assert (deep.min(), deep.max(), deep.dtype) == (0, 255, np.uint8)
    cv2.imwrite(str(tmp_path / "a.jpg"), grey)
    assert np.abs(dicom.read_image(tmp_path / "a.jpg").image.astype(int) - grey).max() < 5
    np.testing.assert_array_equal(dicom.read_image(save(tmp_path / "a.dcm", grey)).image, grey)


def test_wrong_pictures_are_refused(tmp_path, grey):
    cv2.imwrite(str(tmp_path / "colour.png"), np.stack([grey, grey, 255 - grey], axis=-1))
    cv2.imwrite(str(tmp_path / "a.png"), grey)
    cv2.imwrite(str(tmp_path / "a.jpg"), grey)
    for name in ("a.png", "a.jpg"):
        (tmp_path / f"cut-{name}").write_bytes((tmp_path / name).read_bytes()[:-40])
    (tmp_path / "x.gif").write_bytes(b"GIF89a")
    for name, words in [
        ("colour.png", "colour picture"),
        ("cut-a.png", "truncated"),
        ("cut-a.jpg", "truncated"),
        ("x.gif", "not a DICOM, PNG or JPEG"),
        ("missing.png", "cannot be read"),
    ]:
        with pytest.raises(InputError, match=words):
            dicom.read_image(tmp_path / name)
