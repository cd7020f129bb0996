"""Values of header elements, read with tolerance: one that makes no sense is unknown, and that is remarked.

Real headers hold "0,139", "Anonymized" or nothing where a number should stand. A sound picture is used all the same.
"""

import math
from typing import Any

from pydicom.datadict import dictionary_description
from pydicom.dataset import Dataset

SHOWN = 32  # characters of a value in a message


class Elements:
    """The elements of a data set.

    Only elements that describe pixels may be asked for as numbers: a remark quotes their values.

    Attributes:
      dataset: the data set, or an item of a sequence.
      remarks: sentences about elements that could not be used as they are; shared with items.
      unreadable: keywords of the elements that hold something which is no number.
    """

    def __init__(self, dataset: Dataset, remarks: list[str] | None = None):
        self.dataset = dataset
        self.remarks: list[str] = [] if remarks is None else remarks
        self.unreadable: set[str] = set()

    def numbers(self, keyword: str) -> list[float]:
        """An element's finite numbers; empty where it is absent, empty or holds anything else, which is remarked."""
        try:
            value = self.dataset.get(keyword)
            values = [] if value is None or value == "" else list(value) if _several(value) else [value]
            numbers = [float(each) for each in values if each not in (None, "")]
        except Exception:  # pydicom raises nearly anything for what an element must not hold
            numbers = [math.nan]
        if all(map(math.isfinite, numbers)):
            return numbers
        if keyword not in self.unreadable:
            self.unreadable.add(keyword)
            self.remark(
                f"{dictionary_description(keyword)} is {self._quoted(keyword)}, which is not a number; it is ignored"
            )
        return []

    def number(self, keyword: str) -> float | None:
        """The first number of an element; None as `numbers`."""
        return next(iter(self.numbers(keyword)), None)

    def whole(self, keyword: str) -> int | None:
        """The first number of an element, as an integer; None as `numbers`."""
        number = self.number(keyword)
        return None if number is None else int(number)

    def known(self, keyword: str) -> int:
        """`whole` of an element that has been checked to be there."""
        number = self.whole(keyword)
        assert number is not None, keyword
        return number

    def text(self, keyword: str) -> str:
        """An element's text; "" where there is none. Never quoted in a remark: it may be a patient's."""
        try:
            return str(self.dataset.get(keyword) or "").strip()
        except Exception:  # as above
            return ""

    def texts(self, keyword: str) -> list[str]:
        """An element's values as texts; empty where there are none. Never quoted, as `text`."""
        try:
            value = self.dataset.get(keyword)
            values = [] if value is None or value == "" else list(value) if _several(value) else [value]
            return [str(each).strip() for each in values]
        except Exception:  # as above
            return []

    def items(self, keyword: str) -> list["Elements"]:
        """The items of a sequence; empty where the element is absent or no sequence."""
        try:
            value = self.dataset.get(keyword) or []
            return [Elements(item, self.remarks) for item in value if isinstance(item, Dataset)]
        except Exception:  # as above
            return []

    def remark(self, sentence: str) -> None:
        """Notes what the reader of the picture should know."""
        if sentence not in self.remarks:
            self.remarks.append(sentence)

    def _quoted(self, keyword: str) -> str:
        try:
            value: Any = self.dataset.get_item(keyword).value
            text = value.decode("ascii", "replace") if isinstance(value, bytes) else ""
            text = text or "\\".join(map(str, value if _several(value) else [value]))
        except Exception:  # as above
            text = "unreadable"
        return "'" + "".join(each if each.isprintable() else "?" for each in text.rstrip("\0 "))[:SHOWN] + "'"


def _several(value: Any) -> bool:
    return not isinstance(value, (str, bytes)) and hasattr(value, "__iter__")
