"""Archives: the manifest as a journal, parts that merge to what one run writes, kills on the way."""

import csv
import dataclasses
import hashlib
import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from archives import kill_after, watch, write_archive

from jaxpneumo.data import rle
from jaxpneumo.dicom.dicom import read
from jaxpneumo.predict import manifest, merge, predict, sorting
from jaxpneumo.predict.manifest import MANIFEST, choose_part, read_entries
from jaxpneumo.predict.submission import read_submission
from jaxpneumo.process.errors import DONE, PARTIAL, InputError
from jaxpneumo.process.files import stamp


@pytest.fixture(scope="module")
def files(radiographs, tmp_path_factory):
    """60 files, 3 damaged; one image in three files of different parts, one PNG of another size."""
    folder = tmp_path_factory.mktemp("archive") / "in"
    originals = sorted((radiographs / "dicom").rglob("*.dcm"))
    write_archive(folder, originals, 60, 3)
    first = (folder / "000/00007.dcm").read_bytes()
    for name in ("000/00031.copy.dcm", "zz.dcm"):
        (folder / name).write_bytes(first)
    return folder


@pytest.fixture(scope="module")
def arguments(evaluated, files):
    rest = ["--overlays", "0", "--removal-threshold", "750000", "--batch-size", "4"]
    return ["--workdir", str(evaluated), "--input", str(files), *rest]


@pytest.fixture(scope="module")
def single(arguments, tmp_path_factory):
    """What one run over all files writes."""
    output = tmp_path_factory.mktemp("single")
    assert predict.main([*arguments, "--output", str(output)]) == PARTIAL
    return output


@pytest.fixture(scope="module")
def parts(arguments, tmp_path_factory):
    """Three parts, the second one killed twice by SIGKILL and given again."""
    output = tmp_path_factory.mktemp("parts")
    for part in range(3):
        own = [*arguments, "--output", str(output), "--num-parts", "3", "--part-id", str(part)]
        if part == 1:
            assert kill_after(6, own) == -signal.SIGKILL
            with pytest.raises(InputError, match=r"part 1 of 3 is not complete \(6 files.*part 2 of 3 is missing"):
                merge.find_parts(output)
            assert kill_after(5, own) == -signal.SIGKILL
        assert predict.main(own) in (DONE, PARTIAL)
    return output


def test_the_manifest_says_what_was_done_with_what(single, files):
    header, *entries, end = read_entries(single / MANIFEST)
    assert len(header["model"]) == 64
    assert header["settings"]["removal_threshold"] == 750000
    assert "not a medical device" in header["note"]
    assert "jax" in header["software"]["packages"]
    assert sorted(entry["file"] for entry in entries) == sorted(
        path.relative_to(files).as_posix() for path in files.rglob("*.dcm")
    )
    assert end["end"]["files"] == end["end"]["listed"] == len(entries) == 62
    codes = read_submission(single / "submission.csv")
    positive = 0
    for entry in entries:
        path = files / entry["file"]
        assert entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        if entry["state"] == "done":
            assert entry["uid"] == read(path).uid
            assert entry["positive"] == (entry["area"] > 0) == (entry["code"] != "-1")
            assert codes[entry["uid"]] == entry["code"]
            positive += entry["positive"]
        else:
            assert entry["reason"]
    assert 0 < positive < len(codes) == 57


def test_merged_parts_are_the_single_run_byte_for_byte(single, parts, tmp_path, capsys):
    assert merge.main(["--input", str(parts), "--output", str(tmp_path)]) == PARTIAL
    assert "57 radiographs" in capsys.readouterr().out
    for name in ("submission.csv", "quarantine.csv"):
        assert (tmp_path / name).read_bytes() == (single / name).read_bytes()
    assert merge.main(["--input", str(parts), "--output", str(tmp_path / "only.csv")]) == PARTIAL
    assert (tmp_path / "only.csv").read_bytes() == (single / "submission.csv").read_bytes()
    with open(single / "quarantine.csv") as file:
        reasons = {row["file"]: row["reason"] for row in csv.DictReader(file)}
    assert len(reasons) == 5
    assert "second file of image" in reasons["000/00031.copy.dcm"]
    assert reasons["zz.dcm"].endswith("; 000/00007.dcm was used")
    assert json.loads((tmp_path / "merged.json").read_text())["set_aside"] == 5


def test_a_killed_part_repeats_nothing(parts):
    """Each file has one entry, and those from before the kills stand first as they were: 6, then 5."""
    folder = parts / "part-00001-of-00003"
    entries = [entry["file"] for entry in read_entries(folder / MANIFEST) if "file" in entry]
    assert len(entries) == len(set(entries)) > 11


def test_a_finished_prediction_is_not_done_again(single, arguments, monkeypatch):
    before = (single / MANIFEST).read_bytes(), (single / "submission.csv").read_bytes()

    def nothing(root, sources, *_):
        assert sources == []
        return iter(())

    monkeypatch.setattr(predict, "read_ahead", nothing)
    assert predict.main([*arguments, "--output", str(single)]) == PARTIAL
    assert ((single / MANIFEST).read_bytes(), (single / "submission.csv").read_bytes()) == before


def test_changed_and_new_files_are_done_and_those_gone_are_dropped(evaluated, files, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for name in ("00000", "00001", "00002"):
        (source / f"{name}.dcm").write_bytes((files / f"000/{name}.dcm").read_bytes())
    arguments = ["--workdir", str(evaluated), "--input", str(source), "--output", str(tmp_path / "out")]
    assert predict.main(arguments) == DONE
    before = {entry["file"]: entry for entry in read_entries(tmp_path / "out" / MANIFEST) if "file" in entry}
    (source / "00000.dcm").unlink()
    (source / "00001.dcm").write_bytes((files / "000/00005.dcm").read_bytes())
    (source / "00004.dcm").write_bytes((files / "000/00004.dcm").read_bytes())
    assert predict.main(arguments) == DONE
    after = {entry["file"]: entry for entry in read_entries(tmp_path / "out" / MANIFEST) if "file" in entry}
    assert set(after) == {"00001.dcm", "00002.dcm", "00004.dcm"}
    assert after["00002.dcm"] == before["00002.dcm"]
    assert after["00001.dcm"]["uid"] == read(files / "000/00005.dcm").uid
    assert set(read_submission(tmp_path / "out/submission.csv")) == {entry["uid"] for entry in after.values()}


def test_a_manifest_from_before_any_image_was_asked_for_was_of_any_image(tmp_path):
    old = manifest.make_header("a", {"threshold": 0.5}, {}, None)
    with manifest.open_manifest(tmp_path, old, tmp_path, []):
        pass
    new = manifest.make_header("a", {"threshold": 0.5, "any_image": True}, {}, None, synthetic=True)
    with manifest.open_manifest(tmp_path, new, tmp_path, []):
        (header,) = read_entries(tmp_path / MANIFEST)
    assert header == {**old, "note": new["note"]}
    with pytest.raises(InputError, match=r"any_image True, now False\)\. Choose another"):
        manifest.open_manifest(
            tmp_path, manifest.make_header("a", {"threshold": 0.5, "any_image": False}, {}, None), tmp_path, []
        ).__enter__()


@pytest.mark.parametrize("torn", [b'{"file": "x.dcm", "sta', b"\0" * 100, b"[1]\n", b'{"file": "00000.dcm"}\n'])
def test_a_torn_last_line_is_dropped(tmp_path, torn):
    header = manifest.make_header("a", {"threshold": 0.5}, {}, None)
    names = ["00000.dcm", "00001.dcm"]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    entry = {"file": "00001.dcm", "stamp": list(stamp(tmp_path / "00001.dcm")), "state": "set aside"}
    with manifest.open_manifest(tmp_path / "out", header, tmp_path, names) as (left, append):
        assert left == names
        append(entry)
    with open(tmp_path / "out" / MANIFEST, "ab") as file:
        file.write(torn)
    with manifest.open_manifest(tmp_path / "out", header, tmp_path, names) as (left, append):
        assert left == ["00000.dcm"]
        assert list(read_entries(tmp_path / "out" / MANIFEST)) == [header, entry]


def test_other_models_settings_and_users_are_refused(single, arguments, tmp_path):
    with pytest.raises(InputError, match=r"removal_threshold 750000, now 5000\)\. Choose another --output"):
        predict.main([*arguments, "--output", str(single), "--removal-threshold", "5000"])
    header = next(read_entries(single / MANIFEST))
    with pytest.raises(InputError, match=r"model [0-9a-f]{12}, now other"):
        manifest.open_manifest(single, {**header, "model": "other"}, tmp_path, []).__enter__()
    with (
        manifest.open_manifest(tmp_path / "out", header, tmp_path, []),
        pytest.raises(InputError, match="another process"),
    ):
        manifest.open_manifest(tmp_path / "out", header, tmp_path, []).__enter__()
    (tmp_path / "out" / MANIFEST).write_text('{"a": 1}\n')
    with pytest.raises(InputError, match="is not a manifest"):
        manifest.open_manifest(tmp_path / "out", header, tmp_path, []).__enter__()


def test_an_ensemble_is_its_runs_and_their_weights(evaluated, files, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.dcm").write_bytes((files / "000/00000.dcm").read_bytes())
    runs = [shutil.copytree(evaluated, tmp_path / name) for name in ("b", "c")]
    arguments = ["--workdir", f"{evaluated},{runs[0]}", "--input", str(tmp_path / "in")]
    arguments += ["--output", str(tmp_path / "out"), "--overlays", "0"]
    assert predict.main(arguments) == DONE
    assert next(read_entries(tmp_path / "out" / MANIFEST))["settings"]["weights"] == [0.5, 0.5]
    with pytest.raises(InputError, match=r"weights \[0.5, 0.5\], now"):
        predict.main([*arguments, "--weights", "0.7,0.3"])
    with pytest.raises(InputError, match=r"model ([0-9a-f]{12})\+\1, now \1\+\1\+\1; weights"):
        predict.main([*arguments, "--workdir", str(runs[1])])


def test_a_run_predicts_anew_with_other_settings(evaluated, files, tmp_path):
    """What `jaxpneumo train` does when a config's predict section has changed."""
    from jaxpneumo.predict.infer import load_predictor

    predictor = load_predictor(evaluated)
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.dcm").write_bytes((files / "000/00000.dcm").read_bytes())
    predict.predict_folder(predictor, source, tmp_path / "out", quiet=True)
    (overlay,) = (tmp_path / "out/overlays").iterdir()
    before = overlay.read_bytes()
    settings = dataclasses.replace(predictor.settings, threshold=0.0, removal_threshold=0)
    predictor = dataclasses.replace(predictor, settings=settings)
    with pytest.raises(InputError, match="made with other settings"):
        predict.predict_folder(predictor, source, tmp_path / "out", quiet=True)
    predict.predict_folder(predictor, source, tmp_path / "out", quiet=True, anew=True)
    assert set(read_submission(tmp_path / "out/submission.csv").values()) == {f"0 {128 * 128}"}
    assert overlay.read_bytes() != before


def test_parts_that_do_not_fit_are_refused(parts, tmp_path):
    def copy(change=lambda lines: lines, part=2):
        for number in range(3):
            target = tmp_path / f"part-{number:05d}-of-00003"
            target.mkdir(exist_ok=True)
            lines = [json.loads(line) for line in (parts / target.name / MANIFEST).read_text().splitlines()]
            lines = change(lines) if number == part else lines
            (target / MANIFEST).write_text("".join(json.dumps(line) + "\n" for line in lines))

    copy(lambda lines: [{**lines[0], "model": "other"}, *lines[1:]])
    with pytest.raises(InputError, match="part 0 and part 2 are of different models"):
        merge.merge(tmp_path, tmp_path / "out")
    copy(lambda lines: [{**lines[0], "settings": {}}, *lines[1:]])
    with pytest.raises(InputError, match="part 0 and part 2 are of different settings"):
        merge.merge(tmp_path, tmp_path / "out")
    copy(lambda lines: [{**lines[0], "bands": {"low": 0.1, "high": 0.2, "calibrated": True}}, *lines[1:]])
    with pytest.raises(InputError, match=r"part 0 and part 2 are of different limits of the certainty\. The run was"):
        merge.merge(tmp_path, tmp_path / "out")
    copy(lambda lines: [*lines[:-1], {"end": {**lines[-1]["end"], "listed": 63, "listing": "x"}}])
    with pytest.raises(InputError, match="different listings"):
        merge.merge(tmp_path, tmp_path / "out")
    copy(lambda lines: [lines[0], *lines[2:]])
    with pytest.raises(InputError, match="the parts have 61 files and 62 were listed"):
        merge.merge(tmp_path, tmp_path / "out")
    copy(lambda lines: [lines[0], *lines[1:3], *lines[1:]])
    with pytest.raises(InputError, match="the parts have 64 files and 62 were listed"):
        merge.merge(tmp_path, tmp_path / "out")
    copy(lambda lines: [lines[0], {**lines[1], "file": "000/00007.dcm"}, *lines[2:]], part=2)
    with pytest.raises(InputError, match=r"does not belong to this part|were listed"):
        merge.merge(tmp_path, tmp_path / "out")
    copy(lambda lines: lines[:-1])
    with pytest.raises(InputError, match="part 2 of 3 is not complete"):
        merge.merge(tmp_path, tmp_path / "out")
    (tmp_path / "part-00000-of-00004").mkdir()
    with pytest.raises(InputError, match="parts of 3 and of 4"):
        merge.merge(tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match="holds no parts"):
        merge.merge(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out/submission.csv").exists()


def test_more_parts_than_files(evaluated, files, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.dcm").write_bytes((files / "000/00000.dcm").read_bytes())
    arguments = ["--workdir", str(evaluated), "--input", str(source), "--output", str(tmp_path / "out")]
    for part in range(3):
        assert predict.main([*arguments, "--num-parts", "3", "--part-id", str(part)]) == DONE
    assert merge.main(["--input", str(tmp_path / "out"), "--output", str(tmp_path / "merged.csv")]) == DONE
    assert list(read_submission(tmp_path / "merged.csv")) == [read(source / "a.dcm").uid]


def test_parts_come_from_flags_slurm_or_kubernetes():
    slurm = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8", "SLURM_ARRAY_TASK_MIN": "1"}
    assert choose_part(None, None, slurm) is None
    assert choose_part("4", "0", {}) == (0, 4)
    assert choose_part("auto", "auto", slurm) == (2, 8)
    assert choose_part("16", "auto", {"JOB_COMPLETION_INDEX": "15"}) == (15, 16)
    for flags, environment, words in (
        (("3", None), {}, "belong together"),
        (("3", "3"), {}, "no part 3 of 3"),
        (("0", "0"), {}, "no part 0 of 0"),
        (("x", "0"), {}, "--num-parts x --part-id 0: give whole numbers, or auto"),
        (("auto", "auto"), {}, "Slurm array"),
        (("auto", "0"), {"JOB_COMPLETION_INDEX": "1"}, "give the number itself"),
        (("auto", "auto"), {**slurm, "SLURM_ARRAY_TASK_MAX": "15"}, "without gaps"),
    ):
        with pytest.raises(InputError, match=words):
            choose_part(*flags, environment)


def test_rows_are_sorted_in_files_as_in_memory(tmp_path, monkeypatch):
    rows = [(str(number * 7919 % 1000), "a", "x" * (number % 50)) for number in range(1000)]
    monkeypatch.setattr(sorting, "CHUNK", 500)
    assert list(sorting.sort_rows(iter(rows), tmp_path)) == sorted(rows)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_3000_files_in_parts_killed_twice_and_memory_stays(evaluated, shared, tmp_path):
    sample = shared / "data/siim-sample/dicom-images-train"
    originals = sorted(sample.rglob("*.dcm"))
    write_archive(tmp_path / "in", originals, 3000, 30)
    base = ["--workdir", str(evaluated), "--overlays", "0", "--input", str(tmp_path / "in")]
    # About half of the images are to stay empty.
    alone = [*base[:-1], str(sample), "--output", str(tmp_path / "sample"), "--removal-threshold", "0"]
    assert predict.main(alone) == DONE
    found = read_submission(tmp_path / "sample/submission.csv").values()
    base += ["--removal-threshold", str(int(np.median([rle.decode(code, 1024, 1024).sum() for code in found])))]
    single = tmp_path / "single"
    code, memory = watch([*base, "--output", str(single)], single / MANIFEST, (501, 1501, 2990))
    assert code == PARTIAL
    for part in range(3):
        own = [*base, "--output", str(tmp_path / "parts"), "--num-parts", "3", "--part-id", str(part)]
        if part == 1:
            assert kill_after(300, own) == -signal.SIGKILL
            assert kill_after(350, own) == -signal.SIGKILL
        assert subprocess.run([sys.executable, "-m", "jaxpneumo", "predict", *own]).returncode == PARTIAL
    assert merge.main(["--input", str(tmp_path / "parts"), "--output", str(tmp_path / "merged")]) == PARTIAL
    for name in ("submission.csv", "quarantine.csv"):
        assert (tmp_path / "merged" / name).read_bytes() == (single / name).read_bytes()
    codes = read_submission(single / "submission.csv")
    assert len(codes) == 2970
    assert 0.2 < sum(code == "-1" for code in codes.values()) / 2970 < 0.8
    print(f"{sum(code != '-1' for code in codes.values())} positive; resident MiB of process, children: ")
    print([(own >> 20, children >> 20) for own, children in memory])
    for early, late in zip(memory[0], memory[2], strict=True):
        assert late < 1.1 * early
