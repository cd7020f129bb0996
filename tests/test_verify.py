"""`jaxpneumo verify`: whatever has changed in a prepared data set is found, and named where it can be."""

import json
import re
import shutil

import numpy as np
import pytest
from helpers import writable_arrays

from jaxpneumo.data import dataset, partition, rle, verify
from jaxpneumo.process.errors import InputError


@pytest.fixture
def data(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "data")


def problems(data) -> list[str]:
    return [str(problem) for problem in verify.verify(data, quiet=True)]


def spoil(path, place: int, value: int = 1) -> None:
    """Changes bits of one byte; a negative place counts from the end."""
    content = bytearray(path.read_bytes())
    content[place] ^= value
    path.write_bytes(content)


def edit(path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def change_info(data, **values) -> None:
    """Changes entries in dataset.json, and takes its own checksum away, as an earlier version left it."""
    path = data / "dataset.json"
    info = json.loads(path.read_text()) | values
    info.pop("checksum", None)
    path.write_text(json.dumps(info))


def test_undamaged(data, capsys):
    assert problems(data) == []
    assert verify.main(["--data", str(data)]) == 0
    assert capsys.readouterr().out == f"{data}: 24 images at 32, 64 pixels are as they were prepared.\n"


@pytest.mark.parametrize("name", ["images_32.npy", "images_64.npy"])
@pytest.mark.parametrize("row", [0, 11, 23])
def test_one_bit_of_an_image(data, name, row):
    images = np.load(data / name, mmap_mode="r")
    spoil(data / name, images.offset + row * images[0].size + 77, 4)
    image_id = dataset.read_index(data).image_id[row]
    assert problems(data) == [f"{name}, row {row} ({image_id}): has changed since it was prepared"]


@pytest.mark.parametrize("positive", [True, False])
def test_one_bit_of_a_mask(data, positive):
    index = dataset.read_index(data)
    row = int(np.flatnonzero(index.positive == positive)[2])
    masks = np.load(data / "masks_64.npy", mmap_mode="r")
    spoil(data / "masks_64.npy", masks.offset + row * 64 * 8 + 8 * 5 + 2, 1)
    assert problems(data) == [
        f"masks_64.npy, row {row} ({index.image_id[row]}): has changed since it was prepared; "
        "1 pixels are not those of labels.csv, first row 5, column 23 of the mask"
    ]


def test_masks_are_compared_with_the_labels_whatever_the_checksums_say(data):
    """A mask that was wrong from the beginning: every checksum agrees with it."""
    index = dataset.read_index(data)
    row = int(np.flatnonzero(index.positive)[0])
    _, masks = writable_arrays(data, 32)
    masks[row] = np.roll(masks[row], 1, axis=0)
    masks.flush()
    (data / "dataset.json").unlink()
    dataset.write_info(data, (32, 64), 24, int(index.positive.sum()), 0, synthetic=True, made_from={})
    (problem,) = problems(data)
    assert problem.startswith(f"masks_32.npy, row {row} ({index.image_id[row]}): ")
    assert "pixels are not those of labels.csv" in problem


def test_every_byte_of_a_header_counts(data):
    path = data / "masks_32.npy"
    whole = path.read_bytes()
    for place in range(np.load(path, mmap_mode="r").offset):
        spoil(path, place, 1 + place % 255)
        assert all(problem.startswith("masks_32.npy: ") for problem in problems(data))
        assert problems(data)
        path.write_bytes(whole)


def test_line_missing_in_index(data):
    index = dataset.read_index(data)
    lines = (data / "index.csv").read_text().splitlines(keepends=True)
    (data / "index.csv").write_text("".join(lines[:8] + lines[9:]))
    assert problems(data) == [
        "index.csv: has changed since it was prepared",
        f"index.csv, row 7 ({index.image_id[7]}): has no line for this image",
    ]


def test_line_missing_in_labels(data):
    index = dataset.read_index(data)
    lines = (data / "labels.csv").read_text().splitlines(keepends=True)
    (data / "labels.csv").write_text("".join(lines[:8] + lines[9:]))
    assert f"labels.csv, row 7 ({index.image_id[7]}): has no line for this image" in problems(data)


def test_changed_label(data):
    """Mask, area and checksum all speak against it."""
    index = dataset.read_index(data)
    row = int(np.flatnonzero(~index.positive)[0])
    edit(data / "labels.csv", f"{index.image_id[row]},-1", f"{index.image_id[row]},0 3000")
    found = "\n".join(problems(data))
    assert "labels.csv: has changed since it was prepared" in found
    assert f"labels.csv, row {row} ({index.image_id[row]}): gives a mask of 3000 pixels, index.csv 0 in 0 rows" in found
    assert f"masks_32.npy, row {row} ({index.image_id[row]}): " in found
    assert f"masks_64.npy, row {row} ({index.image_id[row]}): " in found


@pytest.mark.parametrize(
    ("first", "second"),
    [("images_32.npy", "images_64.npy"), ("images_64.npy", "masks_64.npy"), ("labels.csv", "quarantine.csv")],
)
def test_swapped_files(data, first, second):
    (data / first).rename(data / "other")
    (data / second).rename(data / first)
    (data / "other").rename(data / second)
    found = problems(data)
    for name, owner in ((first, second), (second, first)):
        assert f"{name}: holds what belongs in {owner}: the files have been swapped or copied" in found


def test_file_of_another_data_set(data):
    images = np.load(data / "images_32.npy")
    np.save(data / "images_32.npy", 255 - images)
    assert problems(data) == ["images_32.npy: names none of the prepared images: does it belong to another data set?"]
    np.save(data / "images_32.npy", images[:20])
    assert problems(data) == ["images_32.npy: is uint8 (20, 32, 32); dataset.json says uint8 (24, 32, 32)"]
    np.save(data / "images_32.npy", np.array([{}], object), allow_pickle=True)
    assert problems(data) == ["images_32.npy: is object (1,); dataset.json says uint8 (24, 32, 32)"]


def test_exchanged_images(data):
    index = dataset.read_index(data)
    images, _ = writable_arrays(data, 64)
    images[[3, 9]] = images[[9, 3]]
    images.flush()
    assert problems(data) == [
        f"images_64.npy, row {row} ({index.image_id[row]}): has changed since it was prepared" for row in (3, 9)
    ]


@pytest.mark.parametrize("lost", [1, 5000, 24 * 64 * 64, 24 * 64 * 64 + 64])
def test_truncated_array(data, lost):
    path = data / "images_64.npy"
    path.write_bytes(path.read_bytes()[:-lost])
    (problem,) = problems(data)
    whole = 24 - -(-lost // (64 * 64))
    expected = f"images_64.npy: is cut off: {whole} of 24 images are whole"
    assert problem == (expected if whole >= 0 else "images_64.npy: has a damaged header")


def test_longer_or_missing_files(data):
    with open(data / "images_64.npy", "ab") as file:
        file.write(b"abc")
    (data / "masks_32.npy").unlink()
    (data / "quarantine.csv").unlink()
    assert problems(data) == [
        "quarantine.csv: cannot be read: No such file or directory",
        "masks_32.npy: cannot be read: No such file or directory",
        "images_64.npy: has 3 bytes too many",
    ]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (",128,128,", ",128,1e9,", r"index\.csv: line 2 cannot be understood"),
        (",128,128,", ",128,999999999,", r"index\.csv, row 0 .* has a size of 128 x 999999999 pixels"),
        (",128,128,", ",128,12,", r"labels\.csv, row \d+ .*: the run-length code leaves the image"),
        ("\n1,", "\n7,", r"index\.csv \(.*\): line 9: row 7 is there twice"),
        ("\n1,", "\n77,", r"index\.csv \(.*\): line 3: row 77 is not one of 24 images"),
        ("row,", "raw,", r"index\.csv: .*the header lacks row"),
    ],
)
def test_damaged_index(data, old, new, words):
    index = dataset.read_index(data)
    text = (data / "index.csv").read_text()
    if new.endswith(",12,"):  # of a positive image
        line = text.splitlines()[1 + int(np.flatnonzero(index.positive)[0])]
        edit(data / "index.csv", line, line.replace(old, new, 1))
    else:
        edit(data / "index.csv", old, new)
    found = problems(data)
    assert "index.csv: has changed since it was prepared" in found
    assert any(re.search(words, problem) for problem in found)


def test_any_spoilt_byte_of_the_tables_is_found(data):
    rng = np.random.default_rng(0)
    for name in ("index.csv", "labels.csv", "checksums.csv"):
        whole = (data / name).read_bytes()
        for place in rng.integers(0, len(whole), 8):
            spoil(data / name, place, int(rng.integers(1, 256)))
            assert any(problem.startswith(name) for problem in problems(data))
            (data / name).write_bytes(whole)


def test_damaged_description(data):
    whole = (data / "dataset.json").read_text()
    change_info(data, counts={"images": 23, "positive": 5, "set_aside": 0})
    assert "images_32.npy: is uint8 (24, 32, 32); dataset.json says uint8 (23, 32, 32)" in problems(data)
    change_info(data, counts=24)
    assert problems(data) == ["dataset.json: lacks entries, or they are damaged: counts"]
    change_info(data, counts={"images": 24}, sha256={"../x": ""}, sizes=[])
    assert problems(data) == ["dataset.json: lacks entries, or they are damaged: counts, sizes, sha256"]
    (data / "dataset.json").write_text(whole)
    change_info(data, sha256={})
    assert "dataset.json: has no sha256 of images_32.npy, which therefore cannot be trusted" in problems(data)
    (data / "dataset.json").write_text(whole[:-9])
    assert problems(data)[0].startswith("dataset.json: cannot be understood")


@pytest.mark.parametrize("name", ["dataset.json", "splits.json"])
def test_any_changed_bit_of_the_descriptions_is_found(data, name):
    whole = (data / name).read_bytes()
    for bit in np.random.default_rng(1).choice(8 * len(whole), 60, replace=False).tolist():
        spoil(data / name, bit // 8, 1 << bit % 8)
        try:
            assert any(problem.startswith(name) for problem in problems(data)), bit
        except InputError as error:
            assert "has format" in str(error)  # noqa: PT017
        (data / name).write_bytes(whole)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"positive": ', '"positive": 1'),
        ('"synthetic"', '"s{nthetic"'),
        ('"counts"', '"cgunts"'),
        ('"seed": 0', '"seed": 2'),
        ('"checksum"', '"khecksum"'),
    ],
)
def test_damage_that_only_the_own_checksum_shows(data, old, new):
    name = "splits.json" if "seed" in old else "dataset.json"
    edit(data / name, old, new)
    assert any(problem.startswith(name) for problem in problems(data))


def test_earlier_data_sets_have_no_checksum_of_their_own(data, capsys):
    change_info(data)
    split = json.loads((data / "splits.json").read_text())
    del split["checksum"]
    (data / "splits.json").write_text(json.dumps(split))
    assert problems(data) == []
    assert verify.main(["--data", str(data)]) == 0
    assert (
        "dataset.json and splits.json of an earlier jaxpneumo without a checksum of their own are compared with the "
        "tables and arrays alone." in capsys.readouterr().out
    )
    counts = dataset.read_info(data)["counts"]
    change_info(data, counts=counts | {"positive": counts["positive"] - 1, "set_aside": 3})
    assert problems(data) == [
        f"dataset.json: says positive {counts['positive'] - 1}, and the tables {counts['positive']}",
        "dataset.json: says set_aside 3, and the tables 0",
    ]


def test_another_split_is_as_good_and_one_without_checksum_is_not(data):
    assert partition.main(["--data", str(data), "--method", "patient", "--folds", "2", "--overwrite"]) == 0
    assert problems(data) == []
    split = json.loads((data / "splits.json").read_text())
    del split["checksum"]
    (data / "splits.json").write_text(json.dumps(split))
    assert problems(data) == [
        "splits.json: has no checksum of its own, so neither `prepare` nor `split` left it so",
    ]
    assert partition.main(["--data", str(data), "--method", str(data / "splits.json")]) == 0
    assert problems(data) == []


def test_without_row_checksums_the_image_is_not_named(data):
    digests = dataset.read_info(data)["sha256"]
    del digests["checksums.csv"]
    change_info(data, sha256=digests)
    assert problems(data) == []
    spoil(data / "images_32.npy", -1)
    assert problems(data) == ["images_32.npy: has changed since it was prepared; the image cannot be named"]


def test_damaged_splits(data, capsys):
    edit(data / "splits.json", dataset.read_index(data).image_id[0], "1.2.3")
    (problem,) = problems(data)
    assert problem.startswith("splits.json: ")
    assert "names 1 images that the data set does not have, 1.2.3 first" in problem
    assert verify.main(["--data", str(data)]) == 1
    output = capsys.readouterr().out
    assert "`jaxpneumo split --data" in output
    assert "Restore" not in output


def test_command(data, capsys):
    spoil(data / "images_64.npy", -1)
    assert verify.main(["--data", str(data)]) == 1
    streams = capsys.readouterr()
    assert f"images_64.npy, row 23 ({dataset.read_index(data).image_id[23]})" in streams.out
    assert f"{data} is damaged, problems found: 1. Do not train on it. Restore images_64.npy from a copy" in streams.out
    assert "verify: 100%" in streams.err


def test_many_problems_are_counted(data, capsys):
    images, _ = writable_arrays(data, 64)
    images[1:] ^= 1
    images.flush()
    assert verify.main(["--data", str(data)]) == 1
    output = capsys.readouterr().out
    assert output.count("has changed") == verify.SHOWN
    assert "images_64.npy: and 3 more problems" in output


def test_wrong_use(data, tmp_path):
    with pytest.raises(InputError, match="is not a prepared data set; make one"):
        verify.main(["--data", str(tmp_path / "none")])
    change_info(data, format_version=7)
    with pytest.raises(InputError, match="has format 7"):
        verify.main(["--data", str(data)])


def test_reduced_masks_of_the_real_sample(shared, tmp_path):
    """Written by `prepare`, checked against the challenge's own codes."""
    codes = dataset.labels.read_labels(shared / "data/siim-sample/train-rle.csv").codes
    masks = [rle.union((code for _, code in rows), 1024, 1024) for rows in list(codes.values())[:8]]
    for mask in masks:
        share = mask.reshape(256, 4, 256, 4).mean(axis=(1, 3))
        np.testing.assert_array_equal(np.unpackbits(dataset.reduce_mask(mask, 256), axis=-1), share >= 0.5)
