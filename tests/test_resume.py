"""A preparation that was killed goes on where it was; one that was begun otherwise is refused."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import writable_arrays

from jaxpneumo.data import ingest, prepare
from jaxpneumo.data.journal import open_journal
from jaxpneumo.process.errors import InputError

REPOSITORY = Path(__file__).resolve().parent.parent


def arguments(radiographs: Path, output: Path, *options) -> list[str]:
    given = ["--images", radiographs / "dicom", "--labels", radiographs / "labels.csv", "--output", output]
    given += ["--patients", radiographs / "patients.csv", "--patient-key", radiographs / "labels.csv"]
    return [str(each) for each in [*given, "--sizes", "32,64", *options]]


@pytest.fixture
def stopped(radiographs, tmp_path, monkeypatch):
    """A preparation that a full disk has stopped after ten images; the folder beside it holds the journal."""
    real, done = ingest.ingest, []

    def ingest_ten(task):
        if len(done) == 10:
            raise OSError(28, "No space left on device")
        done.append(task[0])
        return real(task)

    monkeypatch.setattr(ingest, "ingest", ingest_ten)
    assert prepare.main([*arguments(radiographs, tmp_path / "data", "--workers", "1")]) == 1
    monkeypatch.setattr(ingest, "ingest", real)
    return tmp_path / "data"


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.long
def test_a_killed_preparation_goes_on(radiographs, tmp_path, capsys):
    """SIGKILL in the middle, to a process with workers; then the same command does the rest and no more."""
    (tmp_path / "many").mkdir()
    sources = sorted((radiographs / "dicom").rglob("*.dcm"))
    rows = ["ImageId,EncodedPixels"]
    for number in range(600):
        (tmp_path / f"many/{number:04d}.dcm").write_bytes(sources[number % len(sources)].read_bytes())
        rows.append(f"{number:04d},-1")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    given = ["--images", tmp_path / "many", "--labels", tmp_path / "labels.csv", "--output", tmp_path / "data"]
    given = [str(each) for each in [*given, "--sizes", "512", "--duplicate-pixels", "keep", "--workers", 2]]
    command = [sys.executable, "-m", "jaxpneumo", "prepare", *given]
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    journal, deadline = tmp_path / "data.partial/journal.jsonl", time.monotonic() + 60
    while not journal.exists() or journal.read_bytes().count(b"\n") < 20:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = journal.read_bytes().count(b"\n") - 1
    assert 19 <= finished < 600
    assert not (tmp_path / "data").exists()

    assert prepare.main(given) == 0
    output = capsys.readouterr().out
    assert output.startswith("600 images, 0 positive, 600 negative, 0 set aside; ")
    assert f", {finished} of them before" in output
    assert not journal.parent.exists()
    other = [str(tmp_path / "other") if each == str(tmp_path / "data") else each for each in given]
    assert prepare.main(other) == 0
    names = ("images_512.npy", "masks_512.npy", "labels.csv", "index.csv")
    kept, new = digests(tmp_path / "data"), digests(tmp_path / "other")
    assert [kept[name] for name in names[:3]] == [new[name] for name in names[:3]]


def test_nothing_finished_is_done_again(stopped, radiographs, tmp_path, monkeypatch, capsys):
    real, again = ingest.ingest, []
    monkeypatch.setattr(ingest, "ingest", lambda task: again.append(task[0]) or real(task))
    assert prepare.main(arguments(radiographs, stopped, "--workers", "1")) == 0
    assert again == list(range(10, 24))
    assert "10 of them before" in capsys.readouterr().out
    assert prepare.main(arguments(radiographs, tmp_path / "fresh", "--workers", "1")) == 0
    assert digests(stopped) == digests(tmp_path / "fresh")


def test_what_a_stopped_machine_lost_is_done_again(stopped, radiographs, tmp_path, monkeypatch):
    """Rows that do not hold what the journal says, a torn line, a file that has changed since."""
    partial = stopped.with_name("data.partial")
    images, masks = writable_arrays(partial, 64)
    images[3] = 0
    masks[5] ^= 1
    lines = (partial / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (partial / "journal.jsonl").write_bytes(b"".join(lines[:-1]) + lines[-1][:40])
    changed = radiographs / "dicom" / json.loads(lines[8])["source"].removeprefix("dicom/")
    os.utime(changed)
    real, again = ingest.ingest, []
    monkeypatch.setattr(ingest, "ingest", lambda task: again.append(task[0]) or real(task))
    assert prepare.main(arguments(radiographs, stopped, "--workers", "1")) == 0
    assert again == [3, 5, 7, 9, *range(10, 24)]
    assert prepare.main(arguments(radiographs, tmp_path / "fresh", "--workers", "1")) == 0
    assert digests(stopped) == digests(tmp_path / "fresh")


def test_another_preparation_is_refused(stopped, radiographs, tmp_path, capsys):
    capsys.readouterr()
    assert prepare.main([*arguments(radiographs, stopped, "--workers", "1"), "--native-size", "128"]) == 2
    error = capsys.readouterr().err
    assert "data.partial holds a preparation that was begun otherwise (native size None, now 128)" in error
    assert "or remove the folder to begin anew" in error
    assert prepare.main([*arguments(radiographs, stopped, "--workers", "1"), "--sizes", "32"]) == 2
    assert "sizes [32, 64], now [32]" in capsys.readouterr().err
    assert prepare.main(arguments(radiographs, stopped, "--workers", "1")) == 0


def test_a_split_that_fails_at_the_end_loses_no_work(radiographs, tmp_path, capsys):
    (tmp_path / "splits.json").write_text(
        json.dumps({"method": "x", "seed": 0, "validation_fraction": 0, "train": ["nobody"], "validation": []})
    )
    given = arguments(radiographs, tmp_path / "data", "--workers", "1")
    assert prepare.main([*given, "--split", str(tmp_path / "splits.json")]) == 2
    assert prepare.main(given) == 0
    assert "24 of them before" in capsys.readouterr().out


def test_two_cannot_fill_one_folder(tmp_path):
    path = tmp_path / "journal.jsonl"
    with open_journal(path, {}, {"key": "a"}), pytest.raises(InputError, match="being filled by another process"):
        open_journal(path, {}, {"key": "a"}).__enter__()


def test_a_journal_keeps_its_secret_to_itself(tmp_path):
    path = tmp_path / "journal.jsonl"
    with open_journal(path, {"a": 1}, {"key": "first"}) as (secret, entries, append):
        assert (secret, entries) == ({"key": "first"}, [])
        append({"row": 0})
    with open_journal(path, {"a": 1}, {"key": "second"}) as (secret, entries, append):
        assert (secret, entries) == ({"key": "first"}, [{"row": 0}])
    assert path.stat().st_mode & 0o777 == 0o600
    with open(path, "ab") as file:
        file.write(b"\0\0\0\n{}\n")
    with open_journal(path, {"a": 1}, {"key": "third"}) as (_, entries, append):
        append({"row": 1})
        assert entries == [{"row": 0}]
    with open_journal(path, {"a": 1}, {"key": "fourth"}) as (_, entries, _append):
        assert entries == [{"row": 0}, {"row": 1}]
    (tmp_path / "other").write_text('{"x": 1}\n')
    with pytest.raises(InputError, match="is not the journal of a preparation"):
        open_journal(tmp_path / "other", {}, {}).__enter__()
