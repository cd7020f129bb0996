"""Paths as users name them, and places where nothing can be written."""

import argparse
import os
import re
import shutil
from importlib import import_module
from pathlib import Path

import pytest
from commands import MAINS, run
from helpers import REPOSITORY

from jaxpneumo import main
from jaxpneumo.process import errors, places
from jaxpneumo.process.errors import BAD_INPUT, DONE, InputError
from jaxpneumo.process.files import read_json


class TestPaths:
    def test_the_current_folder_is_a_folder_like_any_other(self, radiographs, evaluated, tmp_path, monkeypatch):
        for name in ("drawn", "data", "out", "copy"):
            (tmp_path / name).mkdir()
        verbs = {verb: import_module(module).main for verb, module in MAINS.items()}
        monkeypatch.chdir(tmp_path / "drawn")
        assert verbs["synthesize"](["--output", ".", "--count", "4", "--size", "64"]) == DONE
        assert {"dicom", "labels.csv"} <= {path.name for path in Path().iterdir()}, "it is still the same folder"
        monkeypatch.chdir(tmp_path / "data")
        arguments = ["--images", str(radiographs / "dicom"), "--labels", str(radiographs / "labels.csv"), "--output=."]
        assert verbs["prepare"]([*arguments, "--sizes", "32", "--workers", "1"]) == DONE
        assert Path("dataset.json").is_file()
        assert verbs["verify"](["--data", "."]) == DONE
        assert verbs["split"](["--data", "../data", "--output", "f.json"]) == DONE
        assert Path("f.json").is_file()
        assert Path("f.leaks.json").is_file()
        monkeypatch.chdir(tmp_path / "out")
        arguments = ["--workdir", str(evaluated), "--input", str(radiographs / "dicom")]
        assert verbs["predict"]([*arguments, "--output", ".", "--overlays", "0"]) == DONE
        assert len(Path("submission.csv").read_text().splitlines()) == 25
        shutil.copytree(evaluated, tmp_path / "copy", dirs_exist_ok=True)
        monkeypatch.chdir(tmp_path / "copy")
        assert verbs["evaluate"](["--workdir", "."]) == DONE
        assert read_json("evaluation/summary.json")["run"]["workdir"] == "copy"
        assert verbs["thresholds"](["--workdir", "."]) == DONE
        assert verbs["report"](["--workdir=."]) == DONE
        monkeypatch.chdir(tmp_path / "copy/evaluation")
        assert verbs["compare"](["..", str(evaluated), "--output", "c.json", "--replicates", "100"]) == DONE
        assert read_json("c.json")["n_images"] > 0

    def test_a_run_in_the_current_folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        seen = []
        monkeypatch.setattr(main, "run", lambda config, workdir: seen.append(workdir) or DONE)
        assert main.main([f"--config={REPOSITORY}/configs/exp2.py", "--workdir=."]) == DONE
        assert seen == [tmp_path]

    def test_names(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        for text, path in {
            ".": tmp_path,
            "..": tmp_path.parent,
            "a/..": tmp_path,
            "a/b/": Path("a/b"),
            "f.json": Path("f.json"),
            "~/x": tmp_path / "home/x",
            "~nobody.knows/x": Path("~nobody.knows/x"),
        }.items():
            assert places.path(text) == path
        with pytest.raises(argparse.ArgumentTypeError, match="is empty"):
            places.path(" ")

    @pytest.mark.parametrize("code", [0, 1, 2])
    def test_no_report_changes_an_exit_code(self, code, tmp_path, monkeypatch, capsys, as_before):
        from jaxpneumo.process import command, run_report

        monkeypatch.chdir(tmp_path)
        for output in (".", "..", "/", "/proc/x", "/dev/null/x", "a" * 300):

            def verb(_, output=output):
                run_report.place(output)
                return code

            # Made where it can be: then it is one more file, no failure.
            assert command._run("predict", verb, ["--quiet"]) == code
        assert "Traceback" not in capsys.readouterr().err
        Path("/run_report.json").unlink(missing_ok=True)
        (tmp_path.parent / "run_report.json").unlink(missing_ok=True)

    def test_a_failure_leaves_an_empty_output_empty(self, radiographs, tmp_path):
        """A report in it would make the next start take it for one in use."""
        (tmp_path / "out").mkdir()
        given = [
            "--labels",
            radiographs / "labels.csv",
            "--output",
            tmp_path / "out",
            "--sizes",
            "32",
            "--workers",
            "1",
        ]
        refused = run("-m", "jaxpneumo", "prepare", "--images", tmp_path / "none", *given)
        assert (refused.returncode, list((tmp_path / "out").iterdir())) == (BAD_INPUT, [])
        assert run("-m", "jaxpneumo", "prepare", "--images", radiographs / "dicom", *given).returncode == DONE

    def test_merging_into_a_part_is_refused(self, evaluated, radiographs, tmp_path):
        arguments = ["--workdir", str(evaluated), "--input", str(radiographs / "dicom"), "--output", str(tmp_path)]
        parts = ["--num-parts", "1", "--part-id", "0", "--overlays", "0"]
        assert import_module(MAINS["predict"]).main([*arguments, *parts]) == DONE
        part = tmp_path / "part-00000-of-00001"
        for output in (part, part / "all.csv"):
            with pytest.raises(InputError, match="is the folder of a part"):
                import_module(MAINS["merge"]).main(["--input", str(tmp_path), "--output", str(output)])


FOLDERS = [("synthesize", "--output"), ("prepare", "--output"), ("predict", "--output"), ("evaluate", "--output")]
FOLDERS += [("listen", "--spool"), ("dicomweb", "--output")]
FOLDERS += [("import", "--output")]
FILES = [
    *[("split", "--output"), ("compare", "--output"), ("tables", "--output"), ("describe", "--picture")],
    *[("bench step", "--output"), ("bench prepare", "--output")],
]


class TestUnwritablePlaces:
    """Those that are so for every user, root too."""

    @pytest.mark.parametrize(("verb", "option"), [*FOLDERS, *FILES, ("merge", "--output")])
    @pytest.mark.parametrize(
        "place", ["/proc/x.json", "/dev/null/x.json", "FILE/x.json", f"{'x' * 300}.json", "LOOP/x"]
    )
    def test_are_refused_before_any_work(self, verb, option, place, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        Path("FILE").touch()
        os.symlink("LOOP", "LOOP")
        before = sorted(tmp_path.iterdir())
        try:
            assert import_module(MAINS[verb]).main([option, place]) == BAD_INPUT
            told = capsys.readouterr().err
        except InputError as error:
            told = str(error)
        assert option in told
        assert re.search(r"nothing can be written to|cannot be written|is not a folder", told)
        assert "Choose another" in told
        assert "goes on" not in told
        assert sorted(tmp_path.iterdir()) == before

    @pytest.mark.parametrize(("verb", "option"), FILES)
    def test_a_folder_or_a_device_is_no_file(self, verb, option, tmp_path):
        for place, words in ((tmp_path, "is a folder"), (Path("/dev/null"), "is a device")):
            with (
                pytest.raises(InputError, match=words) if not verb.startswith("prepare") else pytest.raises(SystemExit)
            ):
                import_module(MAINS[verb]).main([option, str(place)])
        assert Path("/dev/null").is_char_device()

    @pytest.mark.parametrize(("verb", "option"), FOLDERS)
    def test_a_file_is_no_folder(self, verb, option, tmp_path, capsys):
        (tmp_path / "file").touch()
        try:
            assert import_module(MAINS[verb]).main([option, str(tmp_path / "file")]) == BAD_INPUT
            told = capsys.readouterr().err
        except InputError as error:
            told = str(error)
        assert "file is not a folder" in told

    def test_a_run_that_cannot_be_written(self, tmp_path):
        config = f"--config={REPOSITORY}/configs/exp2.py"
        for place in ("/proc/x", "/dev/null/x"):
            result = run("-m", "jaxpneumo", "train", config, f"--workdir={place}", cwd=tmp_path)
            assert (result.returncode, "--workdir: " in result.stderr) == (BAD_INPUT, True), result.stderr

    def test_a_log_that_cannot_be_written(self, tmp_path):
        result = run("-m", "jaxpneumo", "verify", "--data", "x", "--log-json", "/proc/x", cwd=tmp_path)
        assert (result.returncode, "nothing can be written to /proc" in result.stderr) == (BAD_INPUT, True)

    @pytest.mark.parametrize(
        ("error", "code", "words"),
        [
            (PermissionError(13, "Permission denied", "out/a.csv"), BAD_INPUT, "out/a.csv: Permission denied."),
            (OSError(30, "Read-only file system", "out"), BAD_INPUT, "out: Read-only file system."),
            (IsADirectoryError(21, "Is a directory", "labels"), BAD_INPUT, "labels: Is a directory."),
            (OSError(28, "No space left on device"), 1, "No space left on device. Make room."),
            (OSError(5, "Input/output error", "a.npy"), 1, "a.npy: Input/output error. The disk or the network drive"),
        ],
    )
    def test_what_the_system_refuses_is_told(self, error, code, words, capsys):
        def verb(_):
            raise error

        assert errors.exit_code(verb, []) == code
        told = capsys.readouterr().err
        assert words in told
        assert ("--verbose" in told) == (code == BAD_INPUT)

    def test_a_fault_of_the_program_stays_one(self, tmp_path):
        with pytest.raises(OSError, match="unknown"):
            errors.exit_code(lambda _: (_ for _ in ()).throw(OSError("unknown")), [])
        code = (
            "import sys; from jaxpneumo.process import command\n"
            "sys.exit(command.run('tables', lambda _: open('none/a.csv'), sys.argv[1:]))"
        )
        quiet, loud = (run("-c", code, *options, cwd=tmp_path) for options in ([], ["--verbose"]))
        assert quiet.returncode == loud.returncode == BAD_INPUT
        assert "none/a.csv: No such file or directory." in quiet.stderr
        assert ("Traceback" in quiet.stderr, "Traceback" in loud.stderr) == (False, True)
