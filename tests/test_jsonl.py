"""Files of JSON lines: what is whole is read, what is broken ends the reading, what is safe is on the disk."""

import io
import os

import pytest

from jaxpneumo.process import jsonl
from jaxpneumo.process.errors import InputError

ENTRIES = [{"a": 1}, {"b": "ü\n"}, {"c": [None, 2.5]}]


def test_entries_come_back_with_their_bytes(tmp_path):
    with open(tmp_path / "a.jsonl", "wb") as file:
        writer = jsonl.Writer(file)
        for entry in ENTRIES:
            writer.append(entry)
        # Before the file is closed: a process that is killed has lost nothing.
        data = (tmp_path / "a.jsonl").read_bytes()
    lines = data.splitlines(keepends=True)
    assert len(lines) == 3
    ends = [len(lines[0]), len(lines[0] + lines[1]), len(data)]
    assert list(jsonl.read(io.BytesIO(data))) == list(zip(ENTRIES, ends, strict=True))


@pytest.mark.parametrize("broken", [b'{"a": 2', b"\0\0\0\n", b"[1]\n", b"2\n", b"\xff\n", b"\n", b'{"a": 2}'])
def test_reading_ends_at_the_first_broken_line(broken):
    data = jsonl.line({"a": 1}) + broken + (jsonl.line({"a": 3}) if broken.endswith(b"\n") else b"")
    assert list(jsonl.read(io.BytesIO(data))) == [({"a": 1}, 9)]


def test_lines_go_to_the_disk_in_groups(tmp_path, monkeypatch):
    safe = []
    with open(tmp_path / "a.jsonl", "wb") as file:
        size = lambda _: safe.append(os.stat(file.name).st_size // 9)  # noqa: E731
        monkeypatch.setattr(os, "fsync", size)
        writer = jsonl.Writer(file, group=3)
        for _ in range(7):
            writer.append({"a": 1})
        writer.append({"a": 1}, safe=True)
        writer.append({"a": 1})
        assert safe == [3, 6, 8]
        never = jsonl.Writer(file)
        for _ in range(200):
            never.append({"a": 1})
        assert len(safe) == 3


def test_one_process_at_a_time(tmp_path):
    with open(tmp_path / "a", "wb") as first, open(tmp_path / "a", "rb") as second:
        jsonl.lock(first.fileno(), tmp_path)
        with pytest.raises(InputError, match=r"is being filled by another process\. Wait for it, or end it\."):
            jsonl.lock(second.fileno(), tmp_path)
    with open(tmp_path / "a", "rb") as third:
        jsonl.lock(third.fileno(), tmp_path)


def test_changes_in_words():
    before, now = {"a": 1, "b": "x" * 50, "c": 3}, {"a": 1, "b": "y", "d": 4}
    assert jsonl.changes(before, now, width=5) == "b xxxxx, now y; c 3, now None; d None, now 4"
