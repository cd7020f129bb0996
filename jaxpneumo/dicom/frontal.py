"""Decides from header and picture whether a file can be a frontal radiograph of the chest.

Header values may be the standard's terms (DICOM PS3.3 C.7.3.1.1.1, PS3.16 annex L) or free text of devices and people:
"CHEST PA", "PORT CHEST", "P.A.", "postero-anterior". From the picture only two certain signs are used: a shape that no
chest radiograph has, and equal pixels. A frontal view that lies on its side or upside down, and raw values of a
detector, are none either: a network is trained on films as they are read.
"""

import re

from jaxpneumo.dicom import projection
from jaxpneumo.dicom.projection import EITHER, LATERAL
from jaxpneumo.dicom.radiograph import Radiograph

PLAIN = ("CR", "DX", "DR", "RG", "XR", "XRAY", "CXR")
# Values that do not tell how a picture was made; fluoroscopy takes single pictures too.
ANY_MODALITY = ("", "OT", "SC", "RF", "UNKNOWN", "NONE", "NA")
CHEST = re.compile(r"CHEST|THORA[CX]|T[OÓ]RA[CX]|LUNG|PULMO|CXR|BRUSTKORB|POITRINE|PECHO|胸|ГРУД")
SPINE = re.compile(r"SPINE|LUMB|VERTEB|COLUM")
ANY_PART = ("", "UNKNOWN", "OTHER", "UNDEFINED", "UNSPECIFIED", "NONE", "NA", "DEFAULT")
FRONTAL = re.compile(r"PA|AP|FRONTAL|(POSTERO|ANTERO)(ANTERIOR|POSTERIOR)")
# Values for the position of the patient, and empty ones, do not tell the direction of the rays.
ANY_VIEW = {"", "SUPINE", "ERECT", "UPRIGHT", "STANDING", "SITTING", "PORTABLE", "MOBILE", "BEDSIDE", "BED", "CHEST"}
ANY_VIEW |= {"THORAX", "LUNG", "UNKNOWN", "OTHER", "NONE", "NA"}
SIDE = re.compile(r"[LR]{0,2}LAT[LR]?|[LR]LD?|[LR][AP]O|OBL|SWIMMERS|LATERO|.*((?<!BI)LATERAL|OBLIQUE|DECUB).*")
ROOT = "1.2.840.10008.5.1.4.1.1."
# Of other pictures, by the SOP class's first numbers below ROOT (DICOM PS3.4 B.5)
CLASSES = {
    **{"1.2": "mammography", "1.3": "dental", "2": "CT", "3": "ultrasound", "4": "MR", "6": "ultrasound"},
    **{"12.1": "angiography", "13": "tomography", "20": "nuclear medicine", "30": "PET", "66": "segmentation"},
    **{"77": "photograph", "128": "PET", "130": "PET", "481": "radiotherapy"},
}
RAW = ROOT + "1.1.1"  # Digital X-Ray Image Storage - For Processing; the one For Presentation is 1.1
MAX_RATIO = 3.0  # of the longer side to the shorter
SHOWN = 24  # characters of a header's value


def not_frontal(radiograph: Radiograph, strict: bool = False) -> str:
    """The reasons why this is not a frontal chest radiograph, each with element and value; "" if there are none.

    Args:
      radiograph: with its header's values; a PNG or JPEG has none.
      strict: whether Modality and View Position must say what it is; otherwise they may be empty.
    """
    modality = re.sub(r"[^A-Z0-9]", "", radiograph.modality)
    part, words = radiograph.body_part, _words(radiograph.body_part)
    wrong = []
    if modality not in PLAIN and (strict or modality not in ANY_MODALITY):
        wrong.append(f"Modality is {_shown(radiograph.modality)}")
    elif kind := _other_class(radiograph.sop_class):
        wrong.append(f"SOP Class is of {kind}")
    if raw := _raw(radiograph):
        wrong.append(f"{raw}: raw values of a detector, not a film (give the image FOR PRESENTATION)")
    other = not CHEST.search(part) or SPINE.search(part)
    # "CHEST PA LAT" is the name of an examination with a picture of each.
    lateral = _says(SIDE, words) or projection.of_text(part) == LATERAL
    lateral = lateral and not _says(FRONTAL, words) and not _says_frontal(radiograph)
    if (other and re.sub(r"\W", "", part) not in ANY_PART) or lateral:
        wrong.append(f"Body Part Examined is {_shown(part)}")
    wrong += [reason for reason in (_other_view(radiograph, strict), _other_orientation(radiograph)) if reason]
    height, width = radiograph.image.shape
    if max(height, width) > MAX_RATIO * min(height, width):
        wrong.append(f"its picture has {height} rows and {width} columns")
    elif radiograph.image.min() == radiograph.image.max():
        wrong.append("all its pixels are equal")
    return ", ".join(wrong)


def doubts(radiograph: Radiograph) -> tuple[str, ...]:
    """Sentences about what speaks against a picture that is used all the same, for `Radiograph.remarks`."""
    says, found = _says_frontal(radiograph), []
    if _other_orientation(radiograph):
        found.append("Patient Orientation is not that of an upright frontal view; the picture is used as it lies")
    if raw := _raw(radiograph):
        found.append(f"{raw}; the raw values are used as they are")
    for element, kind in (("Body Part Examined", projection.of_text(radiograph.body_part)), *radiograph.named):
        if says and kind == LATERAL:
            found.append(
                f"View Position names a frontal view and {element} a lateral or oblique one; it is read as frontal"
            )
        elif kind == EITHER and not says and not _other_view(radiograph):
            found.append(f"{element} may name a lateral view, and View Position says nothing; it is read as frontal")
    return tuple(found)


def _says_frontal(radiograph: Radiograph) -> bool:
    """Whether View Position, or the view's code where it is empty, names a frontal view."""
    return _says(FRONTAL, _words(radiograph.view))


def _other_view(radiograph: Radiograph, strict: bool = False) -> str:
    """Why the view is not certain to be frontal; "" where nothing speaks against it.

    That is for View Position and View Code Sequence to say, and for other elements only where they do not.
    """
    view, says = _words(radiograph.view), _says_frontal(radiograph)
    silent = view[-1] in ANY_VIEW or ANY_VIEW.issuperset(view[:-1])
    if _says(SIDE, view) or not (says or (silent and not strict)):
        return f"View Position is {_shown(radiograph.view)}"
    if radiograph.view_code == LATERAL:
        code = "View Code Sequence names a lateral or oblique view"
        return f"View Position is {_shown(radiograph.view)}, but {code}" if says else code
    told = [element for element, kind in radiograph.named if kind == LATERAL and not says]
    return f"{' and '.join(told)} {'name' if told[1:] else 'names'} a lateral or oblique view" if told else ""


def _other_orientation(radiograph: Radiograph) -> str:
    """Why Patient Orientation is not that of an upright frontal view: rows to a side, columns to the feet; or ""."""
    if not radiograph.orientation:
        return ""
    rows, columns = radiograph.orientation
    shown = f"Patient Orientation is {rows}\\{columns}".replace(projection.UNKNOWN, "")
    if rows in "AP" or columns in "AP":
        return f"{shown}, which no frontal view has"
    if rows in "FH" or columns in "LR":
        return f"{shown}, so its picture lies on its side (turn it upright)"
    return f"{shown}, so its picture is upside down (turn it upright)" if columns == "H" else ""


def _raw(radiograph: Radiograph) -> str:
    """What says that these are raw values of a detector, which are not for people to see (DICOM PS3.3 A.26); or ""."""
    if "PROCESSING" in radiograph.intent:
        return "Presentation Intent Type is FOR PROCESSING"
    return "SOP Class is of images FOR PROCESSING" if radiograph.sop_class == RAW else ""


def _words(text: str) -> list[str]:
    """The words of a value, and all of it as one word: "P.A." and "POSTERO ANTERIOR" are one."""
    words = re.findall(r"[^\W_]+", text)
    return [*words, "".join(words)]


def _says(what: re.Pattern, words: list[str]) -> bool:
    return any(map(what.fullmatch, words))


def _other_class(sop_class: str) -> str:
    """What other kind of picture a SOP class is of; "" for radiographs, Secondary Capture and unknown ones."""
    first, _, rest = sop_class.removeprefix(ROOT).partition(".")
    below = f"{first}.{rest.split('.')[0]}"
    return CLASSES.get(first) or CLASSES.get(below, "") if sop_class.startswith(ROOT) else ""


def _shown(value: str) -> str:
    """A header's value for a message: it may hold anything."""
    short = value if len(value) <= SHOWN else f"{value[: SHOWN - 3]}..."
    return "".join(each if each.isprintable() else "?" for each in short) or "missing"
