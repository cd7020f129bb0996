"""`jaxpneumo bench prepare`: figures that mean what they say; how large they are is the machine's affair."""

import json

import pytest

from jaxpneumo.bench import bench as bench
from jaxpneumo.bench.bench_prepare import bench_prepare
from jaxpneumo.process.errors import InputError


def test_prepare(radiographs, tmp_path, capsys):
    arguments = ["prepare", "--images", radiographs / "dicom", "--labels", radiographs / "labels.csv", "--count", 60]
    arguments += ["--repeats", 1, "--workers", 2, "--output", tmp_path / "a.json", "--scratch", tmp_path]
    assert bench.main([str(argument) for argument in arguments]) == 0
    result = json.loads((tmp_path / "a.json").read_text())
    assert (result["images"], result["workers"], result["repeats"]) == (60, 2, 1)
    assert len(result["prepare_images_per_second"]) == len(result["decode_images_per_second"]) == 1
    assert min(result["prepare_images_per_second"]) <= result["prepare"] <= max(result["prepare_images_per_second"])
    assert len(result["kept_images_per_second"]) == 1
    assert min(result["ratio"], result["kept_ratio"]) > 0
    assert result["ratio"] == pytest.approx(result["prepare"] / result["decode"])
    assert result["busy_ratio"] == pytest.approx(result["decode_busy_seconds"] / result["prepare_busy_seconds"])
    assert result["kept_busy_ratio"] == pytest.approx(result["kept_busy_seconds"] / result["prepare_busy_seconds"])
    assert 0 < result["decode_busy_seconds"] < 1
    assert 0 < result["prepare_busy_seconds"] < 1
    assert 2e7 < result["parent_peak_bytes"] < 6e8
    assert 2e7 < result["worker_peak_bytes"] < 6e8
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert "ms of a processor" in capsys.readouterr().out


def test_what_cannot_be_compared_is_refused(tmp_path):
    (tmp_path / "text.dcm").write_text("hello")
    with pytest.raises(InputError, match="no SOP instance UID"):
        bench_prepare(tmp_path, scratch=tmp_path, quiet=True)
    with pytest.raises(InputError, match="--workers: 1 cannot be used; give a whole number from 2"):
        bench.main(["prepare", "--images", str(tmp_path), "--workers", "1"])
    assert [path.name for path in tmp_path.iterdir()] == ["text.dcm"]


def test_unknown_benchmark_is_said(capsys):
    assert bench.main(["speed"]) == 2
    assert bench.main(["--help"]) == 0
    assert "there is no 'speed'" in capsys.readouterr().err
