"""A JSON file with a checksum of itself: every changed bit is found."""

import json

import pytest

from jaxpneumo.process import sealed
from jaxpneumo.process.errors import InputError

VALUE = {"counts": {"images": 5, "positive": 2}, "name": "é", "zeros": "0" * 64, "synthetic": True}


def test_what_was_written_is_read_and_intact(tmp_path):
    path = tmp_path / "a.json"
    sealed.write_sealed(path, VALUE)
    content = json.loads(path.read_text())
    assert list(content) == [*VALUE, "checksum"]
    assert {key: content[key] for key in VALUE} == VALUE
    assert sealed.is_intact(path)
    before = path.read_bytes()
    sealed.write_sealed(path, content)
    assert path.read_bytes() == before


def test_every_bit_counts(tmp_path):
    path = tmp_path / "a.json"
    sealed.write_sealed(path, VALUE)
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            intact = sealed.is_intact(path)
        except InputError:
            continue  # no JSON any more
        assert intact is False or (intact is None and "checksum" not in json.loads(path.read_text()))


def test_a_file_without_checksum_is_neither(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert sealed.is_intact(tmp_path / "a.json") is None
    (tmp_path / "a.json").write_text('{"a": 1, "checksum": 7}')
    assert sealed.is_intact(tmp_path / "a.json") is False
    with pytest.raises(InputError, match="cannot be read"):
        sealed.is_intact(tmp_path / "none.json")
