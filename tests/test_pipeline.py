"""Reading ahead: the same pictures in the same order from processes and threads, bad files among them."""

import hashlib
import itertools
import os
import shutil

import cv2
import numpy as np
import pytest

from jaxpneumo.data import finder
from jaxpneumo.data.ids import repeated_names
from jaxpneumo.data.resize import resize_to_squares
from jaxpneumo.dicom.dicom import read, write
from jaxpneumo.predict import reading
from jaxpneumo.predict.reading import Reading, read_ahead


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
    found = finder.find(tmp_path / "in")
    return found.folder, [*found.sources[:5], "1/gone.dcm", *found.sources[5:]]


@pytest.mark.parametrize("team", [0, 1, 2])
def test_pictures_come_in_order_and_are_those_of_preparation(archive, team):
    folder, sources = archive
    pictures = list(read_ahead(Reading(folder, 32), sources, team))
    assert [picture.source for picture in pictures] == sources
    for picture in pictures:
        if picture.reason:
            assert picture.image is None
            assert str(folder) not in picture.reason
            continue
        radiograph = read(folder / picture.source)
        assert (picture.uid, picture.height, picture.width) == (radiograph.uid, *radiograph.image.shape)
        np.testing.assert_array_equal(picture.image, *resize_to_squares(radiograph.image, (32,)))
        assert picture.sha256 == hashlib.sha256((folder / picture.source).read_bytes()).hexdigest()
    reasons = {picture.source: picture.reason for picture in pictures if picture.reason}
    assert set(reasons) == {"0/cut.dcm", "text.dcm", "1/gone.dcm"}
    assert "not a DICOM" in reasons["text.dcm"]
    assert "cannot be read" in reasons["1/gone.dcm"]


def test_pictures_stay_what_they_are_while_others_come(archive, monkeypatch):
    """The shared memory is used again many times over; what was given away is not in it."""
    monkeypatch.setattr(reading, "WINDOW", 3)
    folder, sources = archive
    sound = [source for source in sources if "cut" not in source and "text" not in source and "gone" not in source]
    pictures = list(read_ahead(Reading(folder, 32), sound * 3, 2))
    for first, again in zip(pictures[:12], pictures[24:], strict=True):
        np.testing.assert_array_equal(first.image, again.image)
        np.testing.assert_array_equal(first.image, *resize_to_squares(read(folder / first.source).image, (32,)))


def test_what_is_left_unread_leaves_nothing_behind(archive):
    before = set(os.listdir("/dev/shm"))
    folder, sources = archive
    pictures = read_ahead(Reading(folder, 32), sources * 5, 2)
    assert len(list(itertools.islice(pictures, 3))) == 3
    assert set(os.listdir("/dev/shm")) > before
    pictures.close()
    assert set(os.listdir("/dev/shm")) <= before


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (40, 48), np.uint8)


@pytest.mark.parametrize("team", [0, 2])
def test_images_are_called_by_uid_else_by_name_and_where_names_repeat_by_path(tmp_path, team):
    """The name must not depend on which part of the listing is read: one file is read alone here."""
    for number, name in enumerate(("p1/view1.png", "p2/view1.jpg", "p2/other.jpg", "p3/view1.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), picture(number))
    for folder in ("p1", "p2"):
        write(tmp_path / folder / "1.2.3.dcm", picture(9), "1.2.3")  # copies of one image, named by its UID
    found = finder.find(tmp_path)
    reading = Reading(tmp_path, 32, repeated_names(found.sources))
    assert {each.source: each.uid for each in read_ahead(reading, found.sources, team)} == {
        "p1/1.2.3.dcm": "1.2.3",
        "p1/view1.png": "p1/view1",
        "p2/1.2.3.dcm": "1.2.3",
        "p2/other.jpg": "other",
        "p2/view1.jpg": "p2/view1",
        "p3/view1.png": "p3/view1",
    }
    assert [each.uid for each in read_ahead(reading, ["p3/view1.png"], team)] == ["p3/view1"]


def test_what_is_no_frontal_chest_is_set_aside_unless_any_image_is_wanted(tmp_path):
    cv2.imwrite(str(tmp_path / "strip.png"), np.tile(picture(0)[:20], (1, 5)))
    write(tmp_path / "lateral.dcm", picture(1), "1.2.1", view="LL")
    write(tmp_path / "frontal.dcm", picture(1), "1.2.2", view="PA")
    sources = finder.find(tmp_path).sources
    reasons = {each.source: each.reason for each in read_ahead(Reading(tmp_path, 32), sources)}
    assert reasons == {
        "frontal.dcm": "",
        "lateral.dcm": "not a frontal chest radiograph: View Position is LL",
        "strip.png": "not a frontal chest radiograph: its picture has 20 rows and 240 columns",
    }
    assert not any(each.reason for each in read_ahead(Reading(tmp_path, 32, any_image=True), sources))
