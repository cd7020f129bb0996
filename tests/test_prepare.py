"""`jaxpneumo prepare` on files made here, on the real sample, and on everything that can be wrong with them."""

import hashlib
import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
from preparing import refused, three_files

from jaxpneumo.data import dataset, ingest, labels, prepare, rle, splits
from jaxpneumo.dicom import dicom
from jaxpneumo.process.errors import InputError


@pytest.fixture
def files(tmp_path):
    """Three images: 1.3 negative, 1.1 with one region, 1.2 with two overlapping ones."""
    return three_files(tmp_path)


def test_makes_a_data_set(files, capsys):
    assert files.run() == 0
    assert capsys.readouterr().out.startswith("3 images, 2 positive, 1 negative, 0 set aside; ")
    index = dataset.read_index(files.output)
    assert index.image_id.tolist() == ["1.1", "1.2", "1.3"]
    assert index.label_rows.tolist() == [1, 2, 0]
    assert index.mask_area.tolist() == [int(files.masks[name].sum()) for name in ("1.1", "1.2", "1.3")]
    assert (set(index.height), set(index.width)) == ({96}, {128})
    assert (index.sex[0], index.age[0], index.view[0], index.view[2]) == ("F", 50, "AP", "PA")
    assert dataset.read_labels(files.output) == {name: rle.encode(files.masks[name]) for name in index.image_id}
    for name, source, digest in zip(index.image_id, index.source, index.sha256, strict=True):
        data = (files.images / source).read_bytes()
        assert source.endswith(f"{name}.dcm")
        assert hashlib.sha256(data).hexdigest() == digest
    assert sorted(path.name for path in files.folder.iterdir()) == ["images", "labels.csv", "prepared"]
    assert files.quarantine() == []


def test_arrays_hold_area_averages(files):
    files.run()
    index = dataset.read_index(files.output)
    images, masks = dataset.open_arrays(files.output, 32)
    for row, (name, source) in enumerate(zip(index.image_id, index.source, strict=True)):
        native = dicom.read(files.images / source).image.astype(np.float64)
        average = native.reshape(32, 3, 32, 4).mean(axis=(1, 3))
        assert np.abs(images[row] - average).max() <= 0.51
        share = files.masks[str(name)].reshape(32, 3, 32, 4).mean(axis=(1, 3))
        np.testing.assert_array_equal(np.unpackbits(masks[row], axis=-1), share >= 0.5)
    assert dataset.open_arrays(files.output, 64)[0].shape == (3, 64, 64)


def test_half_covered_pixels_belong_to_the_mask(files):
    mask = np.zeros((96, 128), np.uint8)
    mask[:, 2:6] = 1  # half of the first two columns of four
    mask[0, 8] = 1
    files.add("1.4", [rle.encode(mask)])
    files.run()
    bits = np.unpackbits(dataset.open_arrays(files.output, 32)[1][3], axis=-1)
    assert bits[:, :2].all()
    assert not bits[:, 2:].any()


def test_info_and_splits(files):
    files.run("--validation-fraction", "0.5", "--seed", "4")
    info = dataset.read_info(files.output)
    assert info["counts"] == {"images": 3, "positive": 2, "set_aside": 0}
    assert info["sizes"] == [32, 64]
    assert info["synthetic"] is False
    assert str(files.folder) not in (files.output / "dataset.json").read_text()
    for name, digest in info["sha256"].items():
        assert hashlib.sha256((files.output / name).read_bytes()).hexdigest() == digest
    split = splits.read_splits(files.output / "splits.json")
    assert (split["method"], split["seed"], split["validation_fraction"]) == ("random", 4, 0.5)
    assert sorted(split["train"] + split["validation"]) == ["1.1", "1.2", "1.3"]
    assert len(split["validation"]) == 1


def test_one_synthetic_image_marks_the_data_set(files):
    files.add("1.4", synthetic=True)
    files.run()
    assert dataset.read_info(files.output)["synthetic"] is True


def test_processes_and_order_do_not_matter(files, tmp_path):
    files.run()
    first = dataset.read_info(files.output)["sha256"]
    other = tmp_path / "other"
    report = prepare.prepare(files.images, files.labels, other, (64, 32), workers=2, quiet=True)
    assert (report.images, report.positive, report.set_aside) == (3, 2, {})
    second = dataset.read_info(other)["sha256"]
    assert {k: v for k, v in first.items() if k != "index.csv"} == {
        k: v for k, v in second.items() if k != "index.csv"
    }  # the patients' hash key differs


def test_workers_do_not_import_jax():
    code = "import sys, jaxpneumo.data.prepare; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Set aside


def test_odd_inputs_are_set_aside_and_named(files, capsys):
    good = files.add("1.4", ["0 10"], seed=4)
    cut = files.add("1.5", ["0 10"], seed=5)
    cut.write_bytes(cut.read_bytes()[:-200])
    files.add("1.6", ["12287 2"])
    files.add("1.7", ["0 10 5"])
    files.add("1.8", ["0 10", "nonsense"])
    files.add("1.9", [])
    (files.images / "text.dcm").write_text("hello")
    (files.images / "notes.txt").write_text("not looked at")
    (files.images / ".hidden.dcm").write_text("not looked at")
    files.rows.append("2.1, -1")
    assert files.run() == 3
    output = capsys.readouterr()
    assert output.out.startswith("4 images, 3 positive, 1 negative, 7 set aside; ")
    assert "3 invalid run-length code" in output.err
    assert "quarantine.csv names each" in output.err
    rows = {row["ImageId"]: row for row in files.quarantine()}
    assert {name: row["reason"] for name, row in rows.items()} == {
        "1.5": "unreadable image",
        "1.6": "invalid run-length code",
        "1.7": "invalid run-length code",
        "1.8": "invalid run-length code",
        "1.9": "image without labels",
        "2.1": "labels without image",
        "text": "unreadable image",
    }
    assert "truncated" in rows["1.5"]["detail"]
    assert "labels.csv line 8: the run-length code leaves the image by 1 pixels" in rows["1.6"]["detail"]
    assert "line 12" in rows["2.1"]["detail"]
    assert (rows["2.1"]["file"], rows["text"]["file"]) == ("", "text.dcm")
    index = dataset.read_index(files.output)
    assert index.image_id.tolist() == ["1.1", "1.2", "1.3", "1.4"]
    images, masks = dataset.open_arrays(files.output, 32)
    native = dicom.read(good).image.astype(np.float64)
    assert np.abs(images[3] - native.reshape(32, 3, 32, 4).mean(axis=(1, 3))).max() <= 0.51
    assert len(images) == len(masks) == 4
    assert dataset.read_info(files.output)["counts"] == {"images": 4, "positive": 3, "set_aside": 7}


def test_copies_are_used_once_and_contradictions_not_at_all(files):
    copy = files.images / "copy" / "1.1.dcm"
    copy.parent.mkdir()
    copy.write_bytes(next(files.images.rglob("1.1.dcm")).read_bytes())
    files.add("1.2", [], seed=77)
    assert files.run() == 3
    assert dataset.read_index(files.output).image_id.tolist() == ["1.1", "1.3"]
    rows = [(row["ImageId"], row["reason"]) for row in files.quarantine()]
    assert sorted(rows) == [("1.1", "duplicate id"), ("1.2", "duplicate id"), ("1.2", "duplicate id")]


def test_rows_follow_the_ids_not_the_file_names(files):
    """Names that sort otherwise than the ids inside, one without an ending, one known to the csv by its name."""
    paths = {path.stem: path for path in files.images.rglob("*.dcm")}
    paths["1.1"].rename(files.images / "z.dcm")
    paths["1.2"].rename(files.images / "1.999")
    paths["1.3"].rename(files.images / "ID_0.dcm")
    files.rows[0] = "ID_0,-1"
    assert files.run() == 0
    index = dataset.read_index(files.output)
    assert index.image_id.tolist() == ["1.1", "1.2", "ID_0"]
    assert index.source.tolist() == ["z.dcm", "1.999", "ID_0.dcm"]
    images, masks = dataset.open_arrays(files.output, 32)
    native = dicom.read(files.images / "z.dcm").image.astype(np.float64)
    assert np.abs(images[0] - native.reshape(32, 3, 32, 4).mean(axis=(1, 3))).max() <= 0.51
    assert masks[0].any()
    assert masks[1].any()
    assert not masks[2].any()


def test_names_that_are_no_text_are_prepared(files):
    """As some archives unpack: bytes of another character set, which no csv in UTF-8 can hold."""
    path = next(files.images.rglob("1.1.dcm"))
    path.rename(path.with_name(os.fsdecode(b"M\xfcller.dcm")))
    bad = files.images / os.fsdecode(b"M\xe4ller.dcm")
    bad.write_text("no image")
    assert files.run() == 3
    assert dataset.read_index(files.output).source.tolist()[0] == rf"{path.parent.name}/M\xfcller.dcm"
    (row,) = files.quarantine()
    assert (row["file"], row["ImageId"]) == (r"M\xe4ller.dcm", r"M\xe4ller")
    assert r"M\xe4ller.dcm is not a DICOM" in row["detail"]


def test_pictures_of_one_name_in_many_folders_are_known_by_their_paths(files):
    for number in range(3):
        path = files.images / f"p{number}/study1/view1.png"
        path.parent.mkdir(parents=True)
        cv2.imwrite(str(path), np.random.default_rng(number + 50).integers(0, 256, (96, 128), np.uint8))
        files.rows.append(f"p{number}/study1/view1,-1")
    assert files.run() == 0
    index = dataset.read_index(files.output)
    assert index.image_id.tolist()[3:] == ["p0/study1/view1", "p1/study1/view1", "p2/study1/view1"]
    assert index.source.tolist()[3:] == [f"{name}.png" for name in index.image_id[3:]]


def test_a_label_by_a_name_that_several_files_have_belongs_to_none(files):
    """Which picture was meant? Copies would be another thing."""
    for number in range(2):
        path = files.images / f"p{number}/view1.png"
        path.parent.mkdir(parents=True)
        cv2.imwrite(str(path), np.random.default_rng(number + 50).integers(0, 256, (96, 128), np.uint8))
    files.rows.append("view1,-1")
    assert files.run() == 3
    assert [(row["ImageId"], row["reason"]) for row in files.quarantine()] == [("view1", "duplicate id")] * 2
    assert "2 files with this id differ" in files.quarantine()[0]["detail"]


def test_conflicting_rows_are_not_used(files):
    files.add("1.4", ["0 10", "-1"], seed=4)
    assert files.run() == 3
    row = files.quarantine()[0]
    assert (row["ImageId"], row["reason"]) == ("1.4", "conflicting labels")
    assert "labels.csv line 7 says -1, line 6 has a region" in row["detail"]


def test_same_pixels_are_used_once_or_kept(files):
    files.add("1.4", seed=3)
    assert files.run() == 3
    assert [(row["ImageId"], row["reason"]) for row in files.quarantine()] == [("1.4", "duplicate pixels")]
    files.output = files.folder / "other"
    assert files.run("--duplicate-pixels", "keep") == 0
    assert dataset.read_index(files.output).image_id.tolist() == ["1.1", "1.2", "1.3", "1.4"]


def test_size_and_view_are_checked_where_asked_for(files):
    square = np.random.default_rng(7).integers(0, 256, (128, 128), np.uint8)
    dicom.write(files.images / "1.5.dcm", square, "1.5", view="PA")
    dicom.write(files.images / "1.6.dcm", square.T, "1.6", view="LL")
    files.rows += ["1.5,-1", "1.6,-1"]
    assert files.run("--native-size", "128", "--require-frontal") == 3
    assert dataset.read_index(files.output).image_id.tolist() == ["1.5"]
    rows = {row["ImageId"]: (row["reason"], row["detail"]) for row in files.quarantine()}
    assert rows["1.1"] == ("wrong size", "96 x 128 pixels instead of 128 x 128.")
    assert rows["1.6"] == ("not a frontal chest radiograph", "View Position is LL.")
    assert {name for name, (reason, _) in rows.items() if reason == "wrong size"} == {"1.1", "1.2", "1.3"}


def test_folders_of_pictures(files, capsys):
    """PNG of 8 and 16 bits, JPEG; what is damaged, colour or huge is set aside."""
    folder = files.folder / "pictures/a"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    grey = [cv2.resize(rng.integers(0, 256, (12, 16), np.uint8), (128, 96)) for _ in range(4)]
    cv2.imwrite(str(folder / "one.png"), grey[0])
    cv2.imwrite(str(folder / "two.PNG"), grey[1].astype(np.uint16) * 257)
    cv2.imwrite(str(folder / "three.jpeg"), grey[2])
    cv2.imwrite(str(folder / "colour.png"), np.stack(grey[:3], axis=-1))
    png = (folder / "one.png").read_bytes()
    middle = len(png) // 2
    (folder / "damaged.png").write_bytes(png[:middle] + bytes([png[middle] ^ 1]) + png[middle + 1 :])
    (folder / "huge.png").write_bytes(png[:16] + b"\0\1\0\0\0\1\0\0" + png[24:])
    files.rows = [f"{name},-1" for name in ("one", "two", "three", "colour", "damaged", "huge")]
    assert files.run("--images", str(files.folder / "pictures")) == 3
    index = dataset.read_index(files.output)
    assert index.image_id.tolist() == ["one", "three", "two"]
    images, _ = dataset.open_arrays(files.output, 32)
    for row, picture in ((0, grey[0]), (2, (grey[1] - float(grey[1].min())) * 255 / np.ptp(grey[1]))):
        average = picture.astype(np.float64).reshape(32, 3, 32, 4).mean(axis=(1, 3))
        assert np.abs(images[row] - average).max() <= 1
    assert {row["ImageId"]: row["reason"] for row in files.quarantine()} == {
        "colour": "colour image",
        "damaged": "unreadable image",
        "huge": "wrong size",
    }


def test_a_crashing_decoder_costs_one_file(files, monkeypatch):
    """In a worker process; the real pool, with the file that kills it."""
    files.add("1.4", seed=4)
    real = prepare.processes.run

    def run(function, tasks, *rest):
        for task, result in real(function, tasks, *rest):
            yield task, prepare.processes.Lost("crashed") if task[1].stem == "1.4" else result

    monkeypatch.setattr(prepare.processes, "run", run)
    assert files.run("--workers", "2") == 3
    row = files.quarantine()[0]
    assert (row["ImageId"], row["reason"]) == ("1.4", "unreadable image")
    assert row["detail"] == "Decoding it crashed, so its process was ended. Export it again."


# Refusals: exit code 2 and nothing left behind


def test_wrong_use_is_refused(files, capsys, tmp_path):
    refused(files, capsys, "each a multiple of 32", "--sizes", "100")
    refused(files, capsys, "0 cannot be used; give a whole number from 1", "--workers", "0")
    refused(
        files,
        capsys,
        "1 cannot be used; give a number from 0 to below 1",
        "--validation-fraction",
        "1",
    )
    refused(files, capsys, "none.json cannot be read", "--split", "none.json")
    refused(files, capsys, "none.csv cannot be read", "--patients", tmp_path / "none.csv")
    refused(files, capsys, "none cannot be read", "--patient-key", tmp_path / "none")
    (tmp_path / "p.csv").write_text("ImageId,patient\nother,1\n")
    refused(files, capsys, "lists none of the images", "--patients", tmp_path / "p.csv")
    refused(files, capsys, "is not a folder", "--images", tmp_path / "nowhere")
    (tmp_path / "bare").mkdir()
    refused(files, capsys, "holds no radiographs", "--images", tmp_path / "bare")
    assert not files.output.exists()
    assert prepare.main(["--sizes", "a,b"]) == 2


def test_full_output_is_refused(files, capsys):
    files.output.mkdir()
    (files.output / "notes.txt").write_text("mine")
    refused(files, capsys, "exists and is not an empty folder. Remove it or choose another")
    (files.output / "dataset.json").write_text("{}")
    refused(files, capsys, "exists and is not an empty folder. Remove it or choose another")
    assert (files.output / "notes.txt").read_text() == "mine"


def test_bad_label_file_is_refused(files, capsys):
    files.rows.insert(1, ",-1")
    refused(files, capsys, "labels.csv line 3: the ImageId is empty")
    files.labels.write_text("ImageId,Mask\n1.1,-1\n")
    with pytest.raises(InputError, match=r"labels\.csv line 1: the header lacks EncodedPixels"):
        prepare.prepare(files.images, files.labels, files.output, quiet=True)
    assert not files.output.exists()


def test_no_usable_image_is_refused(files, capsys):
    for path in files.images.rglob("*.dcm"):
        path.write_bytes(path.read_bytes()[:500])
    refused(files, capsys, "None of the 3 files")
    assert not files.output.exists()


def test_full_disk_is_foreseen(files, capsys, monkeypatch):
    usage = prepare.shutil.disk_usage(files.folder)
    monkeypatch.setattr(prepare.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    refused(files, capsys, "images need")


def test_steady_rate_leaves_the_start_out():
    first = [ingest.Span(1, second, second + 1) for second in range(10)]
    second = [ingest.Span(2, second + 5, second + 6) for second in range(5)]
    assert ingest.steady_rate([*first, None, *second]) == 2.0
    assert ingest.steady_rate(first[:1]) == ingest.steady_rate([]) == 0.0


# The real sample


def test_sample(shared, tmp_path, capsys):
    sample = shared / "data/siim-sample"
    arguments = ["--images", sample / "dicom-images-train", "--labels", sample / "train-rle.csv"]
    arguments += ["--patients", sample / "patients.csv", "--output", tmp_path / "a", "--workers", 2]
    assert prepare.main([str(argument) for argument in arguments]) == 0
    assert capsys.readouterr().out.startswith("118 images, 63 positive, 55 negative, 0 set aside; ")
    index = dataset.read_index(tmp_path / "a")
    assert (len(index), index.positive.sum()) == (118, 63)
    codes = labels.read_labels(sample / "train-rle.csv").codes
    stored = dataset.read_labels(tmp_path / "a")
    for name, rows in codes.items():
        if len(rows) == 1:
            assert stored[name] == rows[0][1]
    _, masks = dataset.open_arrays(tmp_path / "a", 512)
    area = np.unpackbits(masks, axis=-1).sum(axis=(1, 2)) * 4
    np.testing.assert_allclose(area[index.positive], index.mask_area[index.positive], rtol=0.2)
    assert not area[~index.positive].any()
    assert json.loads((tmp_path / "a/splits.json").read_text())["method"] == "random"
