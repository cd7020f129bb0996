"""DICOM results: what they say, whose they are, and which radiographs have none."""

import resource
import struct
import sys
import warnings

import numpy as np
import pydicom
import pytest
from dicom_sources import ALGORITHM, CR, SHAPE, negative, odd_radiographs, outlined, positive, radiograph, ramp
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset

from jaxpneumo.dicom import dicom
from jaxpneumo.dicom.outcome import Algorithm, ImageOutcome
from jaxpneumo.predict.captions import caption_height, captioned, white
from jaxpneumo.predict.dicom_results import KINDS, check_installed, kinds, write_dicom_results
from jaxpneumo.predict.pictures import overlay
from jaxpneumo.process.errors import InputError

hd = pytest.importorskip("highdicom", reason="highdicom is not installed: pip install 'jaxpneumo[dicom]'")
PNEUMOTHORAX, PRESENT, ABSENT = "36118008", "52101004", "272519000"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return radiograph(tmp_path_factory.mktemp("source") / "a.dcm")


@pytest.fixture(scope="module")
def files(source, tmp_path_factory):
    """The files of all kinds of a positive outcome."""
    written, reasons = write_dicom_results(source, positive(), KINDS, tmp_path_factory.mktemp("results"), ALGORITHM)
    assert tuple(written) == KINDS
    assert not reasons
    return written


def items(dataset: Dataset):
    """All content items of a report."""
    for item in dataset.get("ContentSequence", ()):
        yield item
        yield from items(item)


def name_of(item: Dataset) -> str:
    return item.ConceptNameCodeSequence[0].CodeValue


def numbers(report: Dataset) -> dict[tuple[str, str], float]:
    """By meaning and unit."""
    found = {}
    for item in items(report):
        if item.ValueType == "NUM":
            value = item.MeasuredValueSequence[0]
            unit = value.MeasurementUnitsCodeSequence[0].CodeValue
            found[item.ConceptNameCodeSequence[0].CodeMeaning, unit] = float(value.NumericValue)
    return found


def write_one(kind: str, source, outcome: ImageOutcome, folder, algorithm: Algorithm = ALGORITHM) -> Dataset:
    return pydicom.dcmread(write_dicom_results(source, outcome, [kind], folder, algorithm)[0][kind])


# What they say


def test_a_segmentation_has_every_pixel_at_its_place(files):
    segmentation = hd.seg.segread(files["seg"])
    assert (segmentation.Rows, segmentation.Columns) == SHAPE
    pixels = segmentation.get_pixels_by_source_instance(["1.2.3.4"])
    np.testing.assert_array_equal(pixels[0, ..., 0], outlined())
    description = segmentation.get_segment_description(1)
    assert description.segmented_property_type.value == PNEUMOTHORAX
    assert description.algorithm_type == hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC


def test_a_positive_report_has_finding_area_certainty_side_and_algorithm(files):
    report = hd.sr.srread(files["sr"])
    assert (report.CompletionFlag, report.VerificationFlag, report.PreliminaryFlag) == (
        "COMPLETE",
        "UNVERIFIED",
        "PRELIMINARY",
    )
    area = int(outlined().sum())
    assert numbers(report) == {
        ("Area", "mm2"): round(area * 0.139**2, 2),
        ("Area", "{pixels}"): area,
        ("Certainty of Finding", "%"): 93.46,
    }
    (group,) = report.content.get_planar_roi_measurement_groups()
    assert group.finding_type.value == PNEUMOTHORAX
    (site,) = group.finding_sites
    assert (site.value.meaning, site.laterality.meaning) == ("Lung", "Left")
    (evaluation,) = group.get_qualitative_evaluations()
    assert (evaluation.name.value, evaluation.value.value) == (PNEUMOTHORAX, PRESENT)
    texts = [item.TextValue for item in items(report) if item.ValueType == "TEXT"]
    assert {"jaxpneumo", "0.1.0", f"model {'ab' * 32}", 'settings {"threshold": 0.5}'} <= set(texts)
    assert "Research use only; not a medical device." in texts


def test_report_and_segmentation_are_of_one_finding(files):
    report, segmentation = hd.sr.srread(files["sr"]), pydicom.dcmread(files["seg"])
    (group,) = report.content.get_planar_roi_measurement_groups()
    assert group.tracking_uid == segmentation.SegmentSequence[0].TrackingUID
    assert group.referenced_segmentation_frame.referenced_sop_instance_uid == segmentation.SOPInstanceUID


def test_a_report_alone_refers_to_the_radiograph(source, tmp_path):
    written, _ = write_dicom_results(source, positive(), ["sr"], tmp_path, ALGORITHM)
    report = hd.sr.srread(written["sr"])
    assert [evidence[2] for evidence in report.get_evidence()] == ["1.2.3.4"]
    (group,) = report.content.get_image_measurement_groups()
    assert group.finding_type.value == PNEUMOTHORAX


def test_a_negative_report_says_absent_and_has_no_number_or_finding(source, tmp_path):
    written, _ = write_dicom_results(source, negative(), KINDS, tmp_path, ALGORITHM)
    assert list(written) == ["sr"]
    report = hd.sr.srread(written["sr"])
    assert not numbers(report)
    codes = {
        name_of(item): item.ConceptCodeSequence[0].CodeValue for item in items(report) if "ConceptCodeSequence" in item
    }
    assert codes[PNEUMOTHORAX] == ABSENT
    assert PNEUMOTHORAX not in codes.values()
    assert not {"121071", "363698007"} & codes.keys(), "neither a finding nor its site"
    assert "Pneumothorax" not in [item.TextValue for item in items(report) if item.ValueType == "TEXT"]


def test_without_pixel_spacing_there_are_no_millimetres(tmp_path):
    """The detector's spacing does not count: it is not that of the patient's plane."""
    film = radiograph(tmp_path / "a.dcm", PixelSpacing=None, ImagerPixelSpacing=[0.2, 0.2], SOPClassUID=CR)
    written, _ = write_dicom_results(film, positive(), KINDS, tmp_path / "results", ALGORITHM)
    assert {unit for _, unit in numbers(pydicom.dcmread(written["sr"]))} == {"{pixels}", "%"}
    assert "PixelSpacing" not in pydicom.dcmread(written["capture"])
    segmentation = hd.seg.segread(written["seg"])
    assert "unknown" in segmentation.ContentDescription
    np.testing.assert_array_equal(segmentation.get_pixels_by_source_instance(["1.2.3.4"])[0, ..., 0], outlined())


def test_an_outcome_without_score_or_side_says_neither(source, tmp_path):
    report = write_one("sr", source, ImageOutcome(outlined()), tmp_path)
    assert {unit for _, unit in numbers(report)} == {"mm2", "{pixels}"}
    assert "363698007" not in {name_of(item) for item in items(report)}


def test_a_capture_is_the_outlined_picture_between_captions(files, source):
    capture = pydicom.dcmread(files["capture"])
    said = [white("Research use only; not a medical device.")]
    top = caption_height(said, SHAPE[1], SHAPE[0])
    picture = overlay(dicom.read_image(source).image, outlined())
    np.testing.assert_array_equal(capture.pixel_array[top : top + SHAPE[0]], picture)
    np.testing.assert_array_equal(capture.pixel_array[:top], captioned(picture, said, [])[:top])
    assert capture.SourceImageSequence[0].ReferencedSOPInstanceUID == "1.2.3.4"


def test_every_result_says_research_use_only_and_synthetic(source, tmp_path):
    made_up = Algorithm("0.1.0", "ab" * 32, "{}", synthetic=True)
    film = tmp_path / "synthetic.dcm"
    dicom.write(film, ramp(), "1.2.3.5", synthetic=True)
    for file, algorithm, synthetic in ((source, ALGORITHM, False), (source, made_up, True), (film, ALGORITHM, True)):
        written, _ = write_dicom_results(file, positive(), KINDS, tmp_path / file.stem, algorithm)
        for path in written.values():
            description = pydicom.dcmread(path).SeriesDescription
            assert description.startswith("Research use only")
            assert description.endswith("synthetic") == synthetic


# Whose they are


def raw(path, *keywords: str) -> list[bytes]:
    """The values as they are in the file, explicit VR little endian."""
    data, found = path.read_bytes(), []
    for keyword in keywords:
        tag = tag_for_keyword(keyword)
        head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, dictionary_VR(tag).encode())
        start = data.rfind(head) + 8  # the last one: references in sequences come before
        found.append(data[start : start + int.from_bytes(data[start - 2 : start], "little")] if start > 7 else b"")
    return found


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        ("ISO_IR 100", "Müller^Jörg".encode("latin-1")),
        ("ISO_IR 192", "Иванова^Анна".encode()),
        ("\\ISO 2022 IR 87", b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B"),
        ("ISO_IR 192", b"M\xfcller^J\xf6rg"),  # Latin 1 that is declared as UTF-8
        ("SECRET SET", b"M\xfcller"),
        (None, b"M\xfcller"),
        ("ISO_IR 100", b"Smith^" + b"x" * 90),
    ],
)
def test_patient_and_study_are_the_radiographs_byte_for_byte(tmp_path, character_set, name):
    film = radiograph(tmp_path / "a.dcm", AccessionNumber="A 1", StudyID="S", PatientName="X" * len(name))
    dataset = pydicom.dcmread(film)
    dataset.add_new("SpecificCharacterSet", "CS", character_set)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.save_as(film)
    film.write_bytes(film.read_bytes().replace(b"X" * len(name), name))
    keywords = ("PatientName", "PatientID", "AccessionNumber", "StudyID", "StudyInstanceUID", "SpecificCharacterSet")
    expected = raw(film, *keywords)
    assert expected[0].rstrip() == name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        written, _ = write_dicom_results(film, positive(), KINDS, tmp_path / "results", ALGORITHM)
    for path in written.values():
        assert raw(path, *keywords) == expected


def test_values_that_break_the_rules_and_private_elements_are_left_out(tmp_path):
    odd = {"PatientSex": "female", "PatientAge": "33", "PatientBirthDate": "1.2.1970", "StudyTime": "noon"}
    film = radiograph(tmp_path / "a.dcm", **odd)
    dataset = pydicom.dcmread(film)
    dataset.private_block(0x11, "ACME", create=True).add_new(1, "LO", "SECRET")
    dataset.save_as(film)
    written, _ = write_dicom_results(film, positive(), KINDS, tmp_path / "results", ALGORITHM)
    for path in written.values():
        result = pydicom.dcmread(path)
        assert [result[keyword].value or "" for keyword in odd if keyword in result] == ["", "", ""]
        assert b"SECRET" not in path.read_bytes()


def test_an_element_of_a_wrong_type_is_taken_over_as_text(tmp_path):
    film = radiograph(tmp_path / "a.dcm")
    dataset = pydicom.dcmread(film)
    dataset.add_new("PatientID", "OB", b"P 12")
    dataset.save_as(film)
    report = write_one("sr", film, negative(), tmp_path)
    assert report.PatientID == "P 12"


@pytest.mark.parametrize("case", ["CR", "fluoroscopy", "unknown class and modality"])
def test_references_name_the_radiographs_own_class(tmp_path, case):
    film = odd_radiographs(tmp_path / "in")[case]
    expected = pydicom.dcmread(film).SOPClassUID
    written, _ = write_dicom_results(film, positive(), KINDS, tmp_path, ALGORITHM)
    for path in written.values():
        classes = {
            item.ReferencedSOPClassUID
            for item in every_item(pydicom.dcmread(path))
            if item.get("ReferencedSOPInstanceUID") == "1.2.3.4"
        }
        assert classes == {expected}


def every_item(dataset: Dataset):
    yield dataset
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield from every_item(item)


def test_each_result_is_a_series_of_its_own_in_the_radiographs_study(files):
    results = [pydicom.dcmread(path) for path in files.values()]
    assert {result.StudyInstanceUID for result in results} == {"1.2.3"}
    for keyword in ("SeriesInstanceUID", "SOPInstanceUID", "SeriesNumber"):
        assert len({result[keyword].value for result in results} | {"1.2.3.1", "1.2.3.4"}) == len(KINDS) + 2


# The same and another


def test_the_same_again_is_the_same_bytes(files, source, tmp_path):
    again, _ = write_dicom_results(source, positive(), KINDS, tmp_path, ALGORITHM)
    for kind in KINDS:
        assert again[kind].read_bytes() == files[kind].read_bytes()


@pytest.mark.parametrize(
    "other",
    [
        Algorithm("0.2.0", "ab" * 32, '{"threshold": 0.5}'),
        Algorithm("0.1.0", "cd" * 32, '{"threshold": 0.5}'),
        Algorithm("0.1.0", "ab" * 32, '{"threshold": 0.4}'),
    ],
)
def test_another_version_model_or_setting_makes_other_objects(files, source, tmp_path, other):
    for kind in ("seg", "sr"):
        result, before = write_one(kind, source, positive(), tmp_path, other), pydicom.dcmread(files[kind])
        for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
            assert result[keyword].value != before[keyword].value


def test_the_runs_of_an_ensemble_are_all_named(source, tmp_path):
    """Their fingerprints together are longer than a serial number may be."""
    numbers = set()
    for model in ("ab" * 32 + "+" + "cd" * 32, "ab" * 32 + "+" + "ef" * 32):
        report = write_one("sr", source, negative(), tmp_path, Algorithm("0.1.0", model, "{}"))
        assert f"model {model}" in [item.TextValue for item in items(report) if item.ValueType == "TEXT"]
        numbers.add(report.DeviceSerialNumber)
    assert [len(number) for number in numbers] == [64, 64]


@pytest.mark.parametrize(
    "corrected", [{"PatientID": "P2"}, {"PatientName": "B^C"}, {"StudyInstanceUID": "1.2.4"}, {"AccessionNumber": "7"}]
)
def test_results_of_an_image_whose_patient_was_corrected_are_other_objects(source, files, tmp_path, corrected):
    """An archive that knows their UIDs would keep those of the wrong patient, or replace them unseen."""
    film = radiograph(tmp_path / "a.dcm", **corrected)
    written, _ = write_dicom_results(film, positive(), KINDS, tmp_path / "results", ALGORITHM)
    for kind in KINDS:
        result, before = pydicom.dcmread(written[kind]), pydicom.dcmread(files[kind])
        for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
            assert result[keyword].value != before[keyword].value


def test_what_a_new_outcome_does_not_have_is_removed(source, tmp_path):
    write_dicom_results(source, positive(), KINDS, tmp_path, ALGORITHM)
    write_dicom_results(source, negative(), KINDS, tmp_path, ALGORITHM)
    assert [path.name for path in tmp_path.iterdir()] == ["sr.dcm"]


def test_dates_are_the_radiographs(tmp_path):
    film = radiograph(
        tmp_path / "a.dcm", AcquisitionDate="20200229", AcquisitionTime="101112", ContentDate="2020-02-29"
    )
    written, _ = write_dicom_results(film, positive(), KINDS, tmp_path, ALGORITHM)
    for kind in ("seg", "sr", "capture"):
        result = pydicom.dcmread(written[kind])
        assert (result.ContentDate, result.ContentTime) == ("20200229", "101112")
    assert pydicom.dcmread(written["presentation"]).PresentationCreationDate == "20200229"


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        *(("PatientBirthDate", value) for value in ("19500230", "19500101-19500102")),
        *(("StudyDate", value) for value in ("00000101", "20200101-", "20201301")),
        *(("StudyTime", value) for value in ("1200-1300", "236060")),
        ("PixelSpacing", [1e300, 1e300]),
    ],
)
def test_a_value_that_cannot_be_is_left_out(tmp_path, keyword, value):
    film = radiograph(tmp_path / "a.dcm", **{keyword: value})
    assert dicom.read(film).pixel_spacing == (None if keyword == "PixelSpacing" else (0.139, 0.139))
    written, _ = write_dicom_results(film, positive(), KINDS, tmp_path, ALGORITHM)
    assert tuple(written) == KINDS
    assert all(not pydicom.dcmread(path).get(keyword) for path in written.values())


# Which there cannot be


def test_what_nobody_foresaw_costs_the_file_and_quotes_nothing(source, tmp_path):
    with pytest.raises(InputError, match=r"^no DICOM results can be made of a\.dcm \(ValueError\)\.$"):
        write_dicom_results(source, ImageOutcome(outlined(), float("inf")), ["sr"], tmp_path, ALGORITHM)


def test_a_mask_of_another_size_is_refused(source, tmp_path):
    with pytest.raises(InputError, match="the radiograph has 91 x 75 pixels and its mask 75 x 91"):
        write_dicom_results(source, ImageOutcome(outlined().T.copy(), 0.9), ["sr"], tmp_path, ALGORITHM)


@pytest.mark.parametrize(
    ("keyword", "words"),
    [("StudyInstanceUID", "Study Instance UID"), ("SeriesInstanceUID", "Series Instance UID")],
)
def test_a_radiograph_that_results_cannot_refer_to_has_none(tmp_path, keyword, words):
    film = radiograph(tmp_path / "a.dcm", **{keyword: None})
    written, reasons = write_dicom_results(film, positive(), KINDS, tmp_path / "results", ALGORITHM)
    assert not written
    assert list(reasons) == list(KINDS)
    assert f"a.dcm has no DICOM results: it has no usable {words}" in reasons["sr"]
    assert not (tmp_path / "results").exists()


def test_a_picture_has_no_results(tmp_path):
    path = tmp_path / "film.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    written, reasons = write_dicom_results(path, positive(), ["sr"], tmp_path, ALGORITHM)
    assert not written
    assert "not a DICOM file" in reasons["sr"]


@pytest.mark.parametrize("case", ["RGB", "palette"])
def test_a_radiograph_in_colour_has_all_but_a_presentation_state(tmp_path, case):
    film = odd_radiographs(tmp_path / "in")[case]
    written, reasons = write_dicom_results(film, positive(), KINDS, tmp_path, ALGORITHM)
    assert list(written) == ["seg", "sr", "capture"]
    assert list(reasons) == ["presentation"]
    assert "no presentation: it is stored in colour" in reasons["presentation"]


def test_a_full_disk_leaves_no_half_file(source, tmp_path):
    """A result that does not fit: here no file may have more than 4 kB. The file of before stays."""
    write_dicom_results(source, positive(), KINDS, tmp_path, ALGORITHM)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_dicom_results(source, positive(), KINDS, tmp_path, ALGORITHM)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_kinds_are_named_in_any_order():
    assert kinds("sr, SEG") == ("seg", "sr")
    with pytest.raises(
        Exception, match="'report' is no kind of DICOM result; there are seg, sr, presentation, capture"
    ):
        kinds("seg,report")


def test_a_missing_library_is_named_with_the_way_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(InputError, match=r"pip install 'jaxpneumo\[dicom\]'"):
        check_installed()
