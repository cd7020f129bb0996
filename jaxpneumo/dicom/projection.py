"""Which projections words, codes and Patient Orientation name: frontal ones, or lateral and oblique ones.

Words are those of people and devices in many languages: "Chest LAT", "Thorax seitl.", "face + profil", "胸部侧位". They
count as whole words. Codes are those of DICOM PS3.16 CID 4010 and 26, as SNOMED CT and as SNOMED RT.
"""

import re
import unicodedata
from collections.abc import Iterable

FRONTAL, LATERAL, EITHER = "frontal", "lateral", "either"
UNKNOWN = "?"
_FRONTAL_CODES = {
    **dict.fromkeys(("272479007", "R-40888"), "PA"),
    **dict.fromkeys(("399348003", "R-10206"), "AP"),
    **dict.fromkeys(("399033003", "R-10202"), "FRONTAL"),
}
_LATERAL_CODES = {
    *("399067008", "R-102CD", "399173006", "R-10236", "399198007", "R-10232", "399118008", "G-5223"),
    *("399297009", "G-5222", "399352003", "R-10228", "399260004", "R-10224"),
    # oblique ones
    *("399182000", "R-102C1", "399236003", "R-10234", "399184004", "R-10238", "399356000", "R-40985"),
    *("399135007", "R-10220", "399038007", "R-10210", "399006002", "R-10212", "399059000", "R-10216"),
    *("399312000", "R-10208", "399160007", "R-10204", "260427002", "R-40783", "260426006", "R-40782"),
}
# Of words in capitals without accents. "PALAT" is a word of both kinds.
_FRONTAL_WORDS = re.compile(
    r"(PA|AP)(LAT)?\d?|FRONT(AL\w*)?|FACE|FRENTE|FRENTAL|(POSTERO|ANTERO|DORSO|VENTRO)(?!LAT)\w*|ПРЯМ\w*|"
    r".*正[位面侧側].*"
)
_LATERAL_WORDS = re.compile(
    r"([LR]T?|[LR]{2}|X|PA|AP)?LATS?[LR]?\d?|(X|LEFT|RIGHT|LATERO)?LATERAA?L(S|IS|E[MNRS]?|N[AEIY])?|LATERO|LL|RL|"
    r"SEITL(ICH\w*)?|SEITEN(BILD|AUFNAHME|ANSICHT)|PROFILE?|PERFIL|ZIJDELINGS\w*|DWARS\w*|BOK|BOCZN\w*|BOCN\w*|"
    r"БОК|БОКОВ\w*|.*[侧側][位面].*|OBL|OBLIQU\w*"
)
# Lying on a side: a lateral decubitus view is a frontal one.
_LYING = re.compile(r"\w*DECUB\w*|[LR]LD|.*[卧臥].*")
_ONE_WORD = re.compile(r"\b(BI|UNI|IPSI|CONTRA)[\W_]+(?=LAT)")  # "bi-lateral" is no lateral view
_LETTERS = re.compile(r"\b(P\W{0,2}A|A\W{0,2}P)\b")  # "P.A."
_AXES = {"L": 0, "R": 0, "A": 1, "P": 1, "H": 2, "F": 2}


def of_text(text: str) -> str:
    """Which projection a free text names: FRONTAL, LATERAL (also for oblique views), EITHER, or "" for none.

    EITHER is for texts that name both, such as "PA and lateral", and for lateral decubitus views, whose words are often
    incomplete.
    """
    plain = "".join(each for each in unicodedata.normalize("NFKD", text.upper()) if not unicodedata.combining(each))
    plain = _ONE_WORD.sub(r"\1", _LETTERS.sub(lambda letters: re.sub(r"\W", "", letters[0]), plain))
    words = re.findall(r"[^\W_]+", plain)
    frontal = any(map(_FRONTAL_WORDS.fullmatch, words))
    if any(map(_LATERAL_WORDS.fullmatch, words)):
        return EITHER if frontal or any(map(_LYING.fullmatch, words)) else LATERAL
    return FRONTAL if frontal else ""


def of_code(value: str, meaning: str) -> str:
    """Which projection a view code names, as `of_text`; LATERAL where its value or its meaning does.

    Args:
      value: Code Value; one of a hospital's own is unknown.
      meaning: Code Meaning.
    """
    code, words = value.strip().upper(), of_text(meaning)
    if code in _LATERAL_CODES or words == LATERAL:
        return LATERAL
    return FRONTAL if code in _FRONTAL_CODES else words


def view_of_code(value: str) -> str:
    """The View Position of a frontal view's code, such as "PA"; "" for all others."""
    return _FRONTAL_CODES.get(value.strip().upper(), "")


def main_directions(values: Iterable[str]) -> str:
    """The main directions of a picture's rows and columns by Patient Orientation (DICOM PS3.3 C.7.6.1.1.1).

    It has two values of one to three letters each, A, P, R, L, H or F, of which the first counts most: L and FP are
    those of an upright frontal view.

    Returns:
      Two letters, such as "LF", with UNKNOWN for one that is missing; "" where there is none, and for all that the
      standard does not know: other letters, more values, opposite letters, and one axis for both.
    """
    given = [value.strip().upper() for value in values]
    if len(given) > 2 or not any(given):
        return ""
    rows, columns = (*given, "")[:2]
    for letters in (rows, columns):
        axes = [_AXES.get(letter, letter) for letter in letters]
        if not set(axes) <= {0, 1, 2} or len(set(axes)) != len(axes):
            return ""
    if rows and columns and _AXES[rows[0]] == _AXES[columns[0]]:
        return ""
    return (rows[:1] or UNKNOWN) + (columns[:1] or UNKNOWN)
