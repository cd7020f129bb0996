"""`predict --dicom`: which results a job writes, what it says of files that have none, and how it goes on."""

import csv
import json
import os
import resource
import signal
import sys
from multiprocessing import parent_process
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest

from jaxpneumo.data import rle
from jaxpneumo.dicom import dicom
from jaxpneumo.predict.infer import load_predictor
from jaxpneumo.predict.outputs import Output
from jaxpneumo.predict.predict import main, predict_folder
from jaxpneumo.process import errors, run_report
from jaxpneumo.process.errors import DONE, FAILED, PARTIAL
from jaxpneumo.process.jsonl import read

hd = pytest.importorskip("highdicom", reason="highdicom is not installed: pip install 'jaxpneumo[dicom]'")
# Outlines something in every image.
LOW = ("--threshold", "0.001", "--removal-threshold", "0", "--overlays", "0", "--no-tta", "--workers", "0")


@pytest.fixture(scope="module")
def films(radiographs, tmp_path_factory) -> Path:
    """Two radiographs as DICOM and one as PNG."""
    folder = tmp_path_factory.mktemp("films")
    for path in sorted(radiographs.rglob("*.dcm"))[:2]:
        (folder / path.name).write_bytes(path.read_bytes())
    cv2.imwrite(str(folder / "picture.png"), dicom.read_image(path).image)
    return folder


def start(run: Path, films: Path, output: Path, kinds: str, *options: str) -> int:
    line = ["--workdir", str(run), "--input", str(films), "--output", str(output), "--dicom", kinds, *options]
    return errors.exit_code(main, line)


def entries(output: Path) -> dict[str, dict]:
    with open(output / "manifest.jsonl", "rb") as file:
        return {entry["file"]: entry for entry, _ in read(file) if entry.get("state")}


def results(output: Path) -> dict[str, bytes]:
    folder = output / "dicom_results"
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def output(evaluated, films, tmp_path_factory) -> Path:
    """What a whole job writes."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    assert start(evaluated, films, folder, "seg,sr", *LOW) == PARTIAL
    return folder


def test_results_lie_in_a_folder_for_each_radiograph_and_agree_with_the_submission(films, output):
    uids = {path.stem for path in films.glob("*.dcm")}
    assert results(output).keys() == {f"{uid}/{kind}.dcm" for uid in uids for kind in ("seg", "sr")}
    with open(output / "submission.csv") as file:
        codes = {row["ImageId"]: row["EncodedPixels"] for row in csv.DictReader(file)}
    header, *_ = (json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines())
    for uid in uids:
        pixels = hd.seg.segread(output / "dicom_results" / uid / "seg.dcm").get_pixels_by_source_instance([uid])
        np.testing.assert_array_equal(pixels[0, ..., 0], rle.decode(codes[uid], 128, 128))
        report = pydicom.dcmread(output / "dicom_results" / uid / "sr.dcm")
        assert report.DeviceSerialNumber == header["model"]
        assert report.SeriesDescription.endswith("synthetic")


def test_a_picture_without_header_is_predicted_and_listed_without_results(output):
    entry = entries(output)["picture.png"]
    assert entry["state"] == "done"
    reasons = entry["unwritten"]
    assert reasons.keys() == {"dicom_results/seg.dcm", "dicom_results/sr.dcm"}
    assert all("picture.png has no DICOM results: it is not a DICOM file" in reason for reason in reasons.values())


def test_that_there_can_be_no_results_is_said_once_and_not_tried_again(evaluated, films, tmp_path, caplog, capsys):
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "in" / name).write_bytes((films / "picture.png").read_bytes())
    for times in (1, 0):  # the second start has nothing to do
        caplog.clear()
        assert start(evaluated, tmp_path / "in", tmp_path / "out", "seg,sr", *LOW) == PARTIAL
        assert sum("has no DICOM results" in message for message in caplog.messages) == times
        assert "2 seg.dcm, 2 sr.dcm of" in capsys.readouterr().out


def test_only_what_was_asked_for_and_is_due_counts_as_not_written(evaluated, films, tmp_path, capsys):
    """Of an image without an outline only a report is due; a later start without --dicom asks for none."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes((films / "picture.png").read_bytes())
    nothing = ("--removal-threshold", str(1024 * 1024), *LOW[4:])
    assert start(evaluated, tmp_path / "in", tmp_path / "out", "seg,sr,capture", *nothing) == PARTIAL
    told = f"1 sr.dcm of {tmp_path / 'out/dicom_results'} could not be written"
    assert told in capsys.readouterr().out
    assert entries(tmp_path / "out")["a.png"]["unwritten"].keys() == {"dicom_results/sr.dcm"}
    plain = ["--workdir", str(evaluated), "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    assert main([*plain, *nothing]) == DONE
    assert "could not be written" not in capsys.readouterr().out


def test_processes_make_the_same_results(evaluated, films, output, tmp_path):
    report = run_report.Report("predict", [])
    with run_report.under_way(report):
        assert start(evaluated, films, tmp_path / "out", "seg,sr", *LOW, "--workers", "2") == PARTIAL
    assert results(tmp_path / "out") == results(output)
    assert {str(tmp_path / "out/dicom_results" / name) for name in results(output)} < report.written.paths.keys()
    assert entries(tmp_path / "out") == entries(output)


def where(path: Path, finding, source: Path) -> None:
    """Writes which process it runs in; one that is not the first is killed."""
    if parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    path.parent.mkdir(exist_ok=True)
    path.write_text(str(os.getpid()))


def test_a_killed_process_costs_no_result(evaluated, films, tmp_path):
    predictor = load_predictor(evaluated, batch_size=2)
    output = Output("where", ".txt", where, plain_python=True)
    assert predict_folder(predictor, films, tmp_path, 0, workers=1, outputs=[output]).complete
    assert [path.read_text() for path in (tmp_path / "where").iterdir()] == 3 * [str(os.getpid())]


def test_a_later_start_adds_the_kinds_that_are_missing(evaluated, films, output, tmp_path):
    assert start(evaluated, films, tmp_path / "out", "sr", *LOW) == PARTIAL
    assert {Path(name).name for name in results(tmp_path / "out")} == {"sr.dcm"}
    assert start(evaluated, films, tmp_path / "out", "seg,sr", *LOW) == PARTIAL
    again = results(tmp_path / "out")
    assert again.keys() == results(output).keys()
    assert {name: data for name, data in again.items() if "seg" in name} == {
        name: data for name, data in results(output).items() if "seg" in name
    }


def test_a_full_disk_stops_the_job_and_the_next_start_ends_as_if_it_had_not(evaluated, tmp_path, capsys):
    """No file may have more than 20 kB: a report fits, a segmentation of 512 x 512 pixels does not."""
    (tmp_path / "in").mkdir()
    image = np.add.outer(np.arange(512), np.arange(512)).astype(np.uint8)
    dicom.write(tmp_path / "in/a.dcm", image, "1.2.3.4", view="PA")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        assert start(evaluated, tmp_path / "in", tmp_path / "out", "seg,sr", *LOW) == FAILED
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "Make room" in capsys.readouterr().err
    assert not results(tmp_path / "out")
    assert not entries(tmp_path / "out")
    assert start(evaluated, tmp_path / "in", tmp_path / "out", "seg,sr", *LOW) == DONE
    assert start(evaluated, tmp_path / "in", tmp_path / "other", "seg,sr", *LOW) == DONE
    assert results(tmp_path / "out") == results(tmp_path / "other")


def test_wrong_kinds_and_a_missing_library_are_said_before_anything_is_read(tmp_path, capsys, monkeypatch):
    assert start(tmp_path / "no run", tmp_path, tmp_path / "out", "pdf") == errors.BAD_INPUT
    assert "'pdf' is no kind of DICOM result" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "highdicom", None)
    assert start(tmp_path / "no run", tmp_path, tmp_path / "out", "sr") == errors.BAD_INPUT
    assert "pip install 'jaxpneumo[dicom]'" in capsys.readouterr().err
