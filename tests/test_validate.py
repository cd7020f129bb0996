"""Every kind of finding of the validator by hand, and none in what this program writes."""

import gzip

import pytest

from jaxpneumo.predict.submission import write_submission
from jaxpneumo.predict.validate import main, validate
from jaxpneumo.process.errors import BAD_INPUT, DONE, InputError

SAMPLE = "ImageId,EncodedPixels\na,1 2\nb,-1\nc,-1\nc,-1\nd,-1\n"


def findings(tmp_path, text, sample=None, **options):
    path = tmp_path / "submission.csv"
    path.write_text(text)
    if sample is not None:
        (tmp_path / "sample.csv").write_text(sample)
    found = validate(path, sample and tmp_path / "sample.csv", **options)
    return [(finding.kind, finding.row) for finding in found]


def test_what_this_program_writes_is_valid(tmp_path, capsys):
    path = tmp_path / "submission.csv"
    write_submission(path, [("a", "0 5 10 3"), ("b", ""), ("c", f"0 {1024 * 1024}"), ("d", "1048575 1")])
    (tmp_path / "sample.csv").write_text(SAMPLE)
    assert main(["--submission", str(path), "--sample", str(tmp_path / "sample.csv")]) == DONE
    assert "is a valid submission" in capsys.readouterr().out


def test_several_rows_of_an_image_are_allowed(tmp_path):
    text = "ImageId, EncodedPixels\na, 0 5\na, 5 5\na, 20 4 10 1\nb, -1\na, 25 2\n"
    assert findings(tmp_path, text) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Image,Code\na,-1\n", [("form", 1)]),
        ("ImageId,EncodedPixels\n", [("form", 0)]),
        ("ImageId,EncodedPixels\na,-1,x\nb\n,-1\nc,-1\n", [("form", 2), ("form", 3), ("form", 4)]),
        ("ImageId,EncodedPixels\n a,-1\nb ,-1\n\u00a0c,-1\n", [("form", 2), ("form", 3), ("form", 4)]),
        ("ImageId,EncodedPixels\na, -1\n b,-1\n", [("form", 3)]),
        ("ImageId,EncodedPixels\na,-1\na,-1\nb,0 1\nb,4 1\nb,0 1\n", [("double", 3), ("double", 6)]),
        ("ImageId,EncodedPixels\na,-1\na,0 1\nb,0 1\nb,-1\n", [("mixed", 3), ("mixed", 5)]),
        ("ImageId,EncodedPixels\na,1_0 3\nb,+5 3\nc,\u0661 2\nd,\nf,-0 1\n", [("code", n) for n in (2, 3, 4, 5, 6)]),
        ("ImageId,EncodedPixels\na,1  3\nb,1\t3\nc,1\u00a03\nd,1 3\n", [("code", 2), ("code", 3), ("code", 4)]),
        ("ImageId,EncodedPixels\na,-1\nb,99 5 1123 5 2147 5\nc,5 3\nc,-1\n", [("dialect", 3)]),
        ("ImageId,EncodedPixels\na,1 2 3\nb,x 1\nc,1 0\nd,5 2 -3 1\ne,-2 1\n", [("code", n) for n in (2, 3, 4, 5, 6)]),
        ("ImageId,EncodedPixels\na,1048575 1\nb,1048575 2\nc,99999999999999999999 1\n", [("range", 3), ("code", 4)]),
        ("ImageId,EncodedPixels\na,0 5\na,4 5\nb,0 9\nb,20 1\nb,3 1 3 1\n", [("overlap", 3), ("overlap", 6)]),
    ],
)
def test_each_kind_is_found_in_its_row(tmp_path, text, expected):
    assert findings(tmp_path, text) == expected


def test_a_sample_says_which_images_in_which_order(tmp_path):
    assert findings(tmp_path, "ImageId,EncodedPixels\na,-1\nb,-1\nc,0 1\nc,5 1\nd,-1\n", SAMPLE) == []
    text = "ImageId,EncodedPixels\nb,-1\na,-1\nx,-1\nd,-1\n"
    assert findings(tmp_path, text, SAMPLE) == [("order", 3), ("unknown", 4), ("missing", 0)]


def test_ids_of_another_kind_are_told_once(tmp_path, capsys):
    text = "ImageId,EncodedPixels\na.dcm,-1\nb.dcm,-1\nc.dcm,-1\nd.dcm,-1\n"
    assert findings(tmp_path, text, SAMPLE) == [("unknown", 2)]
    main(["--submission", str(tmp_path / "submission.csv"), "--sample", str(tmp_path / "sample.csv")])
    assert "an id is a.dcm, the sample's first a" in capsys.readouterr().out


def test_an_empty_code_is_no_negative(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("ImageId,EncodedPixels\na,\nb,-1\n")
    assert main(["--submission", str(tmp_path / "a.csv")]) == BAD_INPUT
    assert "code     row 2: image a: the run-length code is empty; -1 means no pneumothorax" in capsys.readouterr().out


def test_packed_files_read_alike(tmp_path):
    text = "ImageId,EncodedPixels\na,0 1" + " 1 1" * 50_000 + "\nb,x\n"
    with gzip.open(tmp_path / "a.csv.gz", "wt") as file:
        file.write(text)
    found = validate(tmp_path / "a.csv.gz", tmp_path / "a.csv.gz")
    assert [(finding.kind, finding.row) for finding in found] == [("code", 3)]
    (tmp_path / "b.csv.gz").write_text(text)
    with pytest.raises(InputError, match=r"b\.csv\.gz cannot be read"):
        validate(tmp_path / "b.csv.gz")


def test_the_size_decides_what_leaves_an_image(tmp_path):
    text = "ImageId,EncodedPixels\na,90 10\nb,90 11\n"
    assert findings(tmp_path, text, size=(10, 10)) == [("range", 3)]
    assert findings(tmp_path, "ImageId,EncodedPixels\na,9000000 10\n", size=None) == []


def test_the_verb_counts_what_it_does_not_show(tmp_path, capsys):
    path = tmp_path / "submission.csv"
    path.write_text("ImageId,EncodedPixels\n" + "".join(f"i{n},1\n" for n in range(20)) + "j,-1\nj,-1\n")
    assert main(["--submission", str(path), "--show", "3"]) == BAD_INPUT
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 + 1 + 1
    assert lines[0].startswith("code     row 2: image i0:")
    assert lines[-1].endswith("is not valid: 20 code, 1 double.")


def test_runs_outside_the_image_may_be_of_larger_images(tmp_path, capsys):
    """As in the submission of an archive, whose images have sizes of their own."""
    path = tmp_path / "submission.csv"
    path.write_text("ImageId,EncodedPixels\na,2000000 10\n")
    assert main(["--submission", str(path)]) == BAD_INPUT
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith("is not valid: 1 range (if images are not 1024x1024: --size any).")
    assert main(["--submission", str(path), "--size", "any"]) == DONE


def test_unreadable_files_are_refused_in_words(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.csv cannot be read"):
        validate(tmp_path / "nowhere.csv")
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a csv file in UTF-8"):
        validate(path)
    path.write_text("ImageId,EncodedPixels\na,-1\n")
    (tmp_path / "sample.csv").write_text("x,y\n")
    with pytest.raises(InputError, match="not a sample submission"):
        validate(path, tmp_path / "sample.csv")
    with pytest.raises(InputError, match="--size: 0x5 cannot be used; give HEIGHTxWIDTH"):
        main(["--submission", str(path), "--size", "0x5"])
