"""Test-time augmentation by name: the values that `predict.tta` and the flag --tta may have.

A value has one form in records, so that equal settings are equal: False without TTA, True for the flip alone, else the
names in the order of NAMES between commas. Older configs have True and False only.
"""

import argparse
from dataclasses import dataclass
from typing import Any

from jaxpneumo.process.ranges import as_typed

NAMES = ("flip", "scale", "shift")


def names(value: Any) -> tuple[str, ...]:
    """The names of a value: True or False, names between commas, or a list of names.

    Raises:
      ValueError: it is none of these, or names one twice.
    """
    if isinstance(value, str):
        value = {"True": True, "False": False, "": False}.get(value, value)
    if isinstance(value, bool):
        return NAMES[:1] if value else ()
    given = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    if not isinstance(given, list | tuple) or any(name not in NAMES for name in given) or len({*given}) < len(given):
        raise ValueError(f"{value!r} is no test-time augmentation")
    return tuple(name for name in NAMES if name in given)


def recorded(value: Any) -> bool | str:
    """The one form of a value that records have. Raises ValueError as `names`."""
    found = names(value)
    return bool(found) if found in ((), NAMES[:1]) else ",".join(found)


def words(value: Any) -> str:
    """For a sentence: "with flip TTA", "with flip+scale TTA", "without TTA"."""
    found = names(value)
    return f"with {'+'.join(found)} TTA" if found else "without TTA"


@dataclass(frozen=True)
class Tta:
    """The kind of value, as those of `process.ranges`."""

    def allows(self, value: Any) -> bool:
        """Whether a value is one that `names` takes."""
        try:
            names(value)
        except (TypeError, ValueError):
            return False
        return True

    def __call__(self, text: str) -> bool | str:
        """A text's value. Raises ArgumentTypeError, which says what it may be."""
        if not self.allows(text):
            raise argparse.ArgumentTypeError(f"{as_typed(text)} cannot be used; give {self}")
        return recorded(text)

    def __str__(self) -> str:
        return f"True, False, or some of {', '.join(NAMES)} between commas"


TTA = Tta()
