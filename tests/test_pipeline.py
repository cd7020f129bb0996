"""Reading ahead: the same pictures in the same order from processes and threads, bad files among them."""

import hashlib
import itertools
import os
import shutil

import numpy as np
import pytest

from jaxpneumo.data.dicom import read
from jaxpneumo.data.squash import squash
from jaxpneumo.errors import InputError
from jaxpneumo.predict import pipeline
from jaxpneumo.predict.pipeline import find_radiographs, read_ahead


@pytest.fixture
def archive(radiographs, tmp_path):
    """Sound files at several depths, one cut short, one of text, one that is gone."""
    files = sorted((radiographs / "dicom").rglob("*.dcm"))[:12]
    for number, path in enumerate(files):
        target = tmp_path / "in" / str(number % 3) / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    (tmp_path / "in/0/cut.dcm").write_bytes(files[0].read_bytes()[:3000])
    (tmp_path / "in/text.dcm").write_text("not a radiograph")
    folder, sources = find_radiographs(tmp_path / "in")
    return folder, [*sources[:5], "1/gone.dcm", *sources[5:]]


@pytest.mark.parametrize("team", [0, 1, 2])
def test_pictures_come_in_order_and_are_those_of_preparation(archive, team):
    folder, sources = archive
    pictures = list(read_ahead(folder, sources, 32, team))
    assert [picture.source for picture in pictures] == sources
    for picture in pictures:
        if picture.reason:
            assert picture.image is None
            assert str(folder) not in picture.reason
            continue
        radiograph = read(folder / picture.source)
        assert (picture.uid, picture.height, picture.width) == (radiograph.uid, *radiograph.image.shape)
        np.testing.assert_array_equal(picture.image, *squash(radiograph.image, (32,)))
        assert picture.sha256 == hashlib.sha256((folder / picture.source).read_bytes()).hexdigest()
    reasons = {picture.source: picture.reason for picture in pictures if picture.reason}
    assert set(reasons) == {"0/cut.dcm", "text.dcm", "1/gone.dcm"}
    assert "not a DICOM" in reasons["text.dcm"]
    assert "cannot be read" in reasons["1/gone.dcm"]


def test_pictures_stay_what_they_are_while_others_come(archive, monkeypatch):
    """The shared memory is used again many times over; what was given away is not in it."""
    monkeypatch.setattr(pipeline, "WINDOW", 3)
    folder, sources = archive
    sound = [source for source in sources if "cut" not in source and "text" not in source and "gone" not in source]
    pictures = list(read_ahead(folder, sound * 3, 32, 2))
    for first, again in zip(pictures[:12], pictures[24:], strict=True):
        np.testing.assert_array_equal(first.image, again.image)
        np.testing.assert_array_equal(first.image, *squash(read(folder / first.source).image, (32,)))


def test_what_is_left_unread_leaves_nothing_behind(archive):
    before = set(os.listdir("/dev/shm"))
    folder, sources = archive
    pictures = read_ahead(folder, sources * 5, 32, 2)
    assert len(list(itertools.islice(pictures, 3))) == 3
    assert set(os.listdir("/dev/shm")) > before
    pictures.close()
    assert set(os.listdir("/dev/shm")) <= before


def test_files_are_found_by_name_in_one_order(tmp_path):
    for name in ("b/x.dcm", "a.dcm", "a/y.PNG", "a/1.2.840.3", "notes.txt", "b/DICOMDIR", ".hidden", "out/p.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_radiographs(tmp_path, tmp_path / "out") == (tmp_path, ["a.dcm", "a/1.2.840.3", "a/y.PNG", "b/x.dcm"])
    assert find_radiographs(tmp_path / "a.dcm") == (tmp_path, ["a.dcm"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no \.dcm"):
        find_radiographs(tmp_path / "empty")
    with pytest.raises(InputError, match="neither a folder nor a file"):
        find_radiographs(tmp_path / "nowhere")
