"""How a film lies and what it shows by its header: orientation, raw values, and views that other elements tell."""

import re

import numpy as np
import pydicom
import pytest
from preparing import three_files
from pydicom.dataset import Dataset
from pydicom.sr._snomed_dict import mapping
from pydicom.sr.codedict import CONCEPTS

from jaxpneumo.data import finder
from jaxpneumo.dicom import dicom, projection
from jaxpneumo.dicom.frontal import doubts, not_frontal
from jaxpneumo.predict.certainty import Bands
from jaxpneumo.predict.finding import BY_CONVENTION, make_finding, side_of
from jaxpneumo.predict.native import NativeMask
from jaxpneumo.predict.reading import Reading, read_ahead
from jaxpneumo.run.config import Predict
from jaxpneumo.serve.accepted import RADIOGRAPHS

IMAGE = np.arange(400, dtype=np.uint8).reshape(20, 20)
RAW_CLASS = "1.2.840.10008.5.1.4.1.1.1.1.1"
LEFT_LATERAL = "399173006", "R-10236"
IGNORED = "Patient Orientation is not a pair of directions such as L and F; it is ignored"
AS_IT_LIES = "Patient Orientation is not that of an upright frontal view; the picture is used as it lies"


@pytest.fixture
def film(tmp_path):
    """Writes a PA film with other header values, in the form that devices give them."""

    def write(name="film.dcm", **elements) -> dicom.Radiograph:
        dicom.write(tmp_path / name, IMAGE, f"1.2.{len(list(tmp_path.iterdir()))}", view="PA")
        file = pydicom.dcmread(tmp_path / name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pydicom.config.settings, "writing_validation_mode", pydicom.config.IGNORE)
            patch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.IGNORE)
            for keyword, value in {"SpecificCharacterSet": "ISO_IR 192", **elements}.items():
                setattr(file, keyword, value)
            file.save_as(tmp_path / name)
        return dicom.read(tmp_path / name)

    return write


def code(value="", meaning="", scheme="SCT"):
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return [item]


def side_of_the_left_half(radiograph):
    mask = np.zeros((20, 20), bool)
    mask[:, :9] = True
    return side_of(mask, radiograph.leads_to, radiograph.view, radiograph.orientation)


ORDINARY = [
    {},
    {"ViewPosition": "AP"},
    {"ViewPosition": ""},
    {"ViewPosition": "", "BodyPartExamined": ""},
    *({"PatientOrientation": each} for each in (["L", "F"], ["R", "F"], ["LH", "FL"], ["L", "FP"], ["LP", "F"])),
    *({"PatientOrientation": each} for each in (["l", "f"], [" L", "F "], ["L", ""], "", ["", ""])),
    {"PresentationIntentType": "FOR PRESENTATION", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1"},
    *(
        {"ViewPosition": "", "SeriesDescription": each}
        for each in (
            *(
                "",
                "Chest",
                "CHEST PA",
                "Chest AP portable",
                "Thorax p.a.",
                "Thorax ap liegend",
                "RX TORACE PA",
                "Tórax",
            ),
            *("W Chest P.A. and lateral", "Thorax pa + seitlich", "Thorax face et profil", "Tórax frente y perfil"),
            *(
                "CHEST PA/LAT",
                "CHEST 2 VIEWS",
                "Thorax in 2 Ebenen",
                "PALAT",
                "Torace PA e LL",
                "胸部正侧位",
                "胸部正面",
            ),
            *("Bilateral ribs", "bi-lateral hand", "Chest left", "left side", "Thorax links", "CHEST LAT DECUB"),
            *(
                "AP lateral decubitus",
                "LLD",
                "Laterality L",
                "latex allergy",
                "flat panel",
                "左側",
                "collateral",
                "Plate 2",
            ),
        )
    ),
    {"ProtocolName": "CHEST LATERAL", "ViewPosition": "PA"},
    {"StudyDescription": "CHEST LATERAL", "ViewPosition": ""},
    {"BodyPartExamined": "CHEST LAT", "ViewPosition": "AP"},
    {"BodyPartExamined": "CHEST BILATERAL", "ViewPosition": ""},
    *({"ViewPosition": "", "ViewCodeSequence": code(each)} for each in ("399348003", "R-10206", "272479007", "1")),
    {"ViewPosition": "PA", "ViewCodeSequence": code("272479007", "postero-anterior")},
    {"ViewPosition": "PA", "ViewCodeSequence": code("99", "Thorax p.a.", "99LOCAL")},
]


@pytest.mark.parametrize("elements", ORDINARY)
def test_ordinary_films_are_not_refused(film, elements):
    assert not_frontal(film(**elements)) == ""


@pytest.mark.parametrize(
    ("orientation", "words"),
    [
        (["A", "F"], "Patient Orientation is A\\F, which no frontal view has"),
        (["P", "F"], "Patient Orientation is P\\F, which no frontal view has"),
        (["PL", "F"], "Patient Orientation is P\\F, which no frontal view has"),
        (["L", "P"], "Patient Orientation is L\\P, which no frontal view has"),
        ("A", "Patient Orientation is A\\, which no frontal view has"),
        (["F", "R"], "Patient Orientation is F\\R, so its picture lies on its side (turn it upright)"),
        (["H", "L"], "Patient Orientation is H\\L, so its picture lies on its side (turn it upright)"),
        (["R", "H"], "Patient Orientation is R\\H, so its picture is upside down (turn it upright)"),
        (["L", "H"], "Patient Orientation is L\\H, so its picture is upside down (turn it upright)"),
    ],
)
@pytest.mark.parametrize("view", ["PA", ""])
def test_a_film_that_does_not_stand_upright_is_refused_in_words(film, orientation, words, view):
    radiograph = film(PatientOrientation=orientation, ViewPosition=view)
    assert not_frontal(radiograph) == words
    assert doubts(radiograph) == (AS_IT_LIES,)


@pytest.mark.parametrize(
    ("values", "directions"),
    [
        ([], ""),
        ([""], ""),
        (["L", "F"], "LF"),
        (["LH", "FL"], "LF"),
        (["l", " fp "], "LF"),
        (["L"], "L?"),
        (["", "F"], "?F"),
        *((each, "") for each in (["1", "0"], ["L", "F", "P"], ["X", "F"], ["L", "R"], ["F", "H"], ["LR", "F"])),
        *((each, "") for each in (["HEAD", "LEFT"], ["LL", "F"], ["L/F"], ["None"])),
    ],
)
def test_the_first_letter_is_the_main_direction_and_what_makes_no_sense_is_none(values, directions):
    assert projection.main_directions(values) == directions


@pytest.mark.parametrize("value", [["1", "0"], ["L", "F", "P"], ["L", "R"], "1.0\\0.0"])
def test_an_orientation_that_makes_no_sense_is_ignored_and_remarked(film, value):
    radiograph = film(PatientOrientation=value)
    assert (radiograph.remarks, not_frontal(radiograph)) == ((IGNORED,), "")
    assert side_of_the_left_half(radiograph) == ("right", BY_CONVENTION)


@pytest.mark.parametrize(
    ("orientation", "side"),
    [
        (["L", "F"], "right"),
        (["R", "F"], "left"),
        (["R", "H"], "left"),  # upside down: its rows still lead to the right
        *((each, None) for each in (["F", "R"], ["H", "L"], ["A", "F"], ["R", ""], ["", "F"])),
    ],
)
def test_where_there_is_an_orientation_no_side_follows_the_convention(film, orientation, side):
    assert side_of_the_left_half(film(PatientOrientation=orientation)) == (side, "")


def test_any_image_takes_a_film_as_it_lies_and_says_so(film, tmp_path):
    film("lies.dcm", PatientOrientation=["F", "R"])
    film("raw.dcm", PresentationIntentType="FOR PROCESSING")
    film("stands.dcm", PatientOrientation=["L", "F"])
    sources = finder.find(tmp_path).sources
    reasons = {each.source: each.reason for each in read_ahead(Reading(tmp_path, 16), sources)}
    way = "not a frontal chest radiograph: "
    assert reasons == {
        "lies.dcm": f"{way}Patient Orientation is F\\R, so its picture lies on its side (turn it upright)",
        "raw.dcm": f"{way}Presentation Intent Type is FOR PROCESSING: raw values of a detector, not a film (give the "
        "image FOR PRESENTATION)",
        "stands.dcm": "",
    }
    taken = {
        each.source: (each.reason, each.remarks) for each in read_ahead(Reading(tmp_path, 16, any_image=True), sources)
    }
    assert taken == {
        "lies.dcm": ("", (AS_IT_LIES,)),
        "raw.dcm": ("", ("Presentation Intent Type is FOR PROCESSING; the raw values are used as they are",)),
        "stands.dcm": ("", ()),
    }


def test_a_finding_in_it_has_no_side(film, tmp_path):
    film("lies.dcm", PatientOrientation=["F", "R"])
    film("stands.dcm", PatientOrientation="")
    half = np.zeros((20, 20), bool)
    half[:, :9] = True
    settings = Predict(size=16, batch_size=1, tta=False, threshold=0.5, removal_threshold=0)
    sides = {}
    for picture in read_ahead(Reading(tmp_path, 16, any_image=True), ["lies.dcm", "stands.dcm"]):
        mask = NativeMask(np.packbits(half, axis=-1), 20, 20, int(half.sum()))
        finding = make_finding(picture, mask, 0.9, settings, Bands(0.2, 0.8))
        sides[picture.source] = finding.side, finding.remarks
    assert sides == {"lies.dcm": (None, (AS_IT_LIES,)), "stands.dcm": ("right", (BY_CONVENTION,))}


@pytest.mark.parametrize("view", ["PA", ""])
@pytest.mark.parametrize(
    "elements",
    [
        {"PresentationIntentType": "FOR PROCESSING"},
        {"PresentationIntentType": "for processing ", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1"},
        {"SOPClassUID": RAW_CLASS},
        {"SOPClassUID": RAW_CLASS, "PresentationIntentType": "FOR PRESENTATION"},
    ],
)
def test_raw_values_of_a_detector_are_no_film(film, elements, view):
    assert "FOR PROCESSING: raw values of a detector, not a film" in not_frontal(film(ViewPosition=view, **elements))


def test_the_listener_still_takes_them_and_keeps_them_aside_as_it_keeps_laterals():
    """Modalities show an error where an object is refused; `record.json` in spool/aside says why it has no result."""
    assert RAW_CLASS in RADIOGRAPHS


LATERALS = [
    *("Chest LAT", "CHEST LATERAL", "Thorax seitlich", "THORAX SEITL.", "Thorax seitl. li.", "CHEST PROFIL"),
    *("Thorax de profil", "Thorax profil gauche", "TORAX LATERALE", "Torace LL", "latero-laterale", "TÓRAX PERFIL"),
    *("Thorax latéral", "thorax lateraal", "Chest_LAT_erect", "W Chest Lat.", "LLAT", "L LAT CHEST", "klp boczne"),
    *("ОГК боковая", "胸部側面", "胸部侧位", "Chest LAT bilateral", "CHEST OBL", "Chest oblique", "CHEST LAT 1"),
]


@pytest.mark.parametrize("text", LATERALS)
@pytest.mark.parametrize(
    ("keyword", "words"),
    [
        ("SeriesDescription", "Series Description"),
        ("ProtocolName", "Protocol Name"),
        ("AcquisitionDeviceProcessingDescription", "Acquisition Device Processing Description"),
    ],
)
def test_without_a_view_a_lateral_is_known_by_the_words_of_other_elements(film, text, keyword, words):
    """They are free texts, so the message names the element and does not quote it."""
    elements = {"ViewPosition": "", keyword: text}
    assert not_frontal(film(**elements)) == f"{words} names a lateral or oblique view"


@pytest.mark.parametrize("text", ["THORAX SEITL", "CHEST PROFIL", "TORAX LATERALE", "CHEST LAT", "THORAX LL"])
def test_and_by_the_body_part(film, text):
    assert not_frontal(film(ViewPosition="", BodyPartExamined=text)) == f"Body Part Examined is {text}"


def test_several_elements_are_named_together(film):
    elements = {"ViewPosition": "", "SeriesDescription": "Chest LAT", "ProtocolName": "Thorax seitl."}
    assert not_frontal(film(**elements)) == "Series Description and Protocol Name name a lateral or oblique view"


@pytest.mark.parametrize("value", [*LEFT_LATERAL, "399198007", "R-10232", "399067008", "G-5223", "399182000"])
def test_view_codes_without_a_meaning(film, value):
    assert not_frontal(film(ViewPosition="", ViewCodeSequence=code(value))) == (
        "View Code Sequence names a lateral or oblique view"
    )


def test_the_codes_are_those_of_the_dictionary():
    """Each is there as SNOMED CT and as SNOMED RT, and is what pydicom calls it."""
    codes = {*projection._LATERAL_CODES, *projection._FRONTAL_CODES}
    new = {code for code in codes if code.isdigit()}
    assert {mapping["SRT"][code] for code in codes - new} == new
    names = [(code, name) for found in CONCEPTS["SCT"].values() for code, (name, _) in found.items() if code in new]
    assert {code for code, _ in names} == new
    assert {code for code, name in names if re.search("later|obli", name.lower())} == new & projection._LATERAL_CODES


@pytest.mark.parametrize(("value", "view"), [("272479007", "PA"), ("R-10206", "AP"), ("399033003", "FRONTAL")])
def test_a_frontal_code_says_the_view_where_it_has_no_meaning(film, value, view):
    radiograph = film(ViewPosition="", ViewCodeSequence=code(value))
    assert (radiograph.view, not_frontal(radiograph, strict=True)) == (view, "")


@pytest.mark.parametrize("view", ["PA", "AP"])
@pytest.mark.parametrize(
    "item",
    [
        *(code(each, "left lateral") for each in LEFT_LATERAL),
        code("R-10236"),
        code("R-10236", "postero-anterior"),
        code("272479007", "lateral"),
        code("T1", "Thorax seitlich", "99LOCAL"),
    ],
)
def test_where_view_position_and_view_code_differ_the_film_is_not_certain_to_be_frontal(film, view, item):
    assert not_frontal(film(ViewPosition=view, ViewCodeSequence=item)) == (
        f"View Position is {view}, but View Code Sequence names a lateral or oblique view"
    )


@pytest.mark.parametrize(
    ("elements", "remark"),
    [
        ({"ViewPosition": "PA", "SeriesDescription": "Chest PA"}, ""),
        ({"ViewPosition": "PA", "SeriesDescription": "Chest PA and LAT"}, ""),
        ({"ViewPosition": "", "SeriesDescription": "Chest PA"}, ""),
        (
            {"ViewPosition": "PA", "SeriesDescription": "Chest LAT"},
            "View Position names a frontal view and Series Description a lateral or oblique one; it is read as frontal",
        ),
        (
            {"ViewPosition": "AP", "BodyPartExamined": "CHEST LAT"},
            "View Position names a frontal view and Body Part Examined a lateral or oblique one; it is read as frontal",
        ),
        (
            {"ViewPosition": "", "ProtocolName": "Chest PA and LAT"},
            "Protocol Name may name a lateral view, and View Position says nothing; it is read as frontal",
        ),
        (
            {"ViewPosition": "", "SeriesDescription": "CHEST LAT DECUB"},
            "Series Description may name a lateral view, and View Position says nothing; it is read as frontal",
        ),
    ],
)
def test_a_film_that_may_be_a_lateral_is_never_predicted_without_a_word(film, elements, remark):
    radiograph = film(**elements)
    assert (not_frontal(radiograph), doubts(radiograph)) == ("", (remark,) if remark else ())


def test_prepare_sets_them_aside_where_frontal_views_are_asked_for_and_else_says_how_they_are_used(tmp_path, capsys):
    files = three_files(tmp_path)
    path = files.add("1.9", seed=9, view="PA")
    file = pydicom.dcmread(path)
    file.PatientOrientation = ["F", "R"]
    file.save_as(path)
    assert files.run() == 0
    assert f"{AS_IT_LIES}: study4/1.9.dcm." in capsys.readouterr().err
    files.output = tmp_path / "frontal"
    assert files.run("--require-frontal") == 3
    details = {entry["ImageId"]: entry["detail"] for entry in files.quarantine()}
    assert details["1.9"] == "Patient Orientation is F\\R, so its picture lies on its side (turn it upright)."
