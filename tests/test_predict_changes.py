"""Radiographs that change, come and go around a prediction: no result belongs to other pixels or another patient."""

import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from archives import entries

from jaxpneumo.data import rle
from jaxpneumo.dicom import dicom
from jaxpneumo.predict import predict
from jaxpneumo.predict.dicom_results import dicom_outputs
from jaxpneumo.predict.infer import load_predictor
from jaxpneumo.predict.outputs import masks_output
from jaxpneumo.predict.predict import predict_folder
from jaxpneumo.predict.submission import read_submission


@pytest.fixture(scope="module")
def predictor(evaluated):
    """Outlines something in every image."""
    loaded = load_predictor(evaluated, batch_size=2)
    return replace(loaded, settings=replace(loaded.settings, threshold=0.001, removal_threshold=0, tta=False))


@pytest.fixture(scope="module")
def films(radiographs) -> list[Path]:
    return sorted((radiographs / "dicom").rglob("*.dcm"))


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


def start(predictor, folder: Path, *outputs, overlays: int | None = 0):
    """One start of a job with these outputs beside the submission."""
    return predict_folder(predictor, folder, folder.with_name("out"), overlays, workers=0, quiet=True, outputs=outputs)


def test_results_are_never_of_a_file_that_took_the_radiographs_place(predictor, films, folder, after_reading, as_read):
    pytest.importorskip("highdicom", reason="highdicom is not installed: pip install 'jaxpneumo[dicom]'")
    outputs = dicom_outputs(predictor, ["sr", "seg"])
    shutil.copyfile(films[0], folder / "a.dcm")
    after_reading(lambda: shutil.copyfile(films[1], folder / "a.dcm"))
    report = start(predictor, folder, *outputs, overlays=None)
    assert report.unwritten == {"overlays": 1, "dicom_results/sr.dcm": 1, "dicom_results/seg.dcm": 1}
    assert not list(folder.with_name("out").rglob("*.dcm"))
    reasons = entries(folder.with_name("out"))["a.dcm"]["unwritten"]
    assert all("a.dcm is no longer the radiograph that was predicted" in reason for reason in reasons.values())
    as_read()
    assert start(predictor, folder, *outputs, overlays=None).complete
    (results,) = (folder.with_name("out") / "dicom_results").iterdir()
    assert results.name == dicom.read(films[1]).uid
    assert sorted(path.name for path in results.iterdir()) == ["seg.dcm", "sr.dcm"]


def test_a_radiograph_that_is_gone_is_said_to_be(predictor, films, folder, after_reading):
    shutil.copyfile(films[0], folder / "a.dcm")
    after_reading((folder / "a.dcm").unlink)
    start(predictor, folder, overlays=None)
    reason = entries(folder.with_name("out"))["a.dcm"]["unwritten"]["overlays"]
    assert reason == "the radiograph a.dcm cannot be read any more: No such file or directory."
