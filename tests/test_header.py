"""The short way to read the commonest file: it gives what pydicom gives, or nothing."""

from dataclasses import fields
from io import BytesIO

import numpy as np
import pydicom
import pytest
from helpers import mutate
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGExtended12Bit

from jaxpneumo.dicom import dicom, fast_header
from jaxpneumo.process.errors import InputError


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("header") / "a.dcm"
    image = np.random.default_rng(0).integers(0, 256, (40, 48), np.uint8)
    dicom.write(path, image, "1.2.3", "P 1", "F", 34, "PA")
    return path.read_bytes()


def pydicoms(data: bytes) -> dicom.Radiograph | None:
    """What the long way reads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_header, "plain", lambda _: None)
        try:
            return dicom.parse(data, "a.dcm")
        except InputError:
            return None


def agree(data: bytes) -> bool:
    """The short way reads the file; what it finds is what the long way finds."""
    found = dicom._parse_plain(data)
    if found is None:
        return False
    expected = pydicoms(data)
    assert expected is not None
    for field in fields(found):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(expected, field.name), field.name)
    return True


def changed(data: bytes, change) -> bytes:
    dataset, buffer = pydicom.dcmread(BytesIO(data)), BytesIO()
    change(dataset)
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def test_all_of_the_sample(shared):
    paths = sorted((shared / "data/siim-sample").rglob("*.dcm"))
    assert len(paths) == 118
    assert all(agree(path.read_bytes()) for path in paths)


def test_mutated_files(shared, original):
    sample = [path.read_bytes() for path in sorted((shared / "data/siim-sample").rglob("*.dcm"))[:4]]
    rng, read = np.random.default_rng(5), 0
    for number in range(1500):
        data = [original, *sample][number % 5 if number % 10 == 0 else 0]
        read += agree(mutate(data, rng))
    assert 20 < read < 1480


def test_every_byte_of_the_header(original):
    """Each takes three other values: what is read then is what pydicom reads."""
    rng, read = np.random.default_rng(6), 0
    places = range(128, original.index(fast_header.PIXEL_DATA.to_bytes(4, "little")[2:] + b"\x10\x00OB") + 40)
    for place in places:
        for value in rng.integers(0, 256, 3):
            read += agree(original[:place] + bytes([value]) + original[place + 1 :])
    assert 0.1 * len(places) < read < 2.9 * len(places)


@settings(max_examples=60, deadline=None)
@given(
    patient=st.text(st.characters(codec="iso8859-1", exclude_categories=["Cc"]), max_size=20),
    sex=st.sampled_from(["", "F", "M", "O", "f", " M", "X"]),
    age=st.sampled_from(["", "034Y", "34", "018M", "100D", "x"]),
    view=st.sampled_from(["", "PA", "AP", "pa ", "LL"]),
    spacing=st.sampled_from([None, [0.139, 0.139], [1, 2], [0.0, 0.0], [0.1], ["1e-1", "+.2"]]),
    body=st.sampled_from(["", "CHEST", "thorax"]),
)
def test_values(original, patient, sex, age, view, spacing, body):
    def change(dataset):
        dataset.PatientID, dataset.PatientSex, dataset.ViewPosition = patient, sex, view
        dataset.PatientAge, dataset.PixelSpacing, dataset.BodyPartExamined = age, spacing, body

    mode = pydicom.config.settings.writing_validation_mode
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    try:
        agree(changed(original, change))
    finally:
        pydicom.config.settings.writing_validation_mode = mode


@pytest.mark.parametrize(
    ("orientation", "leads_to"),
    [
        ("", ""),
        (["L", "F"], "L"),
        (["R", "F"], "R"),
        (["LH", "FL"], "L"),
        (["L", "H"], "L"),
        (["F", "L"], ""),
        (["A", "F"], ""),
        ("L", ""),
        (["", "F"], ""),
        (["L", "F", "P"], ""),
    ],
)
def test_where_the_rows_lead(original, orientation, leads_to):
    data = changed(original, lambda dataset: setattr(dataset, "PatientOrientation", orientation))
    assert agree(data) == (leads_to != "" or orientation in ("", ["F", "L"], ["A", "F"]))
    assert pydicoms(data).leads_to == leads_to


@pytest.mark.parametrize(
    "values",
    [
        {"PatientOrientation": ["F", "R"]},
        {"PresentationIntentType": "FOR PROCESSING"},
        {"SeriesDescription": "Chest LAT", "ProtocolName": "Thorax seitl.", "ViewPosition": ""},
        {"AcquisitionDeviceProcessingDescription": "CHEST,LATERAL"},
    ],
)
def test_what_the_film_is_said_to_be(original, values):
    assert agree(changed(original, element(**values)))


@pytest.mark.parametrize("orientation", [["X", "F"], ["L", "R"], ["LR", "F"], ["LL", "F"], ["l", "f"]])
def test_orientations_that_need_a_remark_are_read_the_long_way(original, orientation):
    assert not agree(changed(original, lambda dataset: setattr(dataset, "PatientOrientation", orientation)))


def sequence(dataset):
    dataset.ReferencedStudySequence = [pydicom.Dataset()]


def two_fragments(dataset):
    frame = pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
    dataset.PixelData = encapsulate([frame], fragments_per_frame=2)


def syntax(uid):
    def change(dataset):
        dataset.file_meta.TransferSyntaxUID = uid
        if uid in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
            dataset["PixelData"].is_undefined_length = False
            dataset.PixelData = bytes(40 * 48)

    return change


def element(**values):
    def change(dataset):
        for name, value in values.items():
            setattr(dataset, name, value)

    return change


@pytest.mark.parametrize(
    "change",
    [
        sequence,
        two_fragments,
        syntax(ExplicitVRLittleEndian),
        syntax(ImplicitVRLittleEndian),
        syntax(JPEGExtended12Bit),
        element(PhotometricInterpretation="MONOCHROME1"),
        element(WindowCenter=100, WindowWidth=20),
        element(RescaleSlope=2, RescaleIntercept=0),
        element(NumberOfFrames=1),
        element(PixelRepresentation=1),
        element(BitsStored=7),
        element(BitsAllocated=16),
        element(SamplesPerPixel=3),
        element(ImagerPixelSpacing=[0.1, 0.1]),
        element(PatientID="a\\b"),
        element(PatientID="Jos\xe9"),
        element(SpecificCharacterSet="ISO_IR 13"),
        element(SOPInstanceUID=""),
        element(Rows=0),
        element(DataSetTrailingPadding=b"\0\0"),
    ],
)
def test_what_is_not_common_is_left_to_pydicom(original, change):
    assert dicom._parse_plain(original) is not None
    assert dicom._parse_plain(changed(original, change)) is None


def test_every_truncation_is_left_to_pydicom(original):
    assert all(dicom._parse_plain(original[:length]) is None for length in range(len(original)))
