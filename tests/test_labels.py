"""Label and patients files: both dialects, the challenge's counts, and mistakes named by file and line."""

import gzip
from collections import Counter

import numpy as np
import pytest

from jaxpneumo.data import labels, rle
from jaxpneumo.process.errors import InputError


def write(path, text: str):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "text",
    [
        "ImageId,EncodedPixels\n1.2.3,-1\nID_7,0 2\nID_7,4 1 1 2\n",
        "ImageId, EncodedPixels\n1.2.3, -1\nID_7, 0 2\nID_7, 4 1 1 2\n",
        "\ufeffImageId,EncodedPixels\r\n1.2.3,-1\r\nID_7,0 2\r\nID_7,4 1 1 2\r\n",
        'ImageId,EncodedPixels\n"1.2.3","-1"\n"ID_7","0 2"\n"ID_7","4 1 1 2"\n',
    ],
)
def test_dialects(tmp_path, text):
    table = labels.read_labels(write(tmp_path / "a.csv", text))
    assert table.codes == {"1.2.3": [(2, "-1")], "ID_7": [(3, "0 2"), (4, "4 1 1 2")]}
    mask, code, rows = labels.mask(table, "ID_7", 4, 3)
    np.testing.assert_array_equal(mask, rle.union(["0 2", "4 1 1 2"], 4, 3))
    assert (code, rows) == (rle.encode(mask), 2)
    assert labels.mask(table, "1.2.3", 4, 3) == (None, "-1", 0)


def test_one_row_keeps_its_code_where_it_is_as_short_as_can_be(tmp_path):
    table = labels.read_labels(write(tmp_path / "a.csv", "ImageId,EncodedPixels\na,1 2 3 4\nb,01 2  0 4\n"))
    assert labels.mask(table, "a", 4, 3)[1:] == ("1 2 3 4", 1)
    mask, code, _ = labels.mask(table, "b", 4, 3)
    assert code == rle.encode(mask) == "1 6"


def test_conflicting_rows_are_told(tmp_path):
    text = "ImageId,EncodedPixels\na,-1\na,-1\nb,0 1\nb,5 1\nc,0 1\nc,-1\n"
    table = labels.read_labels(write(tmp_path / "a.csv", text))
    assert [bool(labels.conflict(table, name)) for name in "abc"] == [False, False, True]
    assert "a.csv line 7 says -1, line 6 has a region" in labels.conflict(table, "c")


def test_packed_file_reads_alike(tmp_path):
    text = "ImageId,EncodedPixels\na,-1\n"
    with gzip.open(tmp_path / "a.csv.gz", "wt") as file:
        file.write(text)
    plain = labels.read_labels(write(tmp_path / "a.csv", text))
    assert labels.read_labels(tmp_path / "a.csv.gz").codes == plain.codes


def test_very_long_codes_fit(tmp_path):
    code = "0 1" + " 1 1" * 100_000
    table = labels.read_labels(write(tmp_path / "a.csv", f"ImageId,EncodedPixels\na,{code}\n"))
    assert table.codes["a"] == [(2, code)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "line 1: the header lacks ImageId, EncodedPixels"),
        (
            "a,-1\n",
            "line 1: the header lacks ImageId, EncodedPixels.*Make its first line ImageId,EncodedPixels",
        ),
        ("ImageId,Pixels\na,-1\n", "line 1: the header lacks EncodedPixels"),
        ("ImageId;EncodedPixels\na;-1\n", "line 1: the header lacks"),
        ("ImageId,EncodedPixels\n", "no label below its header"),
        ("ImageId,EncodedPixels, EncodedPixels\na,-1,0 3\n", "line 1: several columns are called EncodedPixels. Keep"),
        ("ImageId,EncodedPixels,ImageId\na,-1,b\n", "line 1: several columns are called ImageId"),
        ("ImageId,EncodedPixels\na,-1\n ,-1\n", "line 3: the ImageId is empty"),
        ("ImageId,EncodedPixels\na,-1\nb\n", "line 3: 1 values under 2 column names"),
        ("ImageId,EncodedPixels\na,-1\nb,1 2,3\n", "line 3: 3 values under 2 column names"),
    ],
)
def test_mistakes_name_file_and_line(tmp_path, text, words):
    with pytest.raises(InputError, match=words) as caught:
        labels.read_labels(write(tmp_path / "wrong.csv", text))
    assert "wrong.csv" in str(caught.value)


def test_files_that_are_no_csv(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00\x81")
    (tmp_path / "a.csv.gz").write_bytes(b"ImageId,EncodedPixels\n")
    for name, words in [("a.csv", "UTF-8"), ("a.csv.gz", "cannot be read"), ("none.csv", "No such file")]:
        with pytest.raises(InputError, match=words):
            labels.read_labels(tmp_path / name)


@pytest.mark.parametrize(
    ("code", "words"),
    [("0 13", "leaves the image by 1"), ("0 1 2", "3 numbers"), ("x 1", "whole numbers"), ("", "empty")],
)
def test_wrong_code_names_file_and_line(tmp_path, code, words):
    table = labels.read_labels(write(tmp_path / "a.csv", f"ImageId,EncodedPixels\na,-1\na,{code}\n"))
    with pytest.raises(InputError, match=rf"a\.csv line 3: .*{words}.*\(4 x 3\).*remove all lines of a"):
        labels.mask(table, "a", 4, 3)


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        (["-1", "5780 20 5876 20 5972 20", "0 5"], "absolute .*from each start but the first take the end of the run"),
        (["5781 20 5877 20 5973 20"], "absolute .*if the starts count from 1, take 1 from the first"),
        (["5780 5800 5876 5896 5972 5992"], "starts and ends .*a length is end - start"),
    ],
)
def test_codes_of_another_kind_are_refused_with_the_way_out(tmp_path, codes, words):
    lines = [f"i{number},{code}" for number, code in enumerate(codes)]
    line = 2 + next(number for number, code in enumerate(codes) if len(code) > 4)
    with pytest.raises(InputError, match=rf"a\.csv line {line}: the file's run-length codes seem to be {words}"):
        labels.read_labels(write(tmp_path / "a.csv", "\n".join(["ImageId,EncodedPixels", *lines]) + "\n"))


def test_one_code_of_another_kind_costs_its_image(tmp_path):
    rows = ["a,100 20 196 20 292 20", "b,5 5 91 5 91 5", "c,9 5 91 5"]
    table = labels.read_labels(write(tmp_path / "a.csv", "\n".join(["ImageId,EncodedPixels", *rows]) + "\n"))
    with pytest.raises(InputError, match=r"line 2: the run-length code seems to be absolute .*remove all lines of a"):
        labels.mask(table, "a", 96, 96)
    assert labels.mask(table, "b", 96, 96)[0].sum() == 15


def test_patients(tmp_path):
    text = "ImageId,patient,sex,age,view,extra\na,17,f,60,ap,x\nb,18,,,,\n"
    patients = labels.read_patients(write(tmp_path / "p.csv", text))
    assert patients == {"a": labels.Patient("17", "F", 60, "AP"), "b": labels.Patient("18", "", None, "")}
    patients = labels.read_patients(write(tmp_path / "p.csv", "patient,ImageId\n17,a\n"))
    assert patients == {"a": labels.Patient("17")}


def test_words_for_sex_and_view_are_one(tmp_path):
    text = "ImageId,patient,sex,view\na,1,Female,postero-anterior\nb,1,MALE,Frontal\nc,1,Unknown,A.P.\nd,1,other,LL\n"
    people = labels.read_patients(write(tmp_path / "p.csv", text)).values()
    assert [(person.sex, person.view) for person in people] == [("F", "PA"), ("M", "FRONTAL"), ("", "AP"), ("O", "LL")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ImageId,Patient\na,1\n", "line 1: the header lacks patient"),
        ("ImageId,patient,sex,sex\na,1,F,M\n", "line 1: several columns are called sex"),
        ("ImageId,patient\na,1\na,2\n", "line 3: a is listed a second time"),
        ("ImageId,patient,age\na,1,old\n", "line 2: the age"),
        ("ImageId,patient,age\na,1,120\nb,1,411\n", "line 3: the age is above 120 years"),
        ("ImageId,patient,age\na,1,\u0664\u0660\n", "line 2: the age is not a whole number"),
        ("ImageId,patient,age\na,1,4_0\n", "line 2: the age is not a whole number"),
        ("ImageId,patient,age\na,1,+40\n", "line 2: the age is not a whole number"),
        ("ImageId,patient,sex\na,1,1\n", "line 2: the sex is not F, M, O or unknown"),
        ("ImageId,patient\n,1\n", "line 2: the ImageId is empty"),
    ],
)
def test_wrong_patients_file(tmp_path, text, words):
    with pytest.raises(InputError, match=words):
        labels.read_patients(write(tmp_path / "p.csv", text))


def test_pseudonyms_need_their_key(tmp_path):
    key, other = b"k" * 16, b"l" * 16
    assert labels.pseudonym("17", key) == labels.pseudonym("17", key)
    assert len(labels.pseudonym("17", key)) == 16
    assert len({labels.pseudonym("17", key), labels.pseudonym("18", key), labels.pseudonym("17", other)}) == 3
    assert labels.pseudonym("", key) == ""
    (tmp_path / "key").write_bytes(key)
    assert labels.read_key(tmp_path / "key") == key
    (tmp_path / "short").write_bytes(b"abc")
    with pytest.raises(InputError, match="3 bytes"):
        labels.read_key(tmp_path / "short")


def test_counts_of_the_challenge(shared):
    """Both rounds' training data against the table in ../shared/design/SYSTEM.md.

    Every number of round 1 agrees. In round 2 images, rows and labels agree, but sex and view do not: all eight
    numbers are off by one, as if one positive image were under M and AP in the table and under F and PA in the
    file. Which of the two is right cannot be told from here, so both are written down.
    """
    codes = labels.read_labels(shared / "data/train-rle-12047.csv.gz").codes
    path = shared / "data/patients-12047.csv.gz"
    patients = labels.read_patients(path)
    part = {row["ImageId"]: row["round1"] for _, row in labels.read_rows(path, ("ImageId", "round1"))}
    assert codes.keys() == patients.keys() == part.keys()

    def table(ids):
        positive = {name for name in ids if any(code != "-1" for _, code in codes[name])}
        fields = [(patients[name].sex, patients[name].view, name in positive) for name in ids]
        return {
            "images": len(ids),
            "rows": sum(len(codes[name]) for name in ids),
            "positive": len(positive),
            "one row": sum(len(codes[name]) == 1 for name in positive),
            "several rows": sum(len(codes[name]) > 1 for name in positive),
            "sex": Counter(sex for sex, _, _ in fields),
            "positive sex": Counter(sex for sex, _, found in fields if found),
            "view": Counter(view for _, view, _ in fields),
            "positive view": Counter(view for _, view, found in fields if found),
        }

    assert Counter(part.values()) == {"train": 10_675, "test": 1_372}
    assert table([name for name in codes if part[name] == "train"]) == {
        "images": 10_675,
        "rows": 11_582,
        "positive": 2_379,
        "one row": 1_755,
        "several rows": 624,
        "sex": {"F": 4_795, "M": 5_880},
        "positive sex": {"F": 1_053, "M": 1_326},
        "view": {"AP": 4_181, "PA": 6_494},
        "positive view": {"AP": 858, "PA": 1_521},
    }
    second = table(list(codes))
    assert second == {
        "images": 12_047,
        "rows": 12_954,
        "positive": 2_669,
        "one row": 2_045,
        "several rows": 624,
        "sex": {"F": 5_422, "M": 6_625},
        "positive sex": {"F": 1_181, "M": 1_488},
        "view": {"AP": 4_772, "PA": 7_275},
        "positive view": {"AP": 971, "PA": 1_698},
    }
    stated = {
        "sex": {"F": 5_421, "M": 6_626},
        "positive sex": {"F": 1_180, "M": 1_489},
        "view": {"AP": 4_773, "PA": 7_274},
        "positive view": {"AP": 972, "PA": 1_697},
    }
    for name, counts in stated.items():
        moved = {"M": 1, "F": -1} if "sex" in name else {"AP": 1, "PA": -1}
        assert {key: second[name][key] + moved[key] for key in moved} == counts
    assert len({patient.patient for patient in patients.values()}) == 6_171
