"""The submission file: what is written, what is read back, what is refused."""

import pytest

from jaxpneumo.predict.submission import read_submission, write_submission
from jaxpneumo.process.errors import InputError

ROWS = [("1.2.276.0.7230010.3.1.4.8323329.6904", "10 3 5 2"), ("ID_b", "-1"), ("ID_a", "")]


def test_bytes_of_the_file(tmp_path):
    path = tmp_path / "predictions" / "submission.csv"
    write_submission(path, iter(ROWS))
    assert path.read_bytes() == (
        b"ImageId,EncodedPixels\n1.2.276.0.7230010.3.1.4.8323329.6904,10 3 5 2\nID_b,-1\nID_a,-1\n"
    )


def test_round_trip_keeps_order_and_any_id(tmp_path):
    path = tmp_path / "submission.csv"
    rows = [*ROWS, ('odd, "id"', "0 1")]
    write_submission(path, rows)
    assert list(read_submission(path).items()) == [(name, code or "-1") for name, code in rows]


def test_no_rows_give_a_header_alone(tmp_path):
    path = tmp_path / "submission.csv"
    write_submission(path, [])
    assert path.read_text() == "ImageId,EncodedPixels\n"
    assert read_submission(path) == {}


def test_the_challenge_s_dialect_is_read(tmp_path):
    path = tmp_path / "submission.csv"
    path.write_bytes(b"\xef\xbb\xbfImageId, EncodedPixels\r\na, -1\r\nb, 5 2\r\nc,\r\n\r\n")
    assert read_submission(path) == {"a": "-1", "b": "5 2", "c": "-1"}


def failing_rows():
    yield ROWS[0]
    raise RuntimeError("the prediction failed")


@pytest.mark.parametrize(
    ("rows", "error", "words"),
    [
        ([ROWS[1], ROWS[1]], InputError, "ID_b comes twice"),
        ([ROWS[1], (" ", "-1")], InputError, "no id"),
        (failing_rows(), RuntimeError, "failed"),
    ],
)
def test_a_failure_leaves_the_old_file(tmp_path, rows, error, words):
    path = tmp_path / "submission.csv"
    write_submission(path, ROWS)
    before = path.read_bytes()
    with pytest.raises(error, match=words):
        write_submission(path, rows)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["submission.csv"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file"),
        (b"image,code\na,-1\n", "it has: image,code"),
        (b"ImageId,EncodedPixels\na,-1\na,5 2\n", "row 3: image a comes twice"),
        (b"ImageId,EncodedPixels\na\n", "row 2: expected"),
        (b"ImageId,EncodedPixels\n,-1\n", "row 2: expected"),
        (b"ImageId,EncodedPixels\n\xff\xfe,-1\n", "UTF-8"),
    ],
)
def test_a_damaged_file_is_refused_in_words(tmp_path, content, words):
    path = tmp_path / "submission.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        read_submission(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.csv cannot be read"):
        read_submission(tmp_path / "nowhere.csv")
