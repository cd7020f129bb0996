"""Synthetic radiographs: same seed same bytes, areas like the challenge's, files that the readers accept."""

import csv
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from jaxpneumo.data import rle
from jaxpneumo.dicom import dicom
from jaxpneumo.process.errors import InputError
from jaxpneumo.synthetic import anatomy, radiographs
from jaxpneumo.synthetic.exposure import position, view_position


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _rows(path: Path) -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("synthetic") / "set"
    radiographs.write(path, 24, seed=5, size=128, positive_fraction=0.5, workers=1, quiet=True, area_scale=3)
    return path


def test_same_seed_same_picture_and_other_seed_another():
    image, mask = radiographs.radiograph(3, 128, True)
    again, mask_again = radiographs.radiograph(3, 128, True)
    other, _ = radiographs.radiograph(4, 128, True)
    assert image.dtype == mask.dtype == np.uint8
    assert image.shape == mask.shape == (128, 128)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(mask, mask_again)
    assert np.abs(image.astype(int) - other).mean() > 5


def test_same_seed_is_the_same_picture_at_every_size():
    image, mask = radiographs.radiograph(8, 1024, True)
    small, small_mask = radiographs.radiograph(8, 128, True)
    reduced = cv2.resize(image, (128, 128), interpolation=cv2.INTER_AREA)
    assert np.abs(reduced.astype(int) - small).mean() < 4
    assert mask.sum() / 64 == pytest.approx(small_mask.sum(), rel=0.2, abs=8)


def test_positive_is_obeyed_and_none_tosses_a_coin():
    assert not radiographs.radiograph(0, 64, False)[1].any()
    assert all(radiographs.radiograph(seed, 32, True)[1].any() for seed in range(4))
    coins = [radiographs.radiograph(seed, 32)[1].any() for seed in range(14)]
    assert 2 < sum(coins) < 12


def test_pneumothorax_lies_in_one_lung_field_beside_lung():
    for seed in range(8):
        _, mask = radiographs.radiograph(seed, 512, True)
        frame, pose = position(anatomy.invent_patient(seed), seed, 512)
        lung = np.maximum(*anatomy.lung_fields(anatomy.invent_patient(seed), frame, pose.heart))
        assert not (mask & ~lung & 1).any()
        rest = lung & ~mask & 1
        count, names = cv2.connectedComponents(mask, connectivity=8)
        for name in range(1, count):
            around = cv2.dilate((names == name).astype(np.uint8), np.ones((3, 3), np.uint8))
            assert (around & rest).any()


def test_areas_spread_like_the_challenge():
    reached, wanted = [], []
    for seed in range(90):
        patient = anatomy.invent_patient(seed)
        frame, pose = position(patient, seed, 256)
        area = radiographs.target_area(np.random.default_rng([seed, 7]).random())
        region, _ = radiographs._pneumothorax(patient, frame, pose.heart, 1.0, np.random.default_rng([seed, 7]))
        reached.append(int(region.sum()) * 16)
        wanted.append(area)
    # Small ones are a few pixels of 256x256, so the ratio is asked of the others.
    ratio = np.asarray(reached)[np.asarray(wanted) > 1362] / np.asarray(wanted)[np.asarray(wanted) > 1362]
    assert np.mean(np.abs(ratio - 1) < 0.1) > 0.85
    quartiles = np.quantile(reached, [0.25, 0.5, 0.75])
    np.testing.assert_array_less(np.abs(np.log(quartiles / np.asarray([4059, 8630, 18388]))), np.log(1.6))
    assert np.mean(np.asarray(reached) < 1362) < 0.15


def test_target_areas_are_the_published_quantiles():
    quantiles = [0, 0.05, 0.25, 0.5, 0.75, 1]
    areas = [radiographs.target_area(quantile) for quantile in quantiles]
    np.testing.assert_allclose(areas, [55, 1362, 4059, 8630, 18388, 161421])


def test_area_scale_multiplies_areas():
    ratios = [
        radiographs.radiograph(seed, 256, True, area_scale=3)[1].sum()
        / radiographs.radiograph(seed, 256, True)[1].sum()
        for seed in range(8)
    ]
    assert np.median(ratios) == pytest.approx(3, rel=0.15)


def test_pneumothorax_is_darker_and_smoother_than_the_same_lung_without_it():
    darker, rougher = [], []
    for seed in range(10):
        image, mask = radiographs.radiograph(seed, 512, True, area_scale=2)
        healthy, _ = radiographs.radiograph(seed, 512, False)
        inside = cv2.erode(mask, np.ones((9, 9), np.uint8)) > 0
        if inside.sum() < 200:
            continue
        darker.append(healthy[inside].mean() - image[inside].mean())
        detail, healthy_detail = (
            (picture - cv2.GaussianBlur(picture, (0, 0), 3))[inside].std()
            for picture in (image.astype(np.float32), healthy.astype(np.float32))
        )
        rougher.append(healthy_detail / detail)
    assert len(darker) > 5
    assert min(darker) > 15
    assert np.median(rougher) > 1.0


def test_pneumothorax_is_darker_than_the_same_place_of_the_other_lung():
    differences = []
    for seed in range(18):
        image, mask = radiographs.radiograph(seed, 256, True, area_scale=2)
        frame, _ = position(anatomy.invent_patient(seed), seed, 256)
        # Mirror about the spine as it lies in this picture.
        top, low = frame.pixels(np.asarray([(0.0, 0.0), (0.0, 1.0)]))
        axis = (low - top) / np.linalg.norm(low - top)
        flip = 2 * np.outer(axis, axis) - np.eye(2)
        matrix = np.concatenate([flip, (top - flip @ top)[:, None]], axis=1)
        mirrored = cv2.warpAffine(image, matrix, (256, 256), borderMode=cv2.BORDER_REPLICATE)
        differences.append(np.median(mirrored[mask > 0].astype(int)) - np.median(image[mask > 0]))
    assert np.mean(np.asarray(differences) > 8) > 0.85
    assert np.median(differences) > 15


def test_one_patient_looks_alike_in_several_pictures():
    same = [radiographs.radiograph(seed, 64, False, patient_seed=1)[0] for seed in (10, 11)]
    assert not np.array_equal(*same)
    assert anatomy.invent_patient(1) == anatomy.invent_patient(1)
    assert anatomy.invent_patient(1) != anatomy.invent_patient(2)


def test_bytes_do_not_depend_on_the_number_of_workers(folder: Path, tmp_path: Path):
    radiographs.write(tmp_path / "two", 24, seed=5, size=128, workers=2, quiet=True, area_scale=3)
    assert _bytes(tmp_path / "two") == _bytes(folder)


def test_files_are_dicom_and_say_that_they_are_synthetic(folder: Path):
    files = sorted((folder / "dicom").glob("*/*/*.dcm"))
    patients = {row[0]: row[1:] for row in _rows(folder / "patients.csv")[1:]}
    assert len(files) == 24
    for path in files:
        picture = dicom.read(path)
        assert picture.synthetic
        assert picture.image.shape == (128, 128)
        assert path.stem == picture.uid
        assert [picture.patient_id, picture.sex, str(picture.age), picture.view] == patients[picture.uid]
        assert picture.uid.startswith("2.25.")
        assert len(picture.uid) <= 64
    assert (folder / "README.txt").read_text().startswith("SYNTHETIC")


def test_labels_give_back_the_masks(folder: Path):
    assert (folder / "labels.csv").read_text().startswith("ImageId, EncodedPixels\n2.25.")
    codes: dict[str, list[str]] = {}
    for image_id, code in _rows(folder / "labels.csv")[1:]:
        assert code.startswith(" ")
        codes.setdefault(image_id, []).append(code.strip())
    cases = radiographs.plan(24, 5)
    assert list(codes) == [case.image_id for case in cases]
    assert sum(rows != ["-1"] for rows in codes.values()) == 12
    assert max(map(len, codes.values())) > 1
    for case in cases[:8]:
        _, mask = radiographs.radiograph(case.seed, 128, case.positive, 3, case.patient_seed)
        np.testing.assert_array_equal(rle.union(codes[case.image_id], 128, 128), mask)
        assert dicom.read(next(folder.rglob(f"{case.image_id}.dcm"))).view == view_position(case.seed)


def test_plan_has_patients_with_several_pictures_and_no_id_twice():
    cases = radiographs.plan(400, 1, 0.25)
    pictures = np.unique([case.patient for case in cases], return_counts=True)[1]
    assert 0.2 < np.mean(pictures > 1) < 0.5
    assert pictures.max() <= 4
    assert sum(case.positive for case in cases) == 100
    ids = [uid for case in cases for uid in (case.image_id, case.study_id, case.series_id)]
    assert len(set(ids)) == len(ids)
    assert not {case.image_id for case in cases} & {case.image_id for case in radiographs.plan(400, 2)}


def test_a_folder_in_use_is_left_alone(folder: Path):
    before = _bytes(folder)
    with pytest.raises(InputError, match="exists already"):
        radiographs.write(folder, 2, quiet=True)
    assert _bytes(folder) == before


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(dicom, "write", full)
    with pytest.raises(OSError, match="No space"):
        radiographs.write(tmp_path / "set", 2, size=64, workers=1, quiet=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "values", [{"count": 0}, {"seed": -1}, {"size": 16}, {"positive_fraction": 1.5}, {"area_scale": 0.0}]
)
def test_values_out_of_range_are_refused(tmp_path: Path, values: dict):
    with pytest.raises(InputError, match=next(iter(values))):
        radiographs.write(tmp_path / "set", **{"count": 2, "quiet": True, **values})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("values", [{"seed": -1}, {"size": 16}, {"area_scale": float("nan")}])
def test_radiograph_refuses_what_cannot_be_drawn(values: dict):
    with pytest.raises(InputError):
        radiographs.radiograph(**{"seed": 0, **values})


def test_verb_writes_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture):
    arguments = ["--output", str(tmp_path / "set"), "--count", "4", "--seed", "2", "--size", "64"]
    assert radiographs.main(arguments) == 0
    assert "4 synthetic radiographs" in capsys.readouterr().out
    assert len(list((tmp_path / "set" / "dicom").rglob("*.dcm"))) == 4


def test_the_same_command_again_has_nothing_to_do(tmp_path: Path, capsys: pytest.CaptureFixture):
    arguments = ["--output", str(tmp_path / "set"), "--count", "4", "--size", "64", "--workers", "1"]
    assert radiographs.main(arguments) == 0
    before = _bytes(tmp_path / "set")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")}
    capsys.readouterr()
    assert radiographs.main(arguments) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'set'} is complete, nothing is left to do: 4 synthetic ")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")} == times
    for other in (["--seed", "1"], ["--size", "96"], ["--positive-fraction", "0"], ["--area-scale", "2"]):
        with pytest.raises(InputError, match="exists already"):
            radiographs.main([*arguments, *other])
    assert _bytes(tmp_path / "set") == before
    with pytest.raises(InputError, match="--seed: -1 cannot be used"):
        radiographs.main([*arguments, "--seed", "-1"])
    next((tmp_path / "set/dicom").rglob("*.dcm")).unlink()
    with pytest.raises(InputError, match="exists already"):
        radiographs.main(arguments)


def test_workers_need_no_jax():
    code = "import sys; import jaxpneumo.synthetic.radiographs; sys.exit('jax' in sys.modules)"
    root = Path(__file__).resolve().parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
