"""Folders and arrays from Python: which files are left out, whom the warnings name, and which arrays are in colour."""

import shutil

import numpy as np
import pytest

import jaxpneumo
from jaxpneumo.dicom.dicom import write
from jaxpneumo.export.self_check import pictures
from jaxpneumo.process.errors import InputError


@pytest.fixture(scope="module")
def model(evaluated):
    return jaxpneumo.load(evaluated)


@pytest.fixture
def folder(radiographs, tmp_path):
    """Two radiographs, and the first of them once more."""
    for name, file in zip("abc", (0, 1, 0), strict=True):
        shutil.copy(sorted((radiographs / "dicom").rglob("*.dcm"))[file], tmp_path / f"{name}.dcm")
    return tmp_path


def test_an_image_comes_once_whatever_copies_the_folder_has(model, folder):
    """As in the command's submission: the first file by path."""
    with pytest.warns(UserWarning, match=r"Left out: .*c\.dcm is a second file of image .*; .*a\.dcm is used\.$"):
        results = list(model.predict(folder))
    assert [result.source for result in results] == [str(folder / name) for name in ("a.dcm", "b.dcm")]


def test_a_file_that_is_named_is_predicted_as_often_as_it_is_named(model, folder):
    files = [folder / name for name in ("a.dcm", "a.dcm", "c.dcm")]
    assert [result.source for result in model.predict(files)] == list(map(str, files))


def test_warnings_name_the_line_that_asked_for_the_results(model, folder):
    (folder / "d.dcm").write_text("not a radiograph")
    with pytest.warns(UserWarning, match="Left out") as warned:
        list(model.predict(folder))
    assert [warning.filename for warning in warned] == [__file__, __file__]


def test_an_export_is_compared_on_the_views_that_predict_takes(tmp_path):
    image = np.add.outer(np.arange(40), np.arange(48)).astype(np.uint8)
    for uid, view in (("1.1", "PA"), ("1.2", "LL")):
        write(tmp_path / f"{uid}.dcm", image, uid, view=view)
    read, _ = pictures(tmp_path, tmp_path)
    assert len(list(read())) == 1
    (tmp_path / "1.1.dcm").unlink()
    with pytest.raises(InputError, match="none of the 1 files is a radiograph that can be used"):
        pictures(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((3, 40, 48), "It seems to be a colour picture: give the radiograph in grey"),
        ((4, 40, 48), "It seems to be a colour picture"),
        ((1, 40, 48), r"Leave out the first axis: image\[0\]"),
    ],
)
def test_channels_that_come_first_are_told_from_several_images(model, shape, words):
    array = np.broadcast_to(np.arange(48, dtype=np.uint8), shape)
    with pytest.raises(InputError, match=words):
        model.predict(array)
