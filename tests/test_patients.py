"""Who is nobody, and how sex, age and view are read from tables and headers."""

import pytest

from jaxpneumo.dicom import patients
from jaxpneumo.dicom.radiograph import header_fields

HEADER = dict.fromkeys(("uid", "patient_id", "sex", "age", "view", "derivation", "modality", "body_part"), "")


def header(**fields):
    return header_fields(**HEADER | fields, pixel_spacing=[])


@pytest.mark.parametrize(
    "word",
    [
        *(
            "ANONYMOUS",
            "Anonymized",
            "anon",
            "Unknown",
            "none",
            "REMOVED",
            "de-identified",
            "Deidentified",
            "xxx",
            "XXXX",
        ),
        *("[Patient ID]", "no id", "N/A", "---", "ANONYMOUS^PATIENT", "anonymous_patient", "null"),
    ],
)
def test_words_for_nobody(word):
    assert patients.name(word) == patients.NOBODY
    ids = [patients.name(each) for each in (word, "17", "17", "18", "18")]
    assert patients.believe(ids)[0] == ["", "17", "17", "18", "18"]


@pytest.mark.parametrize("name", ["17", "P1", "Xavier", "Anon17", "unknown3", "patient00001", "", "患者", "10"])
def test_names_stay(name):
    assert patients.name(name) == name


def test_zero_is_nobody_unless_patients_are_counted_from_it():
    def believed(*ids):
        return patients.believe([patients.name(each) for each in ids])[0]

    assert believed("0", "7", "7", "8") == ["", "7", "7", "8"]
    assert believed("0000", "7", "7", "8") == ["", "7", "7", "8"]
    assert believed("0", "1", "0", "2") == ["0", "1", "0", "2"]
    assert believed("000", "001", "002", "000") == ["0", "001", "002", "0"]


@pytest.mark.parametrize(
    ("ids", "believed"),
    [
        (["Q"] * 12, False),
        (["Q"] * 11, True),  # so few may well be one patient's
        (["Q"] * 18 + ["a", "b"], False),
        (["Q"] * 17 + ["a", "b", "c"], True),
        (["Q"], True),
    ],
)
def test_one_id_for_nearly_all_is_nobody(ids, believed):
    found, problem = patients.believe(ids)
    assert ("Q" in found) == believed == (problem == "")
    assert [each for each in found if each] == [each for each in ids if believed or each != "Q"]


def test_what_is_stored_in_place_of_an_id_is_told_apart_alike():
    stored = {"anonymous": "f00", "0": "b00", "1": "b01", "17": "c17"}
    ids = [stored[patients.name(each)] for each in ("Anon.", "17", "17", "0")]
    found, problem = patients.believe(ids, lambda name: stored.get(name, name))
    assert found == ["", "c17", "c17", ""]
    assert problem == '2 of 4 images have a placeholder such as "ANONYMOUS" as patient id'


@pytest.mark.parametrize(
    ("text", "sex"),
    [
        *(
            ("F", "F"),
            ("female", "F"),
            (" Female ", "F"),
            ("weiblich", "F"),
            ("M", "M"),
            ("MALE", "M"),
            ("männlich", "M"),
        ),
        *(("O", "O"), ("Other", "O"), ("U", ""), ("unknown", ""), ("", ""), ("1", None), ("X", None), ("FM", None)),
    ],
)
def test_sex(text, sex):
    assert patients.sex(text) == sex
    assert header(sex=text)["sex"] == (sex or "")  # a header is no form to be sent back


@pytest.mark.parametrize(
    ("text", "years"),
    [
        *(("034Y", 34), ("34", 34), ("018M", 1), ("120Y", 120), ("0", 0), ("999W", 19), ("121Y", None)),
        *(
            ("411Y", None),
            ("411", None),
            ("-34Y", None),
            ("+34", None),
            ("\u0663\u0664Y", None),
            ("1_0", None),
            ("old", None),
            ("", None),
        ),
    ],
)
def test_age_of_a_header(text, years):
    assert header(age=text)["age"] == years


@pytest.mark.parametrize(
    ("text", "view"),
    [
        *(("PA", "PA"), ("p.a.", "PA"), ("postero-anterior", "PA"), ("Postero Anterior", "PA"), ("AP", "AP")),
        *(
            ("anteroposterior", "AP"),
            ("ANTERO_POSTERIOR", "AP"),
            ("Frontal", "FRONTAL"),
            ("ll", "LL"),
            ("AP/PA", "AP/PA"),
        ),
    ],
)
def test_view(text, view):
    assert patients.view(text) == view
