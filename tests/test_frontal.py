"""Frontal chest radiographs: what headers and pictures speak for and against, and in which words."""

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from jaxpneumo.dicom import dicom
from jaxpneumo.dicom.frontal import not_frontal
from jaxpneumo.dicom.radiograph import Radiograph

IMAGE = np.arange(400, dtype=np.uint8).reshape(20, 20)
STORAGE = "1.2.840.10008.5.1.4.1.1."


def against(strict=False, image=IMAGE, **fields):
    return not_frontal(
        Radiograph(image, "1", **({"modality": "CR", "body_part": "CHEST", "view": "PA"} | fields)), strict
    )


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"modality": "DX", "body_part": "", "view": "AP"},
        *({"modality": each} for each in ("DR", "RG", "X-RAY")),
        *({"body_part": each} for each in ("THORAX", "CHEST PA", "THORAX AP", "LUNG", "PORT CHEST", "CHEST_PORTABLE")),
        *({"body_part": each} for each in ("TÓRAX", "UNKNOWN", "N/A", "CHEST PA LAT")),
        *(
            {"view": each}
            for each in ("P.A.", "A/P", "PA CHEST", "AP SUPINE", "FRONTAL", "POSTERO-ANTERIOR", "AP AXIAL")
        ),
        *({"sop_class": STORAGE + each} for each in ("7", "1", "1.1", "7.2")),
    ],
)
def test_frontal_chest_radiographs_in_the_words_of_many_devices(fields, strict):
    assert against(strict, **fields) == ""


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        *(
            ({"modality": each}, f"Modality is {each}")
            for each in ("US", "CT", "MR", "MG", "PT", "NM", "XA", "ES", "IO")
        ),
        *(({"body_part": each}, f"Body Part Examined is {each}") for each in ("HAND", "ABDOMEN", "SKULL", "BREAST")),
        *(({"body_part": each}, f"Body Part Examined is {each}") for each in ("THORACIC SPINE", "TSPINE")),
        *(({"view": each}, f"View Position is {each}") for each in ("LL", "RL", "LATERAL", "LLD", "RLD", "RAO", "CC")),
        *(
            ({"view": each}, f"View Position is {each}")
            for each in ("AP LLD", "LEFT LATERAL", "PA OBLIQUE", "X-LATERAL")
        ),
        ({"sop_class": STORAGE + "2"}, "SOP Class is of CT"),
        ({"sop_class": STORAGE + "6.1"}, "SOP Class is of ultrasound"),
        ({"sop_class": STORAGE + "1.2.1"}, "SOP Class is of mammography"),
        ({"modality": "US", "view": "LL"}, "Modality is US, View Position is LL"),
        ({"image": IMAGE[:6]}, "its picture has 6 rows and 20 columns"),
        ({"image": np.full((20, 20), 7, np.uint8)}, "all its pixels are equal"),
    ],
)
def test_other_pictures_are_named(fields, words, strict):
    assert against(strict, **fields) == words


def test_silence_is_refused_only_where_the_header_must_say_it():
    silent = {"modality": "", "body_part": "", "view": ""}
    assert against(**silent) == ""
    assert against(True, **silent) == "Modality is missing, View Position is missing"
    for fields in ({"modality": "OT"}, {"view": "PORTABLE"}, {"view": "ERECT PORTABLE"}):
        assert against(**fields) == ""
        assert against(True, **fields) != ""


def test_a_lateral_examination_without_view_is_refused():
    assert against(body_part="CHEST LAT", view="") == "Body Part Examined is CHEST LAT"


def test_values_in_messages_are_short_and_printable():
    assert against(view="LL\x00\x1b" + "X" * 200) == "View Position is LL??XXXXXXXXXXXXXXXXX..."


def test_view_code_and_sop_class_are_read_from_files(tmp_path):
    """The view may stand in a code sequence alone, as in Digital X-Ray objects."""
    dicom.write(tmp_path / "a.dcm", IMAGE, "1.2.3")
    file = pydicom.dcmread(tmp_path / "a.dcm")
    for meaning, view, words in (
        ("postero-anterior", "PA", ""),
        ("antero-posterior", "AP", ""),
        ("left lateral", "LEFT LATERAL", "View Position is LEFT LATERAL"),
    ):
        item = Dataset()
        item.CodeMeaning = meaning
        file.ViewCodeSequence = [item]
        file.save_as(tmp_path / "b.dcm")
        radiograph = dicom.read(tmp_path / "b.dcm")
        assert (radiograph.view, not_frontal(radiograph)) == (view, words)
    del file.ViewCodeSequence
    file.SOPClassUID = STORAGE + "2"
    file.save_as(tmp_path / "b.dcm")
    assert not_frontal(dicom.read(tmp_path / "b.dcm")) == "SOP Class is of CT"
