"""Decides from header and picture whether a file can be a frontal radiograph of the chest.

Header values may be the standard's terms (DICOM PS3.3 C.7.3.1.1.1, PS3.16 annex L) or free text of devices and people:
"CHEST PA", "PORT CHEST", "P.A.", "postero-anterior". From the picture only two certain signs are used: a shape that no
chest radiograph has, and equal pixels.
"""

import re

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
SIDE = re.compile(r"[LR]{0,2}LAT[LR]?|[LR]LD?|[LR][AP]O|OBL|SWIMMERS|LATERO|.*(LATERAL|OBLIQUE|DECUB).*")
ROOT = "1.2.840.10008.5.1.4.1.1."
# Of other pictures, by the SOP class's first numbers below ROOT (DICOM PS3.4 B.5)
CLASSES = {
    **{"1.2": "mammography", "1.3": "dental", "2": "CT", "3": "ultrasound", "4": "MR", "6": "ultrasound"},
    **{"12.1": "angiography", "13": "tomography", "20": "nuclear medicine", "30": "PET", "66": "segmentation"},
    **{"77": "photograph", "128": "PET", "130": "PET", "481": "radiotherapy"},
}
MAX_RATIO = 3.0  # of the longer side to the shorter
SHOWN = 24  # characters of a header's value


def not_frontal(radiograph: Radiograph, strict: bool = False) -> str:
    """The reasons why this is not a frontal chest radiograph, each with element and value; "" if there are none.

    Args:
      radiograph: with its header's values; a PNG or JPEG has none.
      strict: whether Modality and View Position must say what it is; otherwise they may be empty.
    """
    modality = re.sub(r"[^A-Z0-9]", "", radiograph.modality)
    part, view = radiograph.body_part, _words(radiograph.view)
    says, side = _says(FRONTAL, view), _says(SIDE, view)
    wrong = []
    if modality not in PLAIN and (strict or modality not in ANY_MODALITY):
        wrong.append(f"Modality is {_shown(radiograph.modality)}")
    elif kind := _other_class(radiograph.sop_class):
        wrong.append(f"SOP Class is of {kind}")
    other = not CHEST.search(part) or SPINE.search(part)
    # "CHEST PA LAT" is the name of an examination with a picture of each.
    lateral = not says and _says(SIDE, _words(part)) and not _says(FRONTAL, _words(part))
    if (other and re.sub(r"\W", "", part) not in ANY_PART) or lateral:
        wrong.append(f"Body Part Examined is {_shown(part)}")
    silent = view[-1] in ANY_VIEW or ANY_VIEW.issuperset(view[:-1])
    if side or not (says or (silent and not strict)):
        wrong.append(f"View Position is {_shown(radiograph.view)}")
    height, width = radiograph.image.shape
    if max(height, width) > MAX_RATIO * min(height, width):
        wrong.append(f"its picture has {height} rows and {width} columns")
    elif radiograph.image.min() == radiograph.image.max():
        wrong.append("all its pixels are equal")
    return ", ".join(wrong)


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
