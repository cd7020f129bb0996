"""run_report.json and the common options: every command says what it did, however it ended."""

import json
import logging
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from helpers import REPOSITORY

from jaxpneumo.process import command, progress, run_report
from jaxpneumo.process.atomic import write_atomically, write_json
from jaxpneumo.process.errors import InputError, TrainingError
from jaxpneumo.process.files import read_json
from jaxpneumo.process.recording import recording

pytestmark = pytest.mark.usefixtures("as_before")


def verb(folder, *, ends=lambda: 0):
    """A verb that reads one file, writes two, sets one aside, and ends in one way or another."""

    def main(arguments):
        run_report.place(folder)
        assert arguments == ["--input", "x"]
        read_json(folder / "in.json")
        write_json(folder / "a.json", 1)
        threads = [threading.Thread(target=write_json, args=(folder / "b.json", n)) for n in range(3)]
        for thread in threads:
            thread.start()
            thread.join()
        run_report.set_aside(folder / "bad.dcm", "no DICOM file")
        run_report.skipped("files done before", 4)
        return ends()

    (folder / "in.json").write_text("{}")
    return main


def fail(error):
    """A function that raises."""

    def ends():
        raise error

    return ends


class TestReport:
    def test_says_what_was_done(self, tmp_path):
        assert command.run("predict", verb(tmp_path, ends=lambda: 3), ["--input", "x", "--quiet"]) == 3
        report = json.loads((tmp_path / "run_report.json").read_text())
        assert report["verb"] == "predict"
        assert report["command"] == sys.argv
        assert report["exit"] == {"code": 3, "reason": "", "where": ""}
        assert report["read"] == {"count": 1, "paths": {str(tmp_path / "in.json"): 1}}
        assert report["written"] == {"count": 2, "paths": {str(tmp_path / name): 1 for name in ("a.json", "b.json")}}
        aside = {"path": str(tmp_path / "bad.dcm"), "reason": "no DICOM file"}
        assert report["set_aside"] == {"count": 1, "reasons": {"no DICOM file": 1}, "files": [aside]}
        assert report["skipped"] == {"files done before": 4}
        assert 0 <= report["seconds"] < 60
        assert report["peak_memory_bytes"]["self"] > 2**20
        assert report["software"]["packages"]["jax"]

    @pytest.mark.parametrize(
        ("error", "code", "reason"),
        [
            (InputError("give another"), 2, "InputError: give another"),
            (TrainingError("loss is nan"), 1, "TrainingError: loss is nan"),
            (KeyboardInterrupt(), 130, "KeyboardInterrupt"),
        ],
    )
    def test_known_failures(self, tmp_path, error, code, reason):
        assert command.run("train", verb(tmp_path, ends=fail(error)), ["--input", "x"]) == code
        report = json.loads((tmp_path / "run_report.json").read_text())
        assert (report["exit"]["code"], report["exit"]["reason"]) == (code, reason)
        assert report["written"]["count"] == 2

    def test_a_crash_leaves_a_report_too(self, tmp_path):
        with pytest.raises(ZeroDivisionError):
            command.run("train", verb(tmp_path, ends=lambda: 1 // 0), ["--input", "x"])
        end = json.loads((tmp_path / "run_report.json").read_text())["exit"]
        assert (end["code"], end["reason"][:17]) == (1, "ZeroDivisionError")
        assert end["where"].startswith("test_run_report.py, line ")

    def test_place(self, tmp_path):
        for output, report in (
            (tmp_path, tmp_path / "run_report.json"),
            (tmp_path / "scores.json", tmp_path / "scores.run_report.json"),
        ):

            def main(_, output=output):
                run_report.place(output)
                run_report.place(tmp_path / "elsewhere")
                return 0

            command.run("compare", main, [])
            assert report.is_file()
        command.run("compare", main, ["--run-report", str(tmp_path / "mine.json")])
        assert (tmp_path / "mine.json").is_file()
        assert not (tmp_path / "elsewhere").exists()

    def test_a_refused_start_makes_no_folder(self, tmp_path):
        def main(_):
            run_report.place(tmp_path / "out")
            raise InputError("no")

        assert command.run("prepare", main, []) == 2
        assert not list(tmp_path.iterdir())

    def test_a_refused_start_leaves_the_report_of_the_one_before(self, tmp_path):
        """Whoever watches it would take what is there for failed, and its own command would be lost."""
        report, mine = tmp_path / "run_report.json", tmp_path / "mine.json"

        def refused(_):
            run_report.place(tmp_path)
            raise InputError("prepared otherwise")

        assert command.run("predict", verb(tmp_path), ["--input", "x"]) == 0
        before = report.read_bytes()
        assert command.run("predict", refused, []) == 2
        assert report.read_bytes() == before
        assert command.run("predict", refused, [f"--run-report={mine}"]) == 2
        assert command.run("predict", refused, [f"--run-report={mine}"]) == 2
        assert json.loads(mine.read_text())["exit"]["code"] == 2, "a place that the user names is this command's"
        assert command.run("predict", verb(tmp_path, ends=fail(InputError("bad file"))), ["--input", "x"]) == 2
        assert json.loads(report.read_text())["exit"]["code"] == 2, "it had begun to write"

    def test_a_failure_before_the_folder_is_there_is_told_beside_it(self, tmp_path):
        def main(_):
            run_report.place(tmp_path / "out")
            if not (tmp_path / "out").exists():
                raise TrainingError("disk full")
            return 0

        command.run("prepare", main, [])
        assert [path.name for path in tmp_path.iterdir()] == ["out.run_report.json"]
        (tmp_path / "out").mkdir()
        command.run("prepare", main, [])
        assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.json")] == ["out/run_report.json"]

    def test_several_processes_do_not_share_one(self, tmp_path):
        def main(_):
            run_report.place(tmp_path)
            run_report.process(2)
            return 0

        command.run("train", main, [])
        assert [path.name for path in tmp_path.iterdir()] == ["run_report_2.json"]

    def test_lists_end_and_counts_go_on(self, tmp_path):
        with recording("predict", [], tmp_path / "a.json"):
            for number in range(250):
                run_report.wrote(f"{number}.png")
                run_report.set_aside(f"{number}.dcm", "cut short" if number % 2 else "no pixels")
            run_report.read(tmp_path, 1000)
            run_report.read(tmp_path, 1000)
        report = json.loads((tmp_path / "a.json").read_text())
        assert (report["written"]["count"], len(report["written"]["paths"])) == (250, 100)
        assert (report["set_aside"]["count"], len(report["set_aside"]["files"])) == (250, 100)
        assert report["set_aside"]["reasons"] == {"cut short": 125, "no pixels": 125}
        assert report["read"]["count"] == 1000

    def test_files_of_a_renamed_folder_have_its_new_name(self, tmp_path):
        with recording("prepare", [], tmp_path / "report.json"):
            with write_atomically(tmp_path / "partial/a.csv") as file:
                file.write("a")
            (tmp_path / "partial").rename(tmp_path / "data")
            run_report.moved(tmp_path / "partial", tmp_path / "data")
        written = json.loads((tmp_path / "report.json").read_text())["written"]
        assert written["paths"] == {str(tmp_path / "data/a.csv"): 1}

    def test_nothing_happens_without_one(self, tmp_path):
        run_report.place(tmp_path)
        run_report.wrote("a")
        run_report.read("a")
        run_report.set_aside("a", "b")
        assert not list(tmp_path.iterdir())

    def test_a_report_that_cannot_be_written_changes_no_result(self, tmp_path, capsys):
        (tmp_path / "file").write_text("")
        (tmp_path / "folder").mkdir()
        assert command.run("compare", lambda _: 0, [f"--run-report={tmp_path / 'folder'}"]) == 0
        assert "could not be written" in capsys.readouterr().err


class TestOptions:
    def test_quiet_leaves_warnings(self, capsys):
        def main(arguments):
            assert arguments == []
            logging.getLogger("jaxpneumo.train").info("going on")
            logging.getLogger("jaxpneumo.train").warning("set aside")
            for _ in progress.progress_bar(range(3), description="steps"):
                pass
            return 0

        command.run("train", main, ["--quiet"])
        assert capsys.readouterr().err == "set aside\n"
        command.run("train", main, [])
        assert "going on\nset aside\n" in capsys.readouterr().err

    def test_verbose_has_the_time_and_everything(self, capsys):
        command.run("train", lambda _: logging.getLogger("jaxpneumo.x").debug("detail") or 0, ["--verbose"])
        assert " DEBUG jaxpneumo.x: detail" in capsys.readouterr().err

    def test_json_lines(self, tmp_path):
        path, logger = tmp_path / "logs/log.jsonl", logging.getLogger("jaxpneumo.x")
        for _ in range(2):
            command.run("train", lambda _: logger.info("a\nb") or 0, ["--log-json", str(path)])
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert [line["message"] for line in lines] == ["a\nb", "a\nb"]
        assert lines[0].keys() == {"time", "level", "logger", "message"}

    def test_both_at_once_are_refused(self, capsys):
        with pytest.raises(SystemExit):
            command.run("train", lambda _: 0, ["--quiet", "--verbose"])
        assert "not allowed with" in capsys.readouterr().err


def jaxpneumo(*arguments):
    """The command in a process of its own, begun."""
    line = [sys.executable, "-m", "jaxpneumo", *map(str, arguments)]
    return subprocess.Popen(line, cwd=REPOSITORY, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def finish(process):
    """Its exit code and what it said."""
    out, err = process.communicate(timeout=300)
    return process.returncode, out + err


def test_verbs_leave_reports(radiographs, tmp_path):
    data = tmp_path / "data"
    (tmp_path / "dicom").mkdir()
    for path in sorted((radiographs / "dicom").rglob("*.dcm"))[:6]:
        (tmp_path / "dicom" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "dicom/bad.dcm").write_bytes(b"no picture")
    labels = radiographs / "labels.csv"
    arguments = ["--images", tmp_path / "dicom", "--labels", labels, "--output", data, "--sizes", "32", "--quiet"]
    code, _ = finish(jaxpneumo("prepare", *arguments))
    report = json.loads((data / "run_report.json").read_text())
    assert code == report["exit"]["code"] == 3
    # Labels without their image are set aside as well.
    assert "bad.dcm" in {Path(file["path"]).name for file in report["set_aside"]["files"]}
    assert report["read"]["paths"][str(tmp_path / "dicom")] == 7
    assert str(data / "index.csv") in report["written"]["paths"]
    assert str(data / "images_32.npy") in report["written"]["paths"]

    # Checking a data set writes nothing into it, unless a place is named.
    code, _ = finish(jaxpneumo("verify", "--data", data, "--quiet", "--run-report", tmp_path / "verify.json"))
    report = json.loads((tmp_path / "verify.json").read_text())
    assert (code, report["exit"]["code"], report["read"]["paths"][str(data)]) == (0, 0, 1)


def test_sigterm_leaves_a_report(tmp_path):
    output, report = tmp_path / "out", tmp_path / "r.json"
    process = jaxpneumo("synthesize", "--output", output, "--count", "5000", "--run-report", report)
    while process.poll() is None and not list(tmp_path.iterdir()):
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    code, said = finish(process)
    assert code == 75, said
    end = json.loads(report.read_text())["exit"]
    assert (end["code"], end["reason"]) == (75, "Stopped")
