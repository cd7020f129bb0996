"""Brings what tables and headers say about patients into one form: ids that name nobody, sex, age and view."""

import re
from collections import Counter
from collections.abc import Callable, Sequence

MAX_AGE = 120  # years; ChestX-ray14's table has ages up to 414, which are mistakes
ONE_FOR_ALL = 0.9  # share of the images from which on one id is no patient,
MANY = 12  # and how many they must be: fewer may well be one patient's
NOBODY = "anonymous"  # stands for every word below
_NOBODY = (
    *("anon", "anonym", "anonymous", "anonymised", "anonymized", "anonymisiert", "anonymouspatient", "deidentified"),
    *("deid", "blank", "dummy", "empty", "hidden", "masked", "na", "nan", "nil", "noid", "noname", "none", "nopatient"),
    *("notavailable", "notknown", "null", "patient", "patientid", "redacted", "removed", "unbekannt", "undefined"),
    *("unk", "unknown", "unknownpatient"),
)
_SEXES = {
    "F": ("F", "FEMALE", "W", "WOMAN", "WEIBLICH"),
    "M": ("M", "MALE", "MAN", "MÄNNLICH", "MAENNLICH"),
    "O": ("O", "OTHER"),
    "": ("", "U", "UNK", "UNKNOWN", "NA", "N/A", "NAN", "NONE"),
}
_VIEWS = {"POSTEROANTERIOR": "PA", "PA": "PA", "ANTEROPOSTERIOR": "AP", "AP": "AP"}


def name(patient: str) -> str:
    """A patient's id, but NOBODY for a placeholder of a removed id, and "0" for zeros."""
    letters = "".join(filter(str.isalnum, patient.casefold()))
    if patient and (letters in _NOBODY or re.fullmatch("x*", letters)):
        return NOBODY
    return "0" if re.fullmatch("0+", patient) else patient


def believe(ids: Sequence[str], stored: Callable[[str], str] = str) -> tuple[list[str], str]:
    """Replaces ids that name no patient by ""; also returns the reason, in words.

    Three kinds of id name no patient: a word such as "ANONYMOUS"; 0, unless the patients are numbered from 0; and one
    id that all or nearly all of many images have.

    Args:
      ids: one an image, as `name` and then `stored` give them; "" where unknown.
      stored: what is kept in place of an id, such as its pseudonym.
    """
    told, count = Counter(filter(None, ids)), len(ids)
    counted = any(stored("1".zfill(digits)) in told for digits in range(1, 9))
    nobody = {stored(word) for word in (NOBODY, *([] if counted else ["0"]))}
    top, times = max(told.items(), key=lambda item: item[1], default=("", 0))
    if times >= max(MANY, ONE_FOR_ALL * count):
        nobody.add(top)
        problem = f"{times} of {count} images have the same patient id, which therefore names no patient"
    elif times := sum(told[word] for word in nobody):
        problem = f'{times} of {count} images have a placeholder such as "ANONYMOUS" as patient id'
    else:
        problem = ""
    return ["" if each in nobody else each for each in ids], problem


def sex(text: str) -> str | None:
    """ "F", "M", "O", "" for unknown; None for a text that is none of them."""
    return next((code for code, words in _SEXES.items() if text.strip().upper() in words), None)


def view(text: str) -> str:
    """A view in upper case, "PA" and "AP" also where they are spelt out; "" where unknown."""
    view = text.strip().upper()
    return _VIEWS.get("".join(filter(str.isalpha, view)), view)
