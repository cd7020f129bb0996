"""`jaxpneumo split`: the leaks that the papers' split has and a grouped one has not."""

import json
import shutil

import numpy as np
import pytest
from helpers import writable_arrays

from jaxpneumo.data import dataset, partition, splits
from jaxpneumo.process.errors import InputError


@pytest.fixture
def data(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "data")


def run(*arguments):
    return partition.main([*map(str, arguments)])


def challenge(shared, output, *arguments):
    tables = shared / "data/train-rle-12047.csv.gz", shared / "data/patients-12047.csv.gz"
    assert run("--labels", tables[0], "--patients", tables[1], "--output", output, *arguments) == 0
    return json.loads(output.read_text()), json.loads(output.with_suffix(".leaks.json").read_text())["folds"]


def test_random_split_of_the_challenge_leaks(shared, tmp_path, capsys):
    file, (leaks,) = challenge(shared, tmp_path / "splits.json")
    assert (len(file["train"]), len(file["validation"])) == (10_842, 1_205)
    assert 0.60 < leaks["patient_in_training"] / 1_205 < 0.67
    assert len(leaks["images_with_patient_in_training"]) == leaks["patient_in_training"]
    assert set(leaks["images_with_patient_in_training"]) <= set(file["validation"])
    assert leaks["near_duplicate_in_training"] is None
    output = capsys.readouterr().out
    assert "62.8 %" in output
    assert "Near-duplicates were not searched" in output


def test_patient_folds_of_the_challenge_do_not(shared, tmp_path):
    file, leaks = challenge(shared, tmp_path / "s.json", "--method", "patient", "--folds", "5")
    assert sum(map(len, file["folds"])) == 12_047
    assert [fold["patient_in_training"] for fold in leaks] == [0] * 5
    assert [fold["validation_images"] for fold in leaks] == [len(ids) for ids in file["folds"]]


def test_rounds_of_the_challenge(shared, tmp_path):
    file, (leaks,) = challenge(shared, tmp_path / "s.json", "--method", "rounds")
    assert (leaks["train_images"], leaks["train_positive"]) == (10_675, 2_379)
    assert (leaks["validation_images"], leaks["validation_positive"]) == (1_372, 290)
    assert (file["method"], file["seed"]) == ("rounds", None)


def test_near_duplicates_of_a_prepared_data_set(data, capsys):
    index = dataset.read_index(data)
    images, _ = writable_arrays(data, 32)
    images[3] = 255 - images[5]  # unlike any other
    images[5] = np.clip(images[3] * 1.1, 0, 255)
    images.flush()
    mine = data / "mine.csv"
    side = {3: "validation", 5: "train"}
    rows = [f"{name},{side.get(row, 'train')}" for row, name in enumerate(index.image_id)]
    mine.write_text("\n".join(["ImageId,split", *rows]) + "\n")
    assert run("--data", data, "--method", mine, "--overwrite") == 0
    (leaks,) = json.loads((data / "splits.leaks.json").read_text())["folds"]
    assert leaks["near_duplicate_in_training"] == 1
    (pair,) = leaks["near_duplicates"]
    assert (pair["validation"], pair["training"]) == (index.image_id[3], index.image_id[5])
    assert "near-duplicate in training: 1 of 1 validation images (100.0 %)" in capsys.readouterr().out
    assert splits.read_splits(data / "splits.json")["validation"] == [index.image_id[3]]


def test_report_knows_only_what_can_be_known(data, radiographs, tmp_path, capsys):
    assert run("--labels", radiographs / "labels.csv", "--output", tmp_path / "s.json") == 0
    output = capsys.readouterr().out
    assert "patient in training:        not known" in output
    assert "Give --patients CSV" in output
    (leaks,) = json.loads((tmp_path / "s.leaks.json").read_text())["folds"]
    assert leaks["patient_in_training"] is None
    # Of some images only: the others are said to be unknown.
    header, *lines = (radiographs / "patients.csv").read_text().splitlines()
    (tmp_path / "some.csv").write_text("\n".join([header, *lines[:12]]) + "\n")
    run("--data", data, "--patients", tmp_path / "some.csv", "--folds", 2, "--overwrite")
    (first, second) = json.loads((data / "splits.leaks.json").read_text())["folds"]
    assert first["patient_unknown"] + second["patient_unknown"] == 12
    assert "patient unknown:" in capsys.readouterr().out


def test_split_can_be_trained_on_and_written_again(data):
    assert run("--data", data, "--method", "patient", "--folds", "3", "--seed", "4", "--overwrite") == 0
    before = (data / "splits.json").read_bytes()
    assert run("--data", data, "--method", data / "splits.json") == 0
    assert (data / "splits.json").read_bytes() == before
    index = dataset.read_index(data)
    seen = [splits.split_rows(index, data / "splits.json", 0.1, 0, fold)[1] for fold in range(3)]
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(len(index)))


def test_another_split_is_replaced_only_where_that_is_asked_for(data, tmp_path, capsys):
    """Runs may be trained on it."""
    file, leaks = tmp_path / "s.json", tmp_path / "s.leaks.json"
    assert run("--data", data, "--method", "patient", "--output", file) == 0
    assert f"Written: {file} and {leaks}\n" in capsys.readouterr().out
    assert run("--data", data, "--method", "patient", "--output", file) == 0, "the same again"
    before = file.read_bytes(), leaks.read_bytes()
    for others in (("--method", "random"), ("--method", "patient", "--folds", "2")):
        with pytest.raises(
            InputError, match=r"s\.json holds another split, .* Give another --output, or --overwrite to"
        ):
            run("--data", data, *others, "--output", file)
        assert (file.read_bytes(), leaks.read_bytes()) == before
    assert run("--data", data, "--method", "random", "--output", file, "--overwrite") == 0
    assert splits.read_splits(file)["method"] == "random"
    file.write_text("damaged")
    with pytest.raises(InputError, match="holds another split"):
        run("--data", data, "--method", "random", "--output", file)


def test_no_patient_is_written(data, radiographs):
    run("--data", data, "--patients", radiographs / "patients.csv", "--method", "patient", "--overwrite")
    written = (data / "splits.json").read_text() + (data / "splits.leaks.json").read_text()
    names = {line.split(",")[1] for line in (radiographs / "patients.csv").read_text().splitlines()[1:]}
    assert not [name for name in names if f'"{name}"' in written]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Give either --data DIR"),
        (["--data", "DATA", "--labels", "x.csv"], "Give either --data DIR"),
        (["--labels", "x.csv"], "Give the file to write"),
        (["--data", "DATA", "--method", "rounds"], "needs --patients CSV with a column round1"),
        (["--data", "DATA", "--method", "x.csv", "--folds", "3"], "goes with --method random or patient"),
        (["--data", "DATA", "--folds", "25"], "choose --folds from 2 to 24"),
        (
            ["--data", "DATA", "--validation-fraction", "1.5"],
            "fraction: 1.5 cannot be used; give a number from 0 to below 1",
        ),
        (["--data", "DATA", "--output", "s.txt"], "must end in .json"),
        (["--data", "none"], "is not a prepared data set"),
        (["--data", "DATA", "--method", "none.json"], "cannot be read"),
    ],
)
def test_wrong_use_changes_nothing(data, arguments, words):
    before = (data / "splits.json").read_bytes()
    with pytest.raises(InputError, match=words):
        run(*[str(data) if argument == "DATA" else argument for argument in arguments])
    assert (data / "splits.json").read_bytes() == before
