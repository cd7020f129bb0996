"""What a header held that could not be used is told at the end of a job, with the number of files."""

import csv

import numpy as np
import pytest

from jaxpneumo.data import prepare, remarks
from jaxpneumo.dicom import dicom
from jaxpneumo.predict.reading import Reading, read


def test_sentences_are_counted_the_most_frequent_first():
    told = remarks.tell([("a.dcm", ["one"]), ("b.dcm", ["two", "one"]), ("c.dcm", []), ("d.dcm", ["one"])])
    assert told == ["one: a.dcm and 2 more files.", "two: b.dcm."]


def test_only_some_of_many_kinds_are_told():
    told = remarks.tell((f"{number}.dcm", [f"value {number}"]) for number in range(50))
    assert len(told) == remarks.SHOWN + 1
    assert told[-1] == "42 more kinds of header elements could not be used as they are."


@pytest.fixture
def odd(tmp_path):
    """A folder with a sound radiograph whose Pixel Spacing has commas."""
    image = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    dicom.write(tmp_path / "in/a.dcm", image, "1.2.3", view="PA")
    data = (tmp_path / "in/a.dcm").read_bytes()
    assert data.count(b"0.139\\0.139 ") == 1
    (tmp_path / "in/a.dcm").write_bytes(data.replace(b"0.139\\0.139 ", b"0,139\\0,139 "))
    return tmp_path


def test_prepare_uses_the_picture_and_says_what_was_ignored(odd, capsys):
    (odd / "labels.csv").write_text("ImageId,EncodedPixels\n1.2.3,-1\n")
    arguments = ["--images", odd / "in", "--labels", odd / "labels.csv", "--output", odd / "p", "--sizes", "64"]
    assert prepare.main([*map(str, arguments), "--workers", "1"]) == 0
    assert r"Pixel Spacing is '0,139\0,139', which is not a number; it is ignored: a.dcm." in capsys.readouterr().err
    with open(odd / "p/index.csv", newline="") as file:
        assert next(csv.DictReader(file))["row_spacing"] == ""


def test_predict_reads_the_same_remark(odd):
    assert read(Reading(odd / "in", 64), "a.dcm").remarks == (
        r"Pixel Spacing is '0,139\0,139', which is not a number; it is ignored",
    )
