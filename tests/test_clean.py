"""`jaxpneumo clean`: checkpoints of finished runs go, everything that works with a result still works."""

import logging
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from jaxpneumo.evaluate import evaluate
from jaxpneumo.predict import predict
from jaxpneumo.predict.submission import read_submission
from jaxpneumo.process.errors import DONE, InputError
from jaxpneumo.process.files import read_json
from jaxpneumo.report import report
from jaxpneumo.run import clean
from jaxpneumo.run.config import read_config
from jaxpneumo.train.stages import train


@pytest.fixture
def workdir(evaluated, tmp_path):
    return shutil.copytree(evaluated, tmp_path / "run")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def spoil(folder: Path) -> None:
    """Changes a byte in the middle of the largest file."""
    largest = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)


def test_checkpoints_go_and_all_else_stays(workdir, capsys):
    before = contents(workdir)
    assert clean.main(["--workdir", str(workdir)]) == DONE
    said = capsys.readouterr().out
    assert said.startswith(f"{workdir}: stage1/checkpoints removed, ")
    assert contents(workdir) == {name: data for name, data in before.items() if "checkpoints" not in name}
    assert any("checkpoints" in name for name in before)
    assert any("stage1/final" in name for name in contents(workdir))
    assert clean.main(["--workdir", str(workdir)]) == DONE
    assert "nothing to remove" in capsys.readouterr().out


def test_disk_used_is_what_the_system_says(workdir, capsys):
    def used(folder):
        files = subprocess.run(["find", folder, "-type", "f", "-printf", "%b\n"], capture_output=True, check=True)
        return 512 * sum(map(int, files.stdout.split()))

    whole, checkpoints = used(workdir), used(workdir / "stage1/checkpoints")
    assert clean.disk_used(workdir) == whole
    words = clean.words(workdir)
    assert words.startswith(
        f"{workdir}: {whole / 1e6:.1f} MB on the disk, of which checkpoints {checkpoints / 1e6:.1f} MB"
    )
    assert f"`jaxpneumo clean --workdir {workdir}`" in words
    assert clean.main(["--workdir", str(workdir)]) == DONE
    assert f"{checkpoints / 1e6:.1f} MB freed; {(whole - checkpoints) / 1e6:.1f} MB are left" in capsys.readouterr().out
    assert clean.words(workdir) == f"{workdir}: {(whole - checkpoints) / 1e6:.1f} MB on the disk."


def test_a_dry_run_says_it_and_changes_nothing(workdir, capsys):
    before = contents(workdir)
    assert clean.main(["--workdir", str(workdir), "--dry-run"]) == DONE
    assert "stage1/checkpoints would be removed" in capsys.readouterr().out
    assert contents(workdir) == before


@pytest.mark.long
def test_a_cleaned_run_is_complete_and_serves_as_before(workdir, radiographs, tmp_path, caplog):
    folder = ["--workdir", str(workdir)]
    asked = [*folder, "--input", str(radiographs / "dicom"), "--overlays", "0"]
    assert predict.main([*asked, "--output", str(tmp_path / "before")]) == DONE
    summary = read_json(workdir / "evaluation/summary.json")
    assert clean.main(folder) == DONE

    caplog.set_level(logging.INFO, "jaxpneumo")
    train(read_config(workdir), workdir)
    assert "stage1 is complete; its result is read from" in caplog.text
    assert not (workdir / "stage1/checkpoints").exists()
    assert evaluate.main([*folder]) == DONE
    again = read_json(workdir / "evaluation/summary.json")
    assert (again["scores"], again["image_level"]) == (summary["scores"], summary["image_level"])
    assert report.main(folder) == DONE
    assert predict.main([*asked, "--output", str(tmp_path / "after")]) == DONE
    codes = [read_submission(tmp_path / when / "submission.csv") for when in ("before", "after")]
    assert codes[0] == codes[1]


def test_a_second_stage_starts_from_a_cleaned_first_one(workdir, prepared, tmp_path):
    assert clean.main(["--workdir", str(workdir)]) == DONE
    config = read_config(workdir)
    second = replace(config.stages[0], name="stage2")
    config = replace(config, init_from=str(workdir), stages=(*config.stages, second))
    train(config, tmp_path / "second")
    assert (tmp_path / "second/stage2/final").is_dir()
    assert clean.main(["--workdir", str(tmp_path / "second")]) == DONE
    assert not (tmp_path / "second/stage2/checkpoints").exists()


def test_an_unfinished_run_keeps_its_checkpoints(workdir, tmp_path):
    whole = shutil.copytree(workdir, tmp_path / "whole")
    shutil.rmtree(workdir / "stage1/final")
    before = contents(workdir), contents(whole)
    with pytest.raises(InputError, match=r"unfinished run \(stage1 has no result\) and needs its checkpoints"):
        clean.main(["--workdir", str(whole), "--workdir", str(workdir)])
    assert (contents(workdir), contents(whole)) == before


def test_the_last_whole_copy_of_the_weights_is_not_removed(workdir):
    """The result has a changed bit: the checkpoints are what it can be made from again."""
    spoil(workdir / "stage1/final/model")
    before = contents(workdir)
    with pytest.raises(InputError, match=r"damaged.*Start its training command again"):
        clean.main(["--workdir", str(workdir)])
    assert contents(workdir) == before


def test_folders_that_are_no_runs_are_left_alone(workdir, tmp_path):
    (tmp_path / "photos/stage1/checkpoints").mkdir(parents=True)
    for folder in (tmp_path / "photos", tmp_path / "absent"):
        with pytest.raises(InputError, match="is not a run"):
            clean.main(["--workdir", str(workdir), "--workdir", str(folder)])
    (tmp_path / "photos/config.json").write_text("{}")
    with pytest.raises(InputError, match="is missing"):
        clean.main(["--workdir", str(tmp_path / "photos")])
    assert (tmp_path / "photos/stage1/checkpoints").is_dir()
    assert (workdir / "stage1/checkpoints").is_dir()


def test_checkpoints_elsewhere_are_not_removed_through_a_link(workdir, tmp_path):
    (workdir / "stage1/checkpoints").rename(tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", workdir / "stage1/checkpoints")
    before = contents(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="is a link"):
        clean.main(["--workdir", str(workdir)])
    assert contents(tmp_path / "elsewhere") == before
