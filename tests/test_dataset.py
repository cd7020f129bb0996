"""The prepared data set's files: what is written reads back, what is missing or damaged is said."""

import csv
import json
import zlib

import cv2
import numpy as np
import pytest
from helpers import writable_arrays

from jaxpneumo.data import dataset
from jaxpneumo.process.errors import InputError


def row(image_id: str, **values) -> dict:
    defaults = {
        "patient": "",
        "sex": "",
        "age": None,
        "view": "",
        "height": 1024,
        "width": 900,
        "mask_area": 0,
    }
    return defaults | {"ImageId": image_id, "label_rows": 0, "source": "x,y.dcm", "sha256": "0" * 64} | values


@pytest.fixture
def folder(tmp_path):
    """A small data set of sizes 64 and 32."""
    dataset.create_arrays(tmp_path, 2, (32, 64))
    for size in (32, 64):
        images, masks = writable_arrays(tmp_path, size)
        images[:] = np.arange(2 * size * size).reshape(images.shape) % 256
        masks[1] = np.packbits(np.eye(size, dtype=np.uint8), axis=-1)
    rows = [row("a", patient="007", age=60, sex="F", view="AP"), row("b", mask_area=55, label_rows=2)]
    dataset.write_index(tmp_path, rows)
    dataset.write_labels(tmp_path, {"a": "-1", "b": "3 55"})
    dataset.write_quarantine(tmp_path, [])
    dataset.write_info(tmp_path, (32, 64), 2, 1, 0, synthetic=True, made_from={"images": "x"})
    return tmp_path


def test_index_reads_back(folder):
    index = dataset.read_index(folder)
    assert len(index) == 2
    assert index.image_id.tolist() == ["a", "b"]
    assert index.patient.tolist() == ["007", ""]
    assert index.age[0] == 60
    assert np.isnan(index.age[1])
    assert (index.sex.tolist(), index.view.tolist()) == (["F", ""], ["AP", ""])
    assert (index.height.tolist(), index.width.tolist()) == ([1024, 1024], [900, 900])
    assert (index.mask_area.tolist(), index.label_rows.tolist()) == ([0, 55], [0, 2])
    assert index.positive.tolist() == [False, True]
    assert index.source[0] == "x,y.dcm"
    header = (folder / "index.csv").read_text().splitlines()[0]
    assert header == "row,ImageId,patient,sex,age,view,height,width,mask_area,label_rows,source,sha256"


def test_labels_read_back(folder):
    assert dataset.read_labels(folder) == {"a": "-1", "b": "3 55"}


def test_info_tells_how_it_was_made(folder):
    info = dataset.read_info(folder)
    assert info["counts"] == {"images": 2, "positive": 1, "set_aside": 0}
    assert (info["sizes"], info["synthetic"], info["made_from"]) == ([32, 64], True, {"images": "x"})
    assert set(info["sha256"]) == {
        *("images_32.npy", "images_64.npy", "masks_32.npy", "masks_64.npy"),
        *("index.csv", "labels.csv", "quarantine.csv", "checksums.csv"),
    }
    assert all(len(digest) == 64 for digest in info["sha256"].values())


def test_rows_have_checksums(folder):
    with open(folder / "checksums.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["row", "images_32", "masks_32", "images_64", "masks_64"]
    assert [row["row"] for row in rows] == ["0", "1"]
    for name in ("images_32", "masks_64"):
        array = np.load(folder / f"{name}.npy")
        assert [int(row[name], 16) for row in rows] == [zlib.crc32(part.tobytes()) for part in array]


def test_masks_are_reduced_by_area():
    mask = np.zeros((64, 128), np.uint8)
    mask[:32, :36] = 1
    bits = np.unpackbits(dataset.reduce_mask(mask, 32), axis=-1)
    expected = np.zeros((32, 32), np.uint8)
    expected[:16, :9] = 1
    np.testing.assert_array_equal(bits, expected)
    mask[:32, 36:38] = 1  # half of a pixel of the reduced mask
    assert np.unpackbits(dataset.reduce_mask(mask, 32), axis=-1).sum() == 16 * 10
    mask[0, 37] = 0
    assert np.unpackbits(dataset.reduce_mask(mask, 32), axis=-1).sum() == 16 * 10 - 1


@pytest.mark.parametrize("step", [1, 2, 3, 4, 6, 8, 12, 16])
def test_masks_are_reduced_as_opencv_averages(step):
    """Also those of whole multiples, which are added up in bytes; in either order in memory, ties included."""
    rng = np.random.default_rng(step)
    for first, end in [(0, 32), (3, 9), (31, 32), (5, 5)]:
        mask = np.zeros((32 * step, 32 * step), np.uint8)
        mask[:, first * step : end * step] = rng.random((32 * step, (end - first) * step)) < 0.5
        expected = cv2.resize(mask.astype(np.float32), (32, 32), interpolation=cv2.INTER_AREA) >= 0.5
        for order in "CF":
            bits = dataset.reduce_mask(np.asarray(mask, order=order), 32)
            np.testing.assert_array_equal(np.unpackbits(bits, axis=-1), expected)


def test_arrays_read_back(folder):
    images, masks = dataset.open_arrays(folder, 64)
    assert (images.shape, masks.shape) == ((2, 64, 64), (2, 64, 8))
    assert isinstance(images, np.memmap)
    assert not images.flags.writeable
    np.testing.assert_array_equal(np.unpackbits(masks[1], axis=-1), np.eye(64))
    assert not masks[0].any()


@pytest.mark.parametrize("rows", [[0, 1], [1, 0], [1]])
def test_rows_are_copied_in_their_order(folder, rows):
    target = folder / "target"
    target.mkdir()
    dataset.copy_rows(folder, target, rows, 2, (32, 64))
    for name in ("images_32.npy", "masks_32.npy", "images_64.npy", "masks_64.npy"):
        np.testing.assert_array_equal(np.load(target / name), np.load(folder / name)[rows])


def test_single_rows_are_written_and_read(folder):
    rows = dataset.open_rows(folder, (32, 64))
    image, mask = np.full((64, 64), 7, np.uint8), np.full((64, 8), 9, np.uint8)
    before = np.load(folder / "images_64.npy")
    rows[64][0].write(1, image)
    rows[64][1].write(1, mask)
    assert rows[64][0].read(1) == image.tobytes()
    after = np.load(folder / "images_64.npy")
    np.testing.assert_array_equal(after[0], before[0])
    np.testing.assert_array_equal(after[1], image)
    np.testing.assert_array_equal(np.load(folder / "masks_64.npy")[1], mask)


def test_missing_data_set_is_said(tmp_path):
    for read in (dataset.read_info, dataset.read_index, dataset.read_labels):
        with pytest.raises(InputError, match="is not a prepared data set; make one with `jaxpneumo prepare"):
            read(tmp_path)
    with pytest.raises(InputError, match="is not a prepared data set"):
        dataset.open_arrays(tmp_path / "none", 256)


def test_missing_size_is_said(folder):
    with pytest.raises(InputError, match=r"no arrays of size 384: it has 32, 64\. .*new folder with --sizes 384, and"):
        dataset.open_arrays(folder, 384)


def change_info(folder, **values) -> None:
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_other_format_is_said(folder):
    change_info(folder, format_version=2)
    with pytest.raises(InputError, match="has format 2; this jaxpneumo reads 1"):
        dataset.read_index(folder)
    (folder / "dataset.json").write_text("[]")
    with pytest.raises(InputError, match="has format None"):
        dataset.read_info(folder)


@pytest.mark.parametrize("name", ["software", "synthetic", "counts", "sizes", "made_from", "sha256"])
def test_every_entry_of_the_description_is_needed(folder, name):
    path = folder / "dataset.json"
    whole = json.loads(path.read_text())
    for damaged in ({key: whole[key] for key in whole if key != name}, whole | {name: 7}):
        path.write_text(json.dumps(damaged))
        with pytest.raises(InputError, match=rf"dataset\.json is damaged: {name} cannot be used\. Restore it"):
            dataset.read_info(folder)


def test_a_missing_checksum_is_said(folder):
    info = dataset.read_info(folder)
    assert dataset.sha256_of(info, "labels.csv") == info["sha256"]["labels.csv"]
    with pytest.raises(InputError, match=r"has no sha256 of label\.csv, so it is damaged"):
        dataset.sha256_of(info, "label.csv")


def test_damage_is_said(folder):
    path = folder / "images_32.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"images_32\.npy is missing or damaged"):
        dataset.open_arrays(folder, 32)
    path.unlink()
    with pytest.raises(InputError, match=r"images_32\.npy is missing or damaged"):
        dataset.open_arrays(folder, 32)
    path.write_bytes((folder / "images_64.npy").read_bytes().replace(b"(2, 64", b"((2, 6", 1))
    with pytest.raises(InputError, match=r"images_32\.npy is missing or damaged"):
        dataset.open_arrays(folder, 32)
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"images_32\.npy is missing or damaged"):
        dataset.open_arrays(folder, 32)
    np.save(path, np.zeros((2, 32, 32), np.float32))
    with pytest.raises(InputError, match="does not fit"):
        dataset.open_arrays(folder, 32)


def test_damaged_index_is_said(folder):
    path = folder / "index.csv"
    text = path.read_text()
    path.write_text(text.replace(",1024,", ",tall,"))
    with pytest.raises(InputError, match="damaged"):
        dataset.read_index(folder)
    path.write_text("".join(text.splitlines(keepends=True)[:-1]))
    with pytest.raises(InputError, match=r"has 1 images, dataset\.json 2"):
        dataset.read_index(folder)
