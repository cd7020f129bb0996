"""Run-length code: exact both ways, on any mask and on every code of the challenge."""

import csv
import gzip
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from jaxpneumo.data import rle


@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.integers(0, 1)))
def test_any_mask_survives(mask):
    code = rle.encode(mask)
    decoded = rle.decode(code, *mask.shape)
    assert decoded.dtype == np.uint8
    assert decoded.flags.c_contiguous
    np.testing.assert_array_equal(rle.decode_columns(code, *mask.shape), mask.T)
    np.testing.assert_array_equal(decoded, mask)
    assert rle.encode(decoded) == code
    assert rle.area(code, *mask.shape) == np.count_nonzero(mask)


@settings(max_examples=50)
@given(st.integers(1, 30), st.integers(1, 30), st.data())
def test_any_code_survives(height, width, data):
    """Runs drawn as numbers, decoded by the rule as the challenge words it, pixel by pixel."""
    numbers, position = [], 0
    while position < height * width and data.draw(st.booleans()):
        gap = data.draw(st.integers(1 if numbers else 0, height * width))
        length = data.draw(st.integers(1, height * width))
        if position + gap + length > height * width:
            break
        numbers += [gap, length]
        position += gap + length
    code = " ".join(map(str, numbers)) or "-1"
    expected, position = np.zeros((height, width), np.uint8), 0
    for gap, length in zip(numbers[::2], numbers[1::2], strict=True):
        for pixel in range(position + gap, position + gap + length):
            expected[pixel % height, pixel // height] = 1
        position += gap + length
    np.testing.assert_array_equal(rle.decode(code, height, width), expected)
    assert rle.encode(expected) == code


@given(st.integers(1, 9), st.integers(1, 9), st.lists(st.integers(0, 6), min_size=2, max_size=12))
def test_simplified_is_what_its_mask_encodes_to(height, width, numbers):
    numbers = [max(number, place & 1) for place, number in enumerate(numbers[: len(numbers) // 2 * 2])]
    code = "  ".join(f"{number:02d}" for number in numbers)
    if sum(numbers) > height * width:
        with pytest.raises(ValueError, match="leaves the image"):
            rle.simplify(code, height, width)
    else:
        assert rle.simplify(code, height, width) == rle.encode(rle.decode(code, height, width))
    assert rle.simplify(" -1", height, width) == "-1"


def test_counts_down_the_columns_from_zero():
    mask = np.array([[0, 0, 1], [1, 0, 1], [1, 0, 0]], np.uint8)
    assert rle.encode(mask) == "1 2 3 2"
    np.testing.assert_array_equal(rle.decode(" 1 2 3 2 ", 3, 3), mask)


@pytest.mark.parametrize(
    ("mask", "code"),
    [
        (np.ones((1, 1)), "0 1"),
        (np.zeros((1, 1)), "-1"),
        (np.ones((3, 5)), "0 15"),
        (np.zeros((3, 5)), "-1"),
        (np.array([[0, 0], [0, 1]]), "3 1"),
        (np.array([[True, False], [False, True]]), "0 1 2 1"),
        (np.array([[0.0, 0.5]]), "1 1"),
    ],
)
def test_corner_masks(mask, code):
    assert rle.encode(mask) == code
    np.testing.assert_array_equal(rle.decode(code, *mask.shape), mask != 0)


def test_union_of_overlapping_codes():
    np.testing.assert_array_equal(rle.union(["0 2", "1 2", "-1"], 2, 2), [[1, 1], [1, 0]])
    assert rle.union([], 2, 3).shape == (2, 3)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("", "empty; -1 means no pneumothorax"),
        ("3", "1 numbers"),
        ("0 1 2", "3 numbers"),
        ("0 x", "whole numbers"),
        ("0 1.5", "whole numbers"),
        ("0 99999999999999999999", "whole numbers"),
        ("1_0 3", "digits 0 to 9"),
        ("+5 3", "digits 0 to 9"),
        ("\u0661 2", "digits 0 to 9"),
        ("\uff11 2", "digits 0 to 9"),
        ("-0 2", "digits 0 to 9"),
        ("1e1 2", "digits 0 to 9"),
        ("0x1 2", "digits 0 to 9"),
        ("1\u00a02", "digits 0 to 9"),
        ("0 0", "length 0 .number 2"),
        ("0 1 -1 1", "gap -1 .number 3"),
        ("-3 5", "start -3"),
        ("5 -2", "length -2"),
        ("0 13", "leaves the image by 1 pixels"),
        ("5 3 2 5", "leaves the image by 3 pixels"),
        ("9000000000000000000 9000000000000000000", "leaves the image by 17999999999999999988 pixels"),
    ],
)
def test_wrong_codes_are_refused_in_words(code, words):
    with pytest.raises(ValueError, match=words):
        rle.decode(code, 3, 4)


def test_every_code_of_the_challenge_survives_byte_for_byte(shared):
    with gzip.open(shared / "data/train-rle-12047.csv.gz", "rt", newline="") as file:
        codes = [code.strip() for _, code in list(csv.reader(file))[1:]]
    assert len(codes) == 12_954
    wrong = [code for code in set(codes) if rle.encode(rle.decode(code, 1024, 1024)) != code]
    assert not wrong


# Other kinds of code


def written(code: str, first: int | None) -> str:
    """A code of the challenge with starts from the image's first pixel, counted from `first`; None: starts, ends."""
    numbers, end, other = list(map(int, code.split())), 0, []
    for gap, length in zip(numbers[::2], numbers[1::2], strict=True):
        start, end = end + gap, end + gap + length
        other += [start, end] if first is None else [start + first, length]
    return " ".join(map(str, other))


@pytest.mark.long
def test_codes_of_the_challenge_and_none_other_are_the_challenges(shared):
    """The whole table, and every part of it down to one image, in its own words and in others."""
    with gzip.open(shared / "data/train-rle-12047.csv.gz", "rt", newline="") as file:
        codes = [(line, code.strip()) for line, (_, code) in enumerate(csv.reader(file), 1) if line > 1]
    assert rle.file_dialect(codes) is None
    several = [(line, code) for line, code in codes if len(code.split()) > 2]
    assert len(several) == 3576
    for first, dialect in ((0, rle.ABSOLUTE), (1, rle.ABSOLUTE), (None, rle.ENDS)):
        others = [(line, code if code == "-1" else written(code, first)) for line, code in codes]
        assert rle.file_dialect(others) == (several[0][0], dialect)
        for line, code in several:
            assert rle.file_dialect([(2, "-1"), (line, written(code, first))]) == (line, dialect)
    for line, code in several:
        assert rle.file_dialect([(line, code)]) is None
        rle.check_dialect(code, 1024, 1024)


@pytest.mark.parametrize(
    "codes",
    [
        [],
        ["-1", "-1"],
        ["5780 20", "0 9"],  # one run is the same in both
        ["1 2 3 4"],  # two runs alone could be either
        ["10 10 86 10 86 10"],  # a square in the first columns
        ["0 5 91 5", "5780 20 76 20 76 20"],
        ["x 1 2 3 4 5", "1 2 3"],
    ],
)
def test_what_proves_nothing_is_the_challenges(codes):
    assert rle.file_dialect(enumerate(codes, 2)) is None


def test_small_masks_in_absolute_starts_are_told():
    assert rle.file_dialect([(2, "5780 20 5876 20"), (3, "100 9 196 9"), (4, "-1")]) == (2, rle.ABSOLUTE)
    assert rle.file_dialect([(2, "-1"), (3, "5780 20 5876 20 5972 20")]) == (3, rle.ABSOLUTE)
    # One broken line among them does not hide it, nor do codes of the challenge among fewer of them.
    assert rle.file_dialect([(2, "1 5 97 5 193 5"), (3, "x"), (4, "4 5 100 5 196 5"), (5, "9 5 91 5 91 5")])[0] == 2


def test_a_single_code_of_another_kind_is_refused_where_it_is_certain():
    for code in ("100 20 196 20 292 20", "100 120 196 216 292 312"):
        with pytest.raises(ValueError, match="seems to be"):
            rle.check_dialect(code, 96, 96)
    rle.check_dialect("100 20 196 20", 96, 96)
    with pytest.raises(ValueError, match="seems to be absolute"):
        rle.check_dialect("5780 20 5876 20", 96, 96)
    rle.check_dialect("9000 200 90 20 91 9", 96, 96)  # leaves the image, and not for that reason


def test_speed_of_a_large_mask():
    """The budget is 5 ms and 9 ms at 1024 x 1024; ten times that, so that a busy machine does not fail it."""
    rows, columns = np.mgrid[:1024, :1024]
    mask = ((rows - 500) ** 2 + (columns - 300) ** 2 < 250**2).astype(np.uint8)
    start = time.perf_counter()
    code = rle.encode(mask)
    middle = time.perf_counter()
    rle.decode(code, 1024, 1024)
    assert middle - start < 0.09
    assert time.perf_counter() - middle < 0.05
