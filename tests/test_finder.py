"""Finding: every file that may be a radiograph once, in one order, and everything else counted by reason."""

import os
import threading

import cv2
import numpy as np
import pytest

from jaxpneumo.data import finder
from jaxpneumo.data.finder import find
from jaxpneumo.data.ids import name_of, repeated_names
from jaxpneumo.dicom.dicom import write
from jaxpneumo.process.errors import InputError
from jaxpneumo.process.files import printable
from jaxpneumo.process.recording import recording

IMAGE = np.arange(1024, dtype=np.uint8).reshape(32, 32)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def add(folder, *names):
    """Writes DICOM, PNG or JPEG by the name's ending."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".png", ".jpe", ".jfif"):
            kind = ".png" if path.suffix == ".png" else ".jpg"
            path.write_bytes(cv2.imencode(kind, IMAGE)[1].tobytes())
        else:
            write(path, IMAGE, "1.2.3")


def test_endings_that_say_nothing_are_looked_into(folder):
    names = ["1.2.840.113619_0001", "1.2.840.5", "Study.2020.05.12 AP", "b", "c.IMA", "d.img", "e.dic", "f.dcm_1"]
    names += ["g.DCM", "h.dcm.bak", "i.jpe", "j.JFIF.jfif", "k.png", "l.PACS"]
    add(folder, *names)
    os.rename(folder / "l.PACS", folder / "l.x")
    (folder / "bare.ima").write_bytes((folder / "b").read_bytes()[132:])  # no preamble: its first element is of group 2
    for name in ("notes.txt", "scan.bmp", "short.img"):
        (folder / name).write_bytes(b"BM and so on")
    found = find(folder)
    assert found.folder == folder
    assert found.sources == sorted([*names[:-1], "l.x", "bare.ima"])
    assert found.left_out == {finder.OTHER: 3}


def test_a_name_like_an_images_is_taken_whatever_it_holds(folder):
    """Whoever reads it says why it cannot be used."""
    names = ["a.dcm", "b.dicom", "c.png", "d.JPG", "e.jpeg", "f.jpe", "README", "1.2.3"]
    for name in names:
        (folder / name).write_text("no image")
    assert find(folder).sources == sorted(names)


def test_what_is_left_out_is_counted_told_and_noted(folder, tmp_path, caplog):
    add(folder, "a.dcm", ".b.dcm", ".hidden/c.dcm", ".hidden/d.dcm")
    for name in ("DICOMDIR", "sub/dicomdir", "x.zip", "x.dcm.gz", "notes.txt", "a.csv"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("text")
    os.symlink("nowhere", folder / "gone.dcm")
    os.symlink("itself", folder / "itself")
    os.mkfifo(folder / "pipe.dcm")
    with recording("predict", [], tmp_path / "report.json") as report:
        assert find(folder).sources == ["a.dcm"]
    counts = {
        finder.HIDDEN: 2,
        finder.INDEX: 2,
        finder.ARCHIVE: 2,
        finder.OTHER: 2,
        finder.BROKEN: 2,
        finder.NO_FILE: 1,
    }
    assert report.skipped == {f"left out: {reason}": count for reason, count in counts.items()}
    (told,) = caplog.messages
    assert told == (
        f"Left out of {folder}: 2 DICOMDIR (DICOMDIR, ...); 2 hidden (.b.dcm, ...); 2 link to nothing (gone.dcm, ...); "
        "1 neither file nor folder (pipe.dcm); 2 not DICOM, PNG or JPEG by content (a.csv, ...); "
        "2 packed (unpack those that hold radiographs) (x.dcm.gz, ...)."
    )


def test_a_pipe_is_never_opened(folder):
    add(folder, "a.dcm")
    os.mkfifo(folder / "pipe.ima")
    os.symlink("pipe.ima", folder / "link.ima")
    searching = threading.Thread(target=find, args=(folder,), daemon=True)
    searching.start()
    searching.join(10)
    assert not searching.is_alive()


def test_links_to_folders_are_followed_and_each_folder_is_searched_once(folder, tmp_path):
    add(tmp_path, "archive/p2/c.dcm", "archive/p2/deep/d.dcm")
    add(folder, "real/a.dcm")
    os.symlink("../archive/p2", folder / "p2")
    os.symlink("../archive/p2", folder / "p2 again")
    os.symlink("real", folder / "a link that sorts first")
    os.symlink("..", folder / "real/up")  # round in a circle
    os.symlink("../..", folder / "real/out")  # a folder that holds the whole input
    os.symlink("..", tmp_path / "archive/p2/deep/circle")
    os.symlink("../archive/p2/c.dcm", folder / "file.dcm")
    found = find(folder)
    assert found.sources == ["file.dcm", "p2/c.dcm", "p2/deep/d.dcm", "real/a.dcm"]
    assert found.left_out == {finder.AGAIN: 5}
    assert find(folder) == found


def test_a_linked_folder_that_holds_another_linked_one(folder, tmp_path):
    add(tmp_path, "archive/p2/c.dcm", "archive/e.dcm")
    os.symlink("../archive/p2", folder / "a")
    os.symlink("../archive", folder / "b")
    found = find(folder)
    assert found.sources == ["a/c.dcm", "b/e.dcm"]
    assert found.left_out == {finder.AGAIN: 1}


def test_the_commands_own_output_is_no_input(folder):
    add(folder, "a.dcm", "sub/overlays/b.png", "other/a.dcm")
    (folder / "other/manifest.jsonl").write_text("{}")  # another start's output
    add(folder, "overlays/x.png", "part-00000-of-00002/overlays/y.png", "other/overlays/z.png")
    for name in ("submission.csv", "quarantine.csv", "manifest.jsonl", "run_report.json", "merged.json"):
        (folder / name).touch()
    found = find(folder, folder)
    assert found.sources == ["a.dcm", "other/a.dcm", "sub/overlays/b.png"]
    assert found.left_out == {finder.OUTPUT: 9}
    (folder / "manifest.jsonl").unlink()  # an output folder by its place alone
    assert find(folder, folder / "." / "sub" / "..").sources == found.sources
    add(folder, "out/p.png")
    assert "out/p.png" not in find(folder, folder / "out").sources
    assert "out/p.png" in find(folder, folder / "not there").sources


def test_a_folder_that_cannot_be_opened_is_set_aside_by_name(folder, monkeypatch):
    """Not by its mode, which does not keep the superuser out."""
    add(folder, "a.dcm", "locked/b.dcm")
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert find(folder).sources == ["a.dcm", "locked"]


def test_one_file_is_found_by_itself_and_nothing_is_an_error(folder, tmp_path):
    add(folder, "odd.xyz")
    found = find(folder / "odd.xyz")
    assert (found.folder, found.sources) == (folder, ["odd.xyz"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty holds no radiographs \(DICOM, PNG or JPEG files\)\. Give the right"):
        find(tmp_path / "empty")
    (tmp_path / "empty/all.zip").touch()
    with pytest.raises(InputError, match=r"1 packed \(unpack those that hold radiographs\) \(all\.zip\)\. Give"):
        find(tmp_path / "empty")
    for wrong in ("nowhere", "x" * 300):
        with pytest.raises(InputError, match="neither a folder nor a file"):
            find(tmp_path / wrong)


def test_names_that_repeat_give_way_to_paths(folder):
    sources = ["p1/s1/view.jpg", "p2/s1/view.jpg", "p2/s1/single.png", "view.png", "p1/View.jpg"]
    repeated = repeated_names(sources)
    names = [name_of(source, repeated) for source in sources]
    assert names == ["p1/s1/view", "p2/s1/view", "single", "view", "View"]
    assert [name_of("a/b/x.y.png", frozenset()), name_of("a/1.2.840.5", frozenset({"1.2.840.5"}))] == [
        "x.y",
        "a/1.2.840.5",
    ]


def test_names_that_are_no_text_are_found_and_told_apart(folder, caplog):
    names = [b"M\xfcller.png", b"M\xe4ller.png", rb"M\xfcller.png", "Müller.png".encode(), b"two\nlines.png", b" .png"]
    for name in names:
        (folder / os.fsdecode(name)).write_bytes(cv2.imencode(".png", IMAGE)[1].tobytes())
    (folder / os.fsdecode(b"\xff.txt")).touch()
    found = find(folder)
    assert sorted(map(os.fsencode, found.sources)) == sorted(names)
    called = {printable(name_of(source, frozenset())) for source in found.sources}
    expected = {r"M\xfcller", r"M\xe4ller", r"M\x5cxfcller", "Müller", r"two\x0alines", r"\x20"}
    assert called == expected
    assert r"\xff.txt" in caplog.text
