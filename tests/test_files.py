"""Files and names: whole or absent, whatever they are called."""

import os

import pytest

from jaxpneumo.process.atomic import write_atomically
from jaxpneumo.process.files import printable, safe_name


@pytest.mark.parametrize("name", ["a", "x" * 251 + ".png", "界" * 85, "b" * 101])
def test_any_name_that_a_file_can_have_can_be_written(tmp_path, name):
    with write_atomically(tmp_path / name) as file:
        file.write("text")
        (temporary,) = os.listdir(tmp_path)
        assert temporary != name
        assert len(os.fsencode(temporary)) <= max(len(os.fsencode(name)), 104)
    assert os.listdir(tmp_path) == [name]


def test_two_long_names_that_begin_alike_can_be_written_at_once(tmp_path):
    first, second = ("x" * 250 + end for end in "ab")
    with write_atomically(tmp_path / first) as one, write_atomically(tmp_path / second) as two:
        one.write("1")
        two.write("2")
    assert [(tmp_path / name).read_text() for name in (first, second)] == ["1", "2"]


def test_a_failure_leaves_nothing(tmp_path):
    def fail():
        with write_atomically(tmp_path / ("x" * 255)) as file:
            file.write("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert os.listdir(tmp_path) == []


def test_ordinary_names_stay_as_they_are():
    for name in ("1.2.840.113619", "ID_0011fe64e", "a b", "p1/s1/view", "张伟", "Müller", r"back\slash", r"\xyz"):
        assert printable(name) == name


def test_odd_names_become_text_and_stay_different():
    names = [b"\xfc", b"\xe4", rb"\xfc", rb"\x5cxfc", "ü".encode(), b"\n", rb"\x0a", b"a", b"a ", b" a", rb"a\x20"]
    names += [b"\xff\xfe", rb"\xff" + b"\xfe", b"\xff" + rb"\xfe", "\u00a0".encode(), b"\\\xfc", b"\\\\xfc"]
    texts = [printable(os.fsdecode(name)) for name in names]
    assert len(set(texts)) == len(names)
    for text in texts:
        assert text.encode("utf-8").decode() == text.strip() != ""
        assert text.isprintable()
    assert texts[:3] == [r"\xfc", r"\xe4", r"\x5cxfc"]


def test_plain_ids_name_their_files():
    for text in ("1.2.276.0.7230010.3.1", "film", "a-b_c.d", "0"):
        assert safe_name(text) == text


def test_every_file_system_tells_the_names_apart():
    texts = [
        "张伟",
        "王芳",
        "Иван",
        "a/b",
        "a_b",
        "a b",
        "A",
        "a",
        "ID_1",
        "id_1",
        ".",
        "..",
        "...",
        "con",
        "CON",
        "nul.x",
    ]
    texts += ["x" * 300, "x" * 299 + "y", "x" * 101, "com1", "-rf", "~", "a:b", "a?b", "a\\b", "", " ", "é", "e\u0301"]
    texts += [safe_name("A"), safe_name("张伟")]  # another image may be called like a made name
    names = [safe_name(text) for text in texts]
    assert len({name.lower() for name in names}) == len(texts)
    for name in names:
        assert name.isascii()
        assert 0 < len(name) <= 100
        assert not set(name) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
        assert name.lower().split(".")[0] not in ("", "con", "nul", "com1")
