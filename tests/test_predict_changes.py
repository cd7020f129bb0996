"""Radiographs that change, come and go around a prediction: no result belongs to other pixels or another patient."""

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from archives import entries
from pydicom.uid import UID

from jaxpneumo.dicom import dicom
from jaxpneumo.predict import outputs, predict
from jaxpneumo.predict.certainty import Bands
from jaxpneumo.predict.dicom_results import dicom_outputs
from jaxpneumo.predict.infer import load_predictor
from jaxpneumo.predict.manifest import MANIFEST, stamp_of_same
from jaxpneumo.predict.outputs import Output, masks_output, probabilities_output
from jaxpneumo.predict.png import write_png
from jaxpneumo.predict.predict import predict_folder
from jaxpneumo.predict.submission import read_submission
from jaxpneumo.process.files import stamp


@pytest.fixture(scope="module")
def predictor(evaluated):
    """Outlines something in some images and nothing in others."""
    loaded = load_predictor(evaluated, batch_size=2)
    return replace(loaded, settings=replace(loaded.settings, threshold=0.3, removal_threshold=740000, tta=False))


@pytest.fixture(scope="module")
def films(predictor, radiographs, tmp_path_factory) -> tuple[Path, Path]:
    """A radiograph with an outline, and one without."""
    output = tmp_path_factory.mktemp("all")
    predict_folder(predictor, radiographs / "dicom", output, 0, workers=0, quiet=True)
    found = {positive: radiographs / "dicom" / name for name, positive in outlined(output).items()}
    return found[True], found[False]


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


@pytest.fixture
def after_reading(monkeypatch):
    """Lets something happen when all files were read, before any result of them is written."""
    real = predict.read_ahead

    def happens(change) -> None:
        def read_ahead(*arguments):
            pictures = list(real(*arguments))
            change()
            yield from pictures

        monkeypatch.setattr(predict, "read_ahead", read_ahead)

    return happens


@pytest.fixture
def as_read(monkeypatch):
    """Undoes `after_reading`."""
    return monkeypatch.undo


def outlined(output: Path) -> dict[str, bool]:
    """Whether something is outlined, by file."""
    return {name: entry["positive"] for name, entry in entries(output).items() if entry["state"] == "done"}


def masks_of(output: Path) -> dict[str, bool]:
    """The same by the masks that lie on the disk, by the name of their files."""
    return {path.name: bool(np.any(cv2.imread(str(path), 0))) for path in (output / "masks").iterdir()}


def picture_of(film: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, dicom.read(film).image)


def start(predictor, folder: Path, *asked, overlays: int | None = 0):
    """One start of a job with these outputs beside the submission."""
    return predict_folder(predictor, folder, folder.with_name("out"), overlays, workers=0, quiet=True, outputs=asked)


def test_results_are_never_of_a_file_that_took_the_radiographs_place(predictor, films, folder, after_reading, as_read):
    pytest.importorskip("highdicom", reason="highdicom is not installed: pip install 'jaxpneumo[dicom]'")
    asked = dicom_outputs(predictor, ["sr", "seg"])
    positive, negative = films
    shutil.copyfile(positive, folder / "a.dcm")
    after_reading(lambda: shutil.copyfile(negative, folder / "a.dcm"))
    report = start(predictor, folder, *asked, overlays=None)
    assert report.unwritten == {"overlays": 1, "dicom_results/sr.dcm": 1, "dicom_results/seg.dcm": 1}
    assert not list(folder.with_name("out").rglob("*.dcm"))
    reasons = entries(folder.with_name("out"))["a.dcm"]["unwritten"]
    assert all("a.dcm is no longer the radiograph that was predicted" in reason for reason in reasons.values())
    as_read()
    assert start(predictor, folder, *asked, overlays=None).complete
    (results,) = (folder.with_name("out") / "dicom_results").iterdir()
    assert results.name == dicom.read(negative).uid
    assert sorted(path.name for path in results.iterdir()) == ["sr.dcm"]


def test_a_radiograph_that_is_gone_is_said_to_be(predictor, films, folder, after_reading):
    shutil.copyfile(films[0], folder / "a.dcm")
    after_reading((folder / "a.dcm").unlink)
    start(predictor, folder, overlays=None)
    reason = entries(folder.with_name("out"))["a.dcm"]["unwritten"]["overlays"]
    assert reason == "the radiograph a.dcm cannot be read any more: No such file or directory."


# Ids that come from names


@pytest.mark.parametrize("says", [True, False])
def test_a_new_file_of_the_same_name_changes_the_id_of_the_old_one_also_after_a_resume(predictor, films, folder, says):
    positive, negative = films
    output, masks = folder.with_name("out"), masks_output(predictor)
    picture_of(negative, folder / "a/film.png")
    start(predictor, folder, masks)
    assert list(read_submission(output / "submission.csv")) == ["film"]
    if not says:  # older manifests do not say where an id came from
        lines = (output / MANIFEST).read_text().replace('"named": true, ', "")
        assert '"named"' not in lines
        (output / MANIFEST).write_text(lines)
    picture_of(positive, folder / "film.png")
    assert start(predictor, folder, masks).complete
    codes = read_submission(output / "submission.csv")
    assert {uid: code != "-1" for uid, code in codes.items()} == {"a/film": False, "film": True}
    assert masks_of(output)["film.png"]


# Outputs of earlier starts


def test_masks_follow_a_file_that_was_replaced_by_an_older_one(predictor, films, folder):
    positive, negative = films
    picture_of(negative, folder / "film.png")
    picture_of(positive, folder.with_name("old.png"))
    os.utime(folder.with_name("old.png"), (1e9, 1e9))
    masks, output = masks_output(predictor), folder.with_name("out")
    start(predictor, folder, masks)
    shutil.copy2(folder.with_name("old.png"), folder / "film.png")
    start(predictor, folder, masks)
    assert outlined(output) == masks_of(output) == {"film.png": True}


@pytest.mark.parametrize("elsewhere", [False, True])
def test_another_radiograph_of_the_same_name_size_and_time_is_predicted(predictor, films, folder, elsewhere):
    """As of two archives that give all their files one time: unpacked one over the other, or into two folders."""
    masks, output, other = masks_output(predictor), folder.with_name("out"), folder.with_name("in2")
    for film, place in zip(films, (folder, other), strict=True):
        image = cv2.resize(dicom.read(film).image, (128, 128), interpolation=cv2.INTER_AREA)
        dicom.write(place / "film.dcm", image, "1.5" if place == folder else "1.6", "P")
        plain = pydicom.dcmread(place / "film.dcm")
        plain.decompress(generate_instance_uid=False)
        plain.save_as(place / "film.dcm")
        os.utime(place / "film.dcm", (1e9, 1e9))
    assert (folder / "film.dcm").stat().st_size == (other / "film.dcm").stat().st_size
    start(predictor, folder, masks)
    assert outlined(output) == {"film.dcm": True}
    if not elsewhere:
        shutil.copy2(other / "film.dcm", folder / "film.dcm")
    start(predictor, other if elsewhere else folder, masks)
    assert outlined(output) == {"film.dcm": False}
    assert masks_of(output) == {"1.6.png": False}


def test_a_copy_of_the_radiographs_is_not_predicted_again(predictor, films, folder, monkeypatch):
    """Its times are others, and its checksums are the same."""
    picture_of(films[0], folder / "film.png")
    start(predictor, folder)
    shutil.copy(folder / "film.png", folder.with_name("copy.png"))
    shutil.rmtree(folder)
    folder.mkdir()
    folder.with_name("copy.png").rename(folder / "film.png")
    before = entries(folder.with_name("out"))
    monkeypatch.setattr(predict, "read_ahead", lambda reading, left, workers: iter(left))  # none is left
    start(predictor, folder)
    after = entries(folder.with_name("out"))
    stamped = list(stamp(folder / "film.png"))
    assert after == {"film.png": {**before["film.png"], "stamp": stamped}} != before


def test_a_file_that_could_not_be_read_is_tried_again(folder):
    gone = {"file": "film.png", "stamp": [0, 0, 0], "sha256": "", "state": "set aside"}
    assert stamp_of_same(folder / "film.png", gone) is None
    (folder / "film.png").write_bytes(b"")
    assert stamp_of_same(folder / "film.png", gone) is None


def test_masks_without_their_manifest_are_made_anew(predictor, films, folder):
    """They may be another model's. One overlay is allowed, and it takes the place of the old one."""
    positive, _ = films
    picture_of(positive, folder / "film.png")
    masks, output = masks_output(predictor), folder.with_name("out")
    start(predictor, folder, masks, overlays=1)
    overlay = (output / "overlays/film.png").read_bytes()
    (output / MANIFEST).unlink()
    for path in (output / "overlays/film.png", output / "masks/film.png"):
        path.write_bytes(b"of another model")
    start(predictor, folder, masks, overlays=1)
    assert masks_of(output) == {"film.png": True}
    assert (output / "overlays/film.png").read_bytes() == overlay


def test_what_was_deleted_is_made_again_and_nothing_else(predictor, films, folder):
    pytest.importorskip("highdicom", reason="highdicom is not installed: pip install 'jaxpneumo[dicom]'")
    positive, negative = films
    shutil.copyfile(positive, folder / "a.dcm")
    shutil.copyfile(negative, folder / "b.dcm")
    picture_of(positive, folder / "film.png")
    asked, output = [masks_output(predictor), *dicom_outputs(predictor, ["sr", "seg"])], folder.with_name("out")

    def written() -> dict[str, int]:
        return {
            path.relative_to(output).as_posix(): path.stat().st_ino
            for path in output.rglob("*.*")
            if path.is_file() and path.parent != output
        }

    start(predictor, folder, *asked)
    first = written()
    assert len(first) == 3 + 3
    start(predictor, folder, *asked)
    assert written() == first
    gone = [name for name in first if name == "masks/film.png" or name.endswith("seg.dcm")]
    for name in gone:
        (output / name).unlink()
    start(predictor, folder, *asked)
    assert written().keys() == first.keys()
    kept = [
        name for name in first if dicom.read(negative).uid in name or name == f"masks/{dicom.read(positive).uid}.png"
    ]
    assert len(kept) == 3
    assert all(written()[name] == first[name] for name in kept)


@pytest.mark.parametrize("damaged", [True, False])
def test_of_an_image_that_is_no_longer_in_the_results_no_file_is_left(predictor, films, folder, damaged):
    """It was damaged, or is gone. A later start that asks for none of them removes them too."""
    pytest.importorskip("highdicom", reason="highdicom is not installed: pip install 'jaxpneumo[dicom]'")
    positive, negative = films
    shutil.copyfile(positive, folder / "a.dcm")
    shutil.copyfile(negative, folder / "b.dcm")
    asked, output = [masks_output(predictor), probabilities_output(predictor, "npz")], folder.with_name("out")
    start(predictor, folder, *asked, *dicom_outputs(predictor, ["sr", "seg"]), overlays=None)
    of_image = {path for path in output.rglob("*") if dicom.read(positive).uid in str(path)}
    assert len(of_image) == 3 + 1 + 2  # three files, and a folder with two
    others = {*output.rglob("*")} - of_image
    if damaged:
        (folder / "a.dcm").write_bytes(b"damaged")
    else:
        (folder / "a.dcm").unlink()
    start(predictor, folder)
    assert {*output.rglob("*")} - {output / "quarantine.csv"} == others


def test_a_picture_says_nothing_that_a_later_evaluation_changes(predictor, films, folder):
    """The certainty of the table and the page follows the limits at once, while pictures that are there are kept."""
    shutil.copyfile(films[0], folder / "a.dcm")
    output, pictures = folder.with_name("out"), []
    predictor = replace(predictor, settings=replace(predictor.settings, removal_threshold=0))
    for bands in (Bands(0.0, 0.001, calibrated=True), Bands(0.0, 0.999, calibrated=True)):
        start(replace(predictor, bands=bands), folder, overlays=None)
        certainty = (output / "results.csv").read_text().splitlines()[1].split(",")[3]
        pictures.append((certainty, [path.read_bytes() for path in (output / "overlays").iterdir()]))
        shutil.rmtree(output / "overlays")
    (before, one), (after, other) = pictures
    assert (before, after) == ("likely", "uncertain")
    assert one == other


# Several files of one image


def test_results_are_those_of_the_file_that_is_used(predictor, films, folder):
    """Two files have one UID and other pixels, with others between them; then the used one goes and comes back."""
    pytest.importorskip("highdicom", reason="highdicom is not installed: pip install 'jaxpneumo[dicom]'")
    positive, negative = films
    shutil.copyfile(positive, folder / "a.dcm")
    twin = pydicom.dcmread(negative)
    twin.SOPInstanceUID = twin.file_meta.MediaStorageSOPInstanceUID = uid = UID(dicom.read(positive).uid)
    twin.save_as(folder / "z.dcm")
    for number in range(6):
        picture_of(negative, folder / f"m{number}.png")
    asked, output = [masks_output(predictor), *dicom_outputs(predictor, ["sr", "seg"])], folder.with_name("out")

    def check(found: bool) -> None:
        start(predictor, folder, *asked)
        assert (read_submission(output / "submission.csv")[uid] != "-1") == found
        assert (output / f"dicom_results/{uid}/seg.dcm").exists() == found
        assert masks_of(output)[f"{uid}.png"] == found

    check(True)
    assert entries(output)["z.dcm"]["second"]
    check(True)
    (folder / "a.dcm").rename(folder.with_name("a.dcm"))
    check(False)
    folder.with_name("a.dcm").rename(folder / "a.dcm")
    check(True)


def test_no_file_is_left_of_one_that_another_comes_before(predictor, films, folder):
    """Also if the start that finds the new one asks for nothing."""
    pytest.importorskip("highdicom", reason="highdicom is not installed: pip install 'jaxpneumo[dicom]'")
    positive, negative = films
    shutil.copyfile(positive, folder / "b.dcm")
    asked = [masks_output(predictor), probabilities_output(predictor, "npz"), *dicom_outputs(predictor, ["sr", "seg"])]
    start(predictor, folder, *asked, overlays=None)
    twin = pydicom.dcmread(negative)
    twin.SOPInstanceUID = twin.file_meta.MediaStorageSOPInstanceUID = uid = UID(dicom.read(positive).uid)
    twin.save_as(folder / "a.dcm")
    start(predictor, folder)
    output = folder.with_name("out")
    assert read_submission(output / "submission.csv") == {uid: "-1"}
    assert [path for path in output.rglob("*") if uid in path.name and path.is_file()] == []
    assert not list(output.rglob("*.dcm"))
    start(predictor, folder, masks_output(predictor))
    assert masks_of(output) == {f"{uid}.png": False}


# Stops


def test_after_a_stop_nothing_more_is_begun(predictor, films, folder, monkeypatch):
    """Ctrl-C while one thread writes and others wait for it."""
    begun, real = [], predict.read_ahead

    def write(path, finding, source):
        begun.append(source)
        time.sleep(0.3)

    def read_ahead(*arguments):
        yield from real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "read_ahead", read_ahead)
    monkeypatch.setattr(outputs, "cores", lambda: 1)
    for number in range(6):
        picture_of(films[0], folder / f"{number}.png")
    with pytest.raises(KeyboardInterrupt):
        start(predictor, folder, Output("masks", ".png", write))
    assert len(begun) == 1
