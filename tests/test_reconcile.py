"""Every file and every label row ends in exactly one state, with the right reason."""

import csv
import shutil
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpneumo.data import dataset, labels, prepare, reconcile
from jaxpneumo.data.reconcile import Outcome, match

KNOWN = {"1.2.3", "1.2.4", "ID_7"}


@pytest.mark.parametrize(
    ("uid", "name", "expected"),
    [
        ("1.2.3", "1.2.3", ("1.2.3", "")),
        ("1.2.3", "scan", ("1.2.3", "")),
        ("1.2.3", "1.9.9", ("1.2.3", "")),
        ("9.9", "ID_7", ("ID_7", "")),
        ("ID_7", "ID_7", ("ID_7", "")),
        ("9.9", "1.2.3", ("1.2.3", reconcile.CONTRADICTION)),
        ("1.2.4", "1.2.3", ("1.2.3", reconcile.CONTRADICTION)),
        ("1.2.4", "ID_7", ("ID_7", reconcile.CONTRADICTION)),
        ("9.9", "scan", ("9.9", reconcile.NO_LABELS)),
        ("scan", "scan", ("scan", reconcile.NO_LABELS)),
    ],
)
def test_ids_are_uids_or_names(uid, name, expected):
    assert match(uid, name, KNOWN) == expected


def outcome(row: int, image_id: str, pixels: int = 0, **fields) -> Outcome:
    index = {"height": 8, "width": 8, "patient": ""}
    return Outcome(row, f"{row}.dcm", image_id, index=index, pixels=pixels or row + 1, **fields)


def divide(*outcomes, lines=None, digest=lambda outcome: str(outcome.pixels), **options):
    kept, set_aside = reconcile.reconcile(outcomes, lines or {}, digest, **options)
    return [each.row for each in kept], [(row["file"], row["ImageId"], row["reason"]) for row in set_aside]


def test_equal_pixels_are_used_once():
    same = [outcome(0, "b", 5, code="-1"), outcome(1, "a", 5, code="-1"), outcome(2, "c")]
    assert divide(*same) == ([1, 2], [("0.dcm", "b", reconcile.DUPLICATE_PIXELS)])
    assert divide(*same, keep_duplicate_pixels=True) == ([1, 0, 2], [])


def test_equal_pixels_with_other_masks_are_not_used():
    kept, set_aside = divide(outcome(0, "b", 5, code="-1"), outcome(1, "a", 5, code="1 2"), outcome(2, "c"))
    assert kept == [2]
    assert [row[1:] for row in set_aside] == [("b", "duplicate pixels"), ("a", "duplicate pixels")]


def test_equal_checksums_alone_prove_nothing():
    pair = [outcome(0, "b", 5), outcome(1, "a", 5)]
    assert divide(*pair, digest=lambda each: each.image_id) == ([1, 0], [])
    other = replace(pair[1], index={"height": 8, "width": 16, "patient": ""})
    assert divide(pair[0], other, digest=lambda _: pytest.fail("sizes differ")) == ([1, 0], [])


def test_a_file_named_by_its_id_is_preferred_to_its_copy():
    copies = [replace(outcome(0, "1.2", 5), source="copy.dcm"), replace(outcome(1, "1.2", 5), source="x/1.2.dcm")]
    assert divide(*copies) == ([1], [("copy.dcm", "1.2", reconcile.DUPLICATE_ID)])


def test_patient_ids_that_never_repeat_are_not_believed():
    def people(*names):
        rows = [outcome(row, str(row)) for row in range(len(names))]
        rows = [replace(each, index=each.index | {"patient": name}) for each, name in zip(rows, names, strict=True)]
        kept, source = reconcile.believe_patients(rows)
        return [each.index["patient"] for each in kept], source.split(":")[0]

    assert people("a", "b", "c") == (["", "", ""], "nowhere")
    assert people("a", "b", "a", "") == (["a", "b", "a", ""], "header")


def test_ids_of_nobody_are_unknown_and_the_source_says_so():
    def people(*names, source="header"):
        rows = [outcome(row, str(row)) for row in range(len(names))]
        rows = [replace(each, index=each.index | {"patient": name}) for each, name in zip(rows, names, strict=True)]
        kept, source = reconcile.believe_patients(rows, source)
        return [each.index["patient"] for each in kept], source

    told = "12 of 12 images have the same patient id, which therefore names no patient"
    assert people(*"Q" * 12) == ([""] * 12, f"nowhere: {told}")
    assert people(*"Q" * 12, source="file") == ([""] * 12, f"nowhere: {told}")
    told = '2 of 5 images have a placeholder such as "ANONYMOUS" as patient id'
    assert people("anonymous", "a", "a", "anonymous", "b") == (["", "a", "a", "", "b"], f"header: {told}")
    assert people("anonymous", "a", "c", "anonymous", "b") == ([""] * 5, f"nowhere: {told}")
    assert people("anonymous", "a", "c", "anonymous", "b", source="file")[0] == ["", "a", "c", "", "b"]


@pytest.mark.parametrize(("unlabelled", "labelled", "told"), [(3, 2, True), (2, 2, False), (0, 3, False), (1, 0, True)])
def test_labels_that_fit_few_files_are_told_once(tmp_path, unlabelled, labelled, told):
    outcomes = [outcome(row, f"x/{row}", reason=reconcile.NO_LABELS) for row in range(unlabelled)]
    outcomes += [outcome(row, str(row)) for row in range(labelled)]
    codes = {str(row): [(2, "-1")] for row in range(labelled)} | {"train/77.dcm": [(9, "-1")]}
    words = reconcile.unlabelled(outcomes, labels.Labels(tmp_path / "mine.csv", codes))
    assert bool(words) == told
    if told:
        assert f"{unlabelled} of {unlabelled + labelled} files have no line in mine.csv" in words
        assert "The id of 0.dcm is x/0." in words
        assert "An id there without a file is train/77.dcm." in words


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdef"), st.integers(1, 3), st.booleans(), st.sampled_from(["-1", "1 2"])),
        max_size=12,
    ),
    st.sets(st.sampled_from("abcdefgh")),
    st.booleans(),
)
def test_nothing_is_lost_and_nothing_is_twice(files, labelled, keep):
    outcomes = [
        outcome(row, image_id, pixels, code=code, reason="" if good and image_id in labelled else "some reason")
        for row, (image_id, pixels, good, code) in enumerate(files)
    ]
    lines = {image_id: "line 2 of the label file" for image_id in labelled}
    kept, set_aside = reconcile.reconcile(outcomes, lines, lambda each: str(each.pixels), keep)
    states = [each.source for each in kept] + [row["file"] for row in set_aside if row["file"]]
    assert sorted(states) == sorted(each.source for each in outcomes)
    used = [each.image_id for each in kept]
    assert used == sorted(set(used))
    beside = {row["ImageId"] for row in set_aside}
    assert labelled <= set(used) | beside
    orphans = [row["ImageId"] for row in set_aside if not row["file"]]
    assert sorted(orphans) == sorted(labelled - {each.image_id for each in outcomes})
    assert all(row["reason"] for row in set_aside)
    if not keep:
        assert len({each.pixels for each in kept}) == len(kept)


# Twelve faults in the real sample


def change(path, target=None, **elements):
    """Changes elements of a file's header, in a copy where a target is given."""
    dataset_ = pydicom.dcmread(path)
    for name, value in elements.items():
        setattr(dataset_, name, value)
    if "SOPInstanceUID" in elements:
        dataset_.file_meta.MediaStorageSOPInstanceUID = elements["SOPInstanceUID"]
    dataset_.save_as(target or path)


def uncompressed(path, pixels: np.ndarray, **elements):
    """Makes a file one of these uncompressed bytes, its header changed."""
    dataset_ = pydicom.dcmread(path)
    dataset_.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset_["PixelData"].is_undefined_length = False
    dataset_.PixelData = pixels.tobytes()
    for name, value in elements.items():
        setattr(dataset_, name, value)
    dataset_.save_as(path)


@pytest.fixture(scope="module")
def faulty(shared, tmp_path_factory):
    """The sample with twelve faults; returns its folder and the expected (ImageId, reason) pairs."""
    folder = tmp_path_factory.mktemp("faulty")
    shutil.copytree(shared / "data/siim-sample/dicom-images-train", folder / "images")
    paths = {path.stem: path for path in sorted((folder / "images").rglob("*.dcm"))}
    table = {
        name: [code for _, code in rows]
        for name, rows in labels.read_labels(shared / "data/siim-sample/train-rle.csv").codes.items()
    }
    names = iter(sorted(paths))
    expected = []

    def spoil(reason, words, image_id=None):
        name = next(names)
        expected.append((image_id or name, reason, words))
        return name, paths[name]

    _, path = spoil("unreadable image", "truncated")
    path.write_bytes(path.read_bytes()[:-5000])
    _, path = spoil("unreadable image", "not a DICOM")
    path.write_bytes(b"")
    _, path = spoil("unreadable image", "not a DICOM")
    path.write_text("This is no radiograph.\n" * 20)
    _, path = spoil("file name and UID differ", "1.2.3.4.5")
    change(path, SOPInstanceUID="1.2.3.4.5")
    name, _ = spoil("invalid run-length code", "leaves the image by 1 pixels")
    table[name] = ["1048575 2"]
    name, _ = spoil("image without labels", "has no line")
    del table[name]
    expected.append(("1.2.3.4.6", "labels without image", "No file"))
    table["1.2.3.4.6"] = ["-1"]
    name = next(names)
    expected.append(("9.9.9", "duplicate pixels", name))
    table["9.9.9"] = table[name]
    change(paths[name], folder / "images/9.9.9.dcm", SOPInstanceUID="9.9.9")
    _, path = spoil("several frames", "2 frames")
    uncompressed(path, np.zeros((2, 1024, 1024), np.uint8), NumberOfFrames=2)
    _, path = spoil("colour image", "RGB")
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    red = np.zeros((1024, 1024, 3), np.uint8)
    red[100:900, 100:900, 0] = 200
    uncompressed(path, red, **colour)
    _, path = spoil("wrong size", "1 x 1 pixels")
    uncompressed(path, np.zeros(2, np.uint8), Rows=1, Columns=1)
    _, path = spoil("wrong size", "65535 x 65535 pixels")
    change(path, Rows=65_535, Columns=65_535)

    with open(folder / "labels.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ImageId", "EncodedPixels"])
        writer.writerows((name, code) for name, codes in table.items() for code in codes)
    return folder, expected


def test_twelve_faults(faulty, tmp_path, capsys):
    folder, expected = faulty
    arguments = ["--images", folder / "images", "--labels", folder / "labels.csv", "--sizes", "64"]
    assert prepare.main([str(each) for each in [*arguments, "--output", tmp_path / "data", "--workers", 2]]) == 3
    with open(tmp_path / "data/quarantine.csv", newline="") as file:
        rows = {row["ImageId"]: row for row in csv.DictReader(file)}
    assert len(expected) == len(rows) == 12
    assert {name: row["reason"] for name, row in rows.items()} == {name: reason for name, reason, _ in expected}
    for name, _, words in expected:
        assert words in rows[name]["detail"], rows[name]
    index = dataset.read_index(tmp_path / "data")
    assert len(index) == 108  # 118, and the copy, less the 11 files with a fault
    wrong = {name for name, *_ in expected}
    assert not wrong & set(index.image_id.tolist())
    made_from = dataset.read_info(tmp_path / "data")["made_from"]
    assert made_from["files"] == {"found": 119, "used": 108}
    assert "108 images" in capsys.readouterr().out


def test_nothing_is_made_where_quarantine_is_an_error(faulty, tmp_path, capsys):
    folder, _ = faulty
    arguments = ["--images", folder / "images", "--labels", folder / "labels.csv", "--sizes", "64"]
    arguments += ["--output", tmp_path / "data", "--workers", 2, "--on-quarantine", "error"]
    assert prepare.main([str(each) for each in arguments]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["data.quarantine.csv"]
    assert len((tmp_path / "data.quarantine.csv").read_text().splitlines()) == 13
    error = capsys.readouterr().err
    assert "12 entries would be set aside" in error
    assert "data.quarantine.csv names each" in error
