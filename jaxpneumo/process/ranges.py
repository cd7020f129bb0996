"""What a value may be, for options and for the config alike: numbers in a range, words of a list.

Each kind says by `allows` whether a value is one of its own, by `str` which ones are, and, called with a text as the
`type` of an option, turns it into the value.
"""

import argparse
import math
import numbers
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, cast


@dataclass(frozen=True)
class Numbers:
    """Numbers from `low` to `high`; infinity and not-a-number never are.

    Attributes:
      low, high: the ends; both are numbers of the range unless `above_low` or `below_high` is set.
      whole: whole numbers only.
      step: multiples of this only; with `whole`.
      word: instead of a number, such as "auto"; "None" is the value None of a config.
    """

    low: float
    high: float
    whole: bool = False
    above_low: bool = False
    below_high: bool = False
    step: int = 1
    word: str = ""

    def allows(self, value: Any) -> bool:
        """Whether a number is in the range."""
        if self.word and (value == self.word or (self.word == "None" and value is None)):
            return True
        if isinstance(value, bool) or not isinstance(value, numbers.Integral if self.whole else numbers.Real):
            return False
        if not math.isfinite(value) or (value % self.step and self.whole):
            return False
        number = cast(float, value)  # the type checker knows no order of abstract numbers
        above = number > self.low if self.above_low else number >= self.low
        return above and (number < self.high if self.below_high else number <= self.high)

    def __call__(self, text: str) -> int | float | str:
        """A text's number. Raises ArgumentTypeError, which says the range."""
        if self.word and text == self.word:
            return text
        try:
            value = int(text) if self.whole else float(text)
        except ValueError:
            value = None
        if value is None or not self.allows(value):
            raise argparse.ArgumentTypeError(f"{as_typed(text)} cannot be used; give {self}")
        return value

    def __str__(self) -> str:
        kind = f"a multiple of {self.step}" if self.step > 1 else "a whole number" if self.whole else "a number"
        low, high = (format(end, "d" if self.whole else "g") for end in (self.low, self.high))
        ends = f"{'above' if self.above_low else 'from'} {low} to {'below ' if self.below_high else ''}{high}"
        return f"{kind} {ends}" + (f", or {self.word}" if self.word else "")


@dataclass(frozen=True)
class Several:
    """A list of numbers of one range, as text between commas; `count` of them, or any number."""

    of: Numbers
    count: int | None = None

    def allows(self, value: Any) -> bool:
        """Whether all numbers of a list or tuple are in the range, and as many as they have to be."""
        right = isinstance(value, list | tuple) and len(value) > 0 and self.count in (None, len(value))
        return right and all(map(self.of.allows, value))

    def __call__(self, text: str) -> tuple[int | float | str, ...]:
        """A text's numbers. Raises ArgumentTypeError, which says the range."""
        try:
            values = tuple(self.of(part) for part in text.split(","))
        except argparse.ArgumentTypeError:
            values = ()
        if not self.allows(values):
            raise argparse.ArgumentTypeError(f"{as_typed(text)} cannot be used; give {self}")
        return values

    def __str__(self) -> str:
        many = {None: "numbers", 4: "four numbers"}.get(self.count, f"{self.count} numbers")
        return f"{many} between commas, each {self.of}"


@dataclass(frozen=True)
class Words:
    """One of a few words."""

    words: tuple[str, ...]

    def allows(self, value: Any) -> bool:
        """Whether a value is one of the words."""
        return isinstance(value, str) and value in self.words

    def __str__(self) -> str:
        *others, last = (f'"{word}"' for word in self.words)
        return f"{', '.join(others)} or {last}" if others else last


@dataclass(frozen=True)
class Kind:
    """Values of one type, whatever they are."""

    type: type
    name: str

    def allows(self, value: Any) -> bool:
        """Whether a value is of the type."""
        return isinstance(value, self.type)

    def __str__(self) -> str:
        return self.name


TEXT, SWITCH = Kind(str, "a text"), Kind(bool, "True or False")


def number(low: float, high: float, **ends: Any) -> Numbers:
    """Numbers from `low` to `high`; `ends` as `Numbers` has them."""
    return Numbers(low, high, **ends)


def whole(low: int, high: int, **ends: Any) -> Numbers:
    """Whole numbers from `low` to `high`."""
    return Numbers(low, high, whole=True, **ends)


def multiple_of(step: int, high: int) -> Numbers:
    """Multiples of `step`, itself the smallest."""
    return Numbers(step, high, whole=True, step=step)


# What several commands have.
WEIGHT = number(0, 1000)  # of a part in a sum
SEED = whole(0, 2**32 - 1)
WORKERS = whole(0, 1024)
TEAM = whole(1, 1024)  # worker processes, where there is no work without one
SECONDS = number(0, 86400, above_low=True)
BATCH = whole(1, 65536)
SIDE = multiple_of(32, 4096)  # of what the network takes
PROBABILITY = number(0, 1)
FRACTION = number(0, 1, below_high=True)  # of the images that validate
AREA = whole(0, 1024 * 1024)  # of a mask, in pixels of a 1024x1024 image
REPLICATES = whole(100, 1_000_000)  # of a bootstrap; fewer make no interval
COUNT = whole(1, 10_000_000)  # of images
AREA_SCALE = number(0, 100, above_low=True)  # of synthetic findings
REPEATS, CALLS = whole(1, 1000), whole(1, 1_000_000)  # of what a benchmark measures
NATIVE = whole(16, 65535)  # side of a radiograph
DEPTHS = Several(whole(1, 1000), 4)
WIDTH = whole(1, 4096)


def did_you_mean(given: str, known: Any) -> str:
    """' Did you mean "predict"?' where one of the known words is like the one given, else ''."""
    like = get_close_matches(given, list(known), 1)
    return f' Did you mean "{like[0]}"?' if like else ""


def as_typed(text: str) -> str:
    """What was typed, for a message: short, and visible where it is blank."""
    return text[:60] if text.strip() and text.isprintable() else repr(text[:60])
