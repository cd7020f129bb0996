"""Splits: stratified, by patient, reproducible, and read back by image id."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpneumo.data import labels, splits
from jaxpneumo.data.dataset import Index
from jaxpneumo.process.errors import InputError


def make_index(positive, patient=None) -> Index:
    count = len(positive)
    text, zero = np.full(count, ""), np.zeros(count, np.int64)
    return Index(
        image_id=np.array([f"i{row:03d}" for row in range(count)], str),
        patient=text if patient is None else np.array(patient, str),
        mask_area=np.array(positive, np.int64) * 500,
        age=np.full(count, np.nan),
        **dict.fromkeys(("sex", "view", "source", "sha256"), text),
        **dict.fromkeys(("height", "width", "label_rows"), zero),
    )


@settings(max_examples=50)
@given(st.lists(st.booleans(), max_size=80), st.floats(0, 0.9), st.integers(0, 9))
def test_random_split_covers_and_stratifies(positive, fraction, seed):
    positive = np.array(positive, bool)
    train, validation = splits.random_split(positive, fraction, seed)
    assert train.dtype == validation.dtype == np.int64
    np.testing.assert_array_equal(np.sort(np.concatenate([train, validation])), np.arange(positive.size))
    for label in (True, False):
        total = np.count_nonzero(positive == label)
        assert np.count_nonzero(positive[validation] == label) == round(fraction * total)


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from(["", *"abcdefg"])), min_size=1, max_size=60),
    st.floats(0, 0.9),
    st.integers(0, 9),
)
def test_patient_split_keeps_patients_together(images, fraction, seed):
    positive = np.array([found for found, _ in images])
    patient = np.array([name for _, name in images])
    train, validation = splits.patient_split(positive, patient, fraction, seed)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, validation])), np.arange(positive.size))
    assert set(patient[train]) & set(patient[validation]) <= {""}


def test_splits_depend_on_the_seed_alone():
    positive = np.arange(200) % 5 == 0
    patient = np.array([str(row // 3) for row in range(200)])
    for split in (
        lambda seed: splits.random_split(positive, 0.1, seed),
        lambda seed: splits.patient_split(positive, patient, 0.1, seed),
    ):
        np.testing.assert_array_equal(split(1)[1], split(1)[1])
        assert split(1)[1].tolist() != split(2)[1].tolist()


def test_patient_split_does_not_see_the_names():
    positive = np.arange(90) % 4 == 0
    names = np.array([str(row % 31) for row in range(90)])
    renamed = np.array([f"{hash(name) % 997:04d}-{name}" for name in names])
    first = splits.patient_split(positive, names, 0.2, 3)[1]
    np.testing.assert_array_equal(splits.patient_split(positive, renamed, 0.2, 3)[1], first)


def test_patient_split_is_even():
    rng = np.random.default_rng(0)
    patient = np.array([str(n) for n in np.repeat(np.arange(300), rng.geometric(0.3, 300))])
    positive = rng.random(patient.size) < 0.2
    train, validation = splits.patient_split(positive, patient, 0.1, 0)
    assert abs(validation.size - 0.1 * patient.size) < 3
    assert abs(positive[validation].sum() - 0.1 * positive.sum()) < 3
    assert train.size + validation.size == patient.size


def test_both_sides_get_a_patient():
    positive, patient = np.array([True] * 9 + [False]), np.array(["a"] * 9 + ["b"])
    train, validation = splits.patient_split(positive, patient, 0.1, 0)
    assert patient[validation].tolist() == ["b"]
    assert train.size == 9
    train, validation = splits.patient_split(positive, np.array(["a"] * 10), 0.1, 0)
    assert validation.size == 0


def test_split_of_the_challenge(shared):
    """The papers' split leaves most validation images with their patient in training; the other leaves none."""
    codes = labels.read_labels(shared / "data/train-rle-12047.csv.gz").codes
    patients = labels.read_patients(shared / "data/patients-12047.csv.gz")
    positive = [any(code != "-1" for _, code in rows) for rows in codes.values()]
    index = make_index(positive, [patients[name].patient for name in codes])
    train, validation, description = splits.split_rows(index, "random", 0.1, 0)
    assert (len(train), len(validation)) == (10_842, 1_205)
    assert index.positive[validation].sum() == 267
    assert 0.60 < description["validation_images_with_patient_in_training"] / len(validation) < 0.67
    train, validation, description = splits.split_rows(index, "patient", 0.1, 0)
    assert description["validation_images_with_patient_in_training"] == 0
    assert abs(len(validation) - 1_205) <= 15
    assert abs(index.positive[validation].sum() - 267) <= 15


@settings(max_examples=50)
@given(st.lists(st.booleans(), min_size=5, max_size=80), st.integers(2, 5), st.integers(0, 9))
def test_random_folds_are_even(positive, folds, seed):
    positive = np.array(positive, bool)
    fold = splits.random_folds(positive, folds, seed)
    for kind in (positive, ~positive, np.ones_like(positive)):
        counts = np.bincount(fold[kind], minlength=folds)
        assert counts.size == folds
        assert np.ptp(counts) <= 1
    np.testing.assert_array_equal(splits.random_folds(positive, folds, seed), fold)


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from(["", *"abcdefg"])), min_size=1, max_size=60),
    st.integers(2, 4),
    st.integers(0, 9),
)
def test_patient_folds_keep_patients_together(images, folds, seed):
    positive = np.array([found for found, _ in images])
    patient = np.array([name for _, name in images])
    groups = len({name or str(row) for row, name in enumerate(patient)})
    if groups < folds:
        with pytest.raises(InputError, match=f"{groups} patients cannot make {folds} folds"):
            splits.patient_folds(positive, patient, folds, seed)
        return
    fold = splits.patient_folds(positive, patient, folds, seed)
    assert set(fold.tolist()) == set(range(folds))
    for name in set(patient.tolist()) - {""}:
        assert len(set(fold[patient == name].tolist())) == 1


def test_folds_of_the_challenge(shared):
    """One patient alone has 61 images, and still the folds come out even."""
    codes = labels.read_labels(shared / "data/train-rle-12047.csv.gz").codes
    patients = labels.read_patients(shared / "data/patients-12047.csv.gz")
    positive = np.array([any(code != "-1" for _, code in rows) for rows in codes.values()])
    fold = splits.patient_folds(positive, np.array([patients[name].patient for name in codes]), 5, 0)
    assert np.ptp(np.bincount(fold)) <= 5
    assert np.ptp(np.bincount(fold[positive])) <= 5


def test_rounds():
    train, validation = splits.rounds_split(np.array(["train", "test", "train"]))
    assert (train.tolist(), validation.tolist()) == ([0, 2], [1])
    with pytest.raises(InputError, match="has the value 'x'"):
        splits.rounds_split(np.array(["train", "x"]))


def test_file_of_folds(tmp_path):
    index, path = make_index([True, False] * 3), tmp_path / "splits.json"
    splits.write_folds(path, [index.image_id[:2], index.image_id[2:4], index.image_id[4:]], "mine", 3)
    train, validation, description = splits.split_rows(index, path, 0.1, 0)
    assert (train.tolist(), validation.tolist()) == ([2, 3, 4, 5], [0, 1])
    assert (description["method"], description["seed"], description["folds"]) == ("mine", 3, 3)
    train, validation, description = splits.split_rows(index, path, 0.1, 0, fold=2)
    assert (train.tolist(), validation.tolist(), description["fold"]) == ([0, 1, 2, 3], [4, 5], 2)
    with pytest.raises(InputError, match="has the folds 0 to 2, not 3"):
        splits.split_rows(index, path, 0.1, 0, fold=3)
    splits.write_splits(path, index.image_id, train, validation, "random", 0.1, 0)
    with pytest.raises(InputError, match="no folds, so there is no fold 1"):
        splits.split_rows(index, path, 0.1, 0, fold=1)
    for split in ("random", "patient"):
        with pytest.raises(InputError, match=rf"{split} split has no folds.*--method {split} --folds K"):
            splits.split_rows(index, split, 0.1, 0, fold=1)


def test_sides_of_a_fold_say_which_one_they_are(tmp_path):
    index, path = make_index([True, False] * 3), tmp_path / "splits.json"
    splits.write_splits(path, index.image_id, np.arange(4), np.arange(4, 6), "folds.json", 0.1, 0, fold=2, folds=3)
    train, validation, description = splits.split_rows(index, path, 0.1, 0)
    assert (train.tolist(), validation.tolist()) == ([0, 1, 2, 3], [4, 5])
    assert (description["fold"], description["folds"]) == (2, 3)
    assert "folds" not in splits.read_splits(path)  # there is nothing to choose from any more


def test_file_of_the_user(tmp_path):
    index, path = make_index([True, False] * 2), tmp_path / "mine.csv"
    path.write_text("ImageId, split\ni003, validation\ni000, train\ni002,train\n")
    train, validation, description = splits.split_rows(index, path, 0.1, 0)
    assert (train.tolist(), validation.tolist(), description["method"]) == ([0, 2], [3], "mine.csv")
    path.write_text("ImageId,split\ni003,test\n")
    with pytest.raises(InputError, match=r"line 2: the split 'test' is neither train nor validation"):
        splits.split_rows(index, path, 0.1, 0)
    path.write_text("ImageId,part\ni003,train\n")
    with pytest.raises(InputError, match="the header lacks split"):
        splits.split_rows(index, path, 0.1, 0)


def test_a_split_in_words(tmp_path):
    index, path = make_index([True, False] * 3), tmp_path / "siim-folds.json"
    assert splits.words(splits.split_rows(index, "random", 0.5, 0)[2]) == "split at random"
    splits.write_folds(path, [index.image_id[:2], index.image_id[2:4], index.image_id[4:]], "patient", 3)
    train, validation, description = splits.split_rows(index, path, 0.1, 0, fold=2)
    description["file"] = path.name  # as a run does
    assert splits.words(description) == "split by patient (file siim-folds.json, fold 2)"
    own = tmp_path / "splits.json"
    splits.write_splits(own, index.image_id, train, validation, **splits.origin(description))
    *_, description = splits.split_rows(index, own, 0.1, 0)
    assert splits.words(description) == "split by patient (file siim-folds.json, fold 2)"
    assert (description["seed"], description["folds"]) == (3, 3)
    splits.write_splits(own, index.image_id, train, validation, "rounds", None, None)
    assert splits.words(splits.split_rows(index, own, 0.1, 0)[2]) == "split by the challenge's rounds"
    (tmp_path / "mine.csv").write_text("ImageId,split\ni003,validation\ni000,train\n")
    assert splits.words(splits.split_rows(index, tmp_path / "mine.csv", 0.1, 0)[2]) == "split (file mine.csv)"
    assert splits.words({"method": "none", "part": "whole"}) == "not split"


def test_paths_that_older_runs_kept_are_names(tmp_path):
    index, own = make_index([True, False] * 3), tmp_path / "splits.json"
    method = "/home/someone/data/siim-folds.json"
    splits.write_splits(own, index.image_id, np.arange(4), np.arange(4, 6), method, 0.1, 0, fold=2, folds=3)
    *_, description = splits.split_rows(index, own, 0.1, 0)
    assert "/" not in json.dumps(description)
    assert splits.words(description) == "split (file siim-folds.json, fold 2)"
    assert splits.words({"method": method, "fold": 1}) == "split (file siim-folds.json, fold 1)"


def test_ids_of_a_file_may_have_endings(tmp_path):
    index, path = make_index([True, False] * 2), tmp_path / "mine.csv"
    path.write_text("ImageId,split\ni003.dcm,validation\ni000.png,train\n")
    train, validation, _ = splits.split_rows(index, path, 0.1, 0)
    assert (train.tolist(), validation.tolist()) == ([0], [3])


def test_file_brings_the_split_back(tmp_path):
    index = make_index([True, False] * 20)
    train, validation, description = splits.split_rows(index, "random", 0.25, 7)
    assert description["train_images"] == 30
    assert description["validation_images_with_patient_in_training"] is None
    path = tmp_path / "splits.json"
    splits.write_splits(path, index.image_id, train, validation, "random", 0.25, 7)
    stored = json.loads(path.read_text())
    assert list(stored) == ["method", "seed", "validation_fraction", "train", "validation", "checksum"]
    assert stored["validation"] == [f"i{row:03d}" for row in validation]
    back_train, back_validation, back = splits.split_rows(index, path, 0.5, 0)
    np.testing.assert_array_equal(back_train, train)
    np.testing.assert_array_equal(back_validation, validation)
    assert back == description


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"train": ["i000", "x"], "validation": []}', "names 1 images that the data set does not have, x"),
        ('{"train": ["i000"], "validation": ["i000"]}', "names i000 more than once"),
        ('{"train": ["i000"]}', 'no list of image ids "validation"'),
        ('{"train": [1], "validation": []}', 'no list of image ids "train"'),
        ("[]", "no list of image ids"),
        ('{"folds": []}', "no list of image ids"),
        ('{"folds": [["i000"], ["i000"]]}', "names i000 more than once"),
        ('{"folds": [["i000"], ["i009"]]}', "names 1 images .* i009 first: they were not prepared, or have no label"),
        ('{"folds": [[], ["i000"]]}', "fold 0 has no images"),
        ("{", "not valid JSON"),
    ],
)
def test_wrong_file_is_refused(tmp_path, content, words):
    (tmp_path / "splits.json").write_text(content)
    with pytest.raises(InputError, match=words):
        splits.split_rows(make_index([True, False]), tmp_path / "splits.json", 0.1, 0)


def test_wrong_requests_are_refused():
    index = make_index([True, False])
    with pytest.raises(InputError, match="No patient is known"):
        splits.split_rows(index, "patient", 0.1, 0)
    with pytest.raises(InputError, match="cannot be read"):
        splits.split_rows(index, "none.json", 0.1, 0)
    for fraction in (-0.1, 1.0, 10):
        with pytest.raises(InputError, match="validation fraction"):
            splits.split_rows(index, "random", fraction, 0)
        with pytest.raises(InputError, match="validation fraction"):
            splits.check("patient", fraction)
