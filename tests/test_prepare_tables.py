"""`jaxpneumo prepare` and its csv files: who is a patient, which image an id means, which kind of code it is."""

import cv2
import numpy as np
import pytest
from preparing import refused, three_files

from jaxpneumo.data import dataset, rle, splits


@pytest.fixture
def files(tmp_path):
    """Three images: 1.3 negative, 1.1 with one region, 1.2 with two overlapping ones."""
    return three_files(tmp_path)


# Patients


def test_patients_are_hashed(files):
    files.add("1.4", patient="Smith^17")
    files.add("1.5", patient="Smith^17", seed=9)
    assert files.run() == 0
    index = dataset.read_index(files.output)
    assert index.patient[3] == index.patient[4] != index.patient[0]
    assert all(len(patient) == 16 for patient in index.patient)
    assert not any(b"Smith" in path.read_bytes() for path in files.output.iterdir())


def test_key_file_makes_data_sets_agree(files, tmp_path):
    files.add("1.4", patient="P1.1", seed=4)
    patients = []
    for name, key in [("a", b"k" * 32), ("b", b"k" * 32), ("c", b"l" * 32), ("d", None), ("e", None)]:
        files.output = tmp_path / name
        (tmp_path / "key").write_bytes(key or b"")
        files.run(*(["--patient-key", tmp_path / "key"] if key else []))
        patients.append(dataset.read_index(files.output).patient.tolist())
    assert patients[0] == patients[1]
    assert all(patients[0][0] != other[0] for other in patients[2:])
    assert patients[3] != patients[4]


def test_patients_file_goes_before_the_header(files, tmp_path):
    path = tmp_path / "patients.csv"
    path.write_text("ImageId,patient,sex,age,view\n1.1,7,M,,PA\n1.2,7,,41,\n")
    assert files.run("--patients", path, "--split", "patient", "--validation-fraction", "0.4") == 0
    index = dataset.read_index(files.output)
    assert index.patient[0] == index.patient[1] != ""
    assert index.patient[2] == ""  # not in the file: unknown, though the header has an id
    assert (index.sex[0], index.age[0], index.view[0], index.age[1]) == ("M", 50, "PA", 41)
    assert index.view[2] == "PA"
    split = splits.read_splits(files.output / "splits.json")
    assert (split["method"], split["validation"]) == ("patient", ["1.3"])


def test_one_word_for_every_patient_is_nobody(files, capsys):
    for path in files.images.rglob("*.dcm"):
        path.unlink()
    files.rows.clear()
    for number in range(20):
        files.add(f"1.{number}", ["0 10" if number % 2 else "-1"], seed=number, patient="ANONYMOUS")
    assert files.run() == 0
    told = "20 of 20 images have the same patient id, which therefore names no patient"
    assert f"Patients are known from nowhere: {told}. Each image" in capsys.readouterr().err
    assert set(dataset.read_index(files.output).patient) == {""}
    assert dataset.read_info(files.output)["made_from"]["patients_from"] == f"nowhere: {told}"
    split = splits.read_splits(files.output / "splits.json")
    assert (len(split["train"]), len(split["validation"])) == (18, 2)


@pytest.mark.parametrize("name", ["", "ANONYMOUS", "7"])
def test_a_split_by_patient_with_a_csv_that_names_nobody_says_so(files, capsys, tmp_path, name):
    for number in range(4, 14):
        files.add(f"1.{number}", seed=number)
    path = tmp_path / "patients.csv"
    path.write_text("ImageId,patient\n" + "".join(f"1.{number},{name}\n" for number in range(1, 14)))
    assert files.run("--patients", path, "--split", "patient") == 2
    error = capsys.readouterr().err
    assert f"{path} names no patient of these images, so they cannot be split by patient: its column patient" in error
    assert "Prepare it again" not in error


def test_masks_of_more_than_half_of_the_image_are_told(files, capsys):
    files.add("1.4", ["0 6000"], seed=4)
    assert files.run() == 0
    assert "cover more" not in capsys.readouterr().err
    files.add("1.5", ["0 4000", "4000 4000"], seed=5)
    files.output = files.folder / "large"
    assert files.run() == 0
    assert "1 of 5 masks cover more than half of their image, 1.5 first." in capsys.readouterr().err


def test_words_for_nobody_among_patients(files, capsys, tmp_path):
    names = ["Anonymized", "7", "7", "8", "8", "anon", "ANON", "9", "9", "10"]
    for number, name in enumerate(names):
        files.add(f"1.{number + 4}", seed=number + 4, patient=name)
    assert files.run() == 0
    told = '3 of 13 images have a placeholder such as "ANONYMOUS" as patient id'
    assert f"Patients are known from header: {told}." in capsys.readouterr().err
    index = dataset.read_index(files.output)
    patient = dict(zip(index.image_id.tolist(), index.patient.tolist(), strict=True))
    assert [patient[f"1.{number}"] for number in (4, 9, 10)] == ["", "", ""]
    assert patient["1.5"] == patient["1.6"] != patient["1.7"]
    path = tmp_path / "patients.csv"
    path.write_text("ImageId,patient,sex,age\n" + "".join(f"{name},REMOVED,Female,34\n" for name in patient))
    files.output = tmp_path / "other"
    assert files.run("--patients", path) == 0
    assert "known from nowhere: 13 of 13 images have the same patient id" in capsys.readouterr().err
    index = dataset.read_index(files.output)
    assert (set(index.patient), set(index.sex), set(index.age)) == ({""}, {"F"}, {34})


# Ids and codes of other kinds


def test_ids_with_endings_and_paths_are_used(files, tmp_path):
    square = rle.encode(files.masks["1.1"])
    files.rows = ["train/1.3.dcm, -1", f"train/1.1.dcm, {square}", "1.2.DCM, -1"]
    (tmp_path / "p.csv").write_text("ImageId,patient\nimages/1.1.dcm,7\n1.2,7\n")
    assert files.run("--patients", tmp_path / "p.csv") == 0
    index = dataset.read_index(files.output)
    assert index.image_id.tolist() == ["1.1", "1.2", "1.3"]
    assert index.mask_area.tolist() == [1600, 0, 0]
    assert index.patient[0] == index.patient[1] != ""


def test_one_image_under_two_spellings_is_one_image(files, capsys):
    first, second = (row.split(", ")[1] for row in files.rows if row.startswith("1.2"))
    files.rows = ["1.3, -1", "1.1, -1", f"1.1.dcm, {first}", f"1.2, {first}", f"study/1.2.DCM, {second}"]
    assert files.run() == 3
    index = dataset.read_index(files.output)
    assert index.image_id.tolist() == ["1.2", "1.3"]
    assert index.mask_area[0] == files.masks["1.2"].sum()
    assert index.label_rows[0] == 2
    (row,) = files.quarantine()
    assert (row["ImageId"], row["reason"]) == ("1.1", "conflicting labels")
    assert "labels.csv line 3 says -1, line 4 has a region" in row["detail"]


def pictures(files, *names):
    """A folder of pictures beside the radiographs."""
    folder, rng = files.folder / "pictures", np.random.default_rng(0)
    folder.mkdir()
    for name in names:
        cv2.imwrite(str(folder / name), cv2.resize(rng.integers(0, 256, (12, 16), np.uint8), (128, 96)))
    return folder


def test_ids_that_may_be_of_two_images_are_not_guessed_from(files):
    folder = pictures(files, "a.png", "b.png")
    files.rows = ["a.png, 0 9", "a.jpg, 20 9", "b.png, -1"]
    assert files.run("--images", folder) == 3
    (row,) = files.quarantine()
    assert (row["file"], row["reason"]) == ("a.png", "conflicting labels")
    assert row["detail"] == "labels.csv has a.png and a.jpg, which could all mean it. Keep the one that does."


def test_pictures_that_differ_in_their_endings_are_told_apart_by_them(files, capsys):
    folder = pictures(files, "x.png", "x.jpg")
    files.rows = ["x.png, 0 5", "x.jpg, -1"]
    (files.folder / "p.csv").write_text("ImageId,patient\nx.png,7\nx.jpg,8\n")
    assert files.run("--images", folder, "--patients", files.folder / "p.csv") == 0
    index = dataset.read_index(files.output)
    assert (index.image_id.tolist(), index.mask_area.tolist()) == (["x.jpg", "x.png"], [0, 5])
    assert len(set(index.patient.tolist()) - {""}) == 2
    files.rows, files.output = ["x, 0 5"], files.folder / "other"
    assert files.run("--images", folder) == 2, "which file is meant cannot be told"
    assert "tell them apart in the csv by their paths with endings" in capsys.readouterr().err
    files.rows = ["x.png, 0 5", "x, -1"]
    assert files.run("--images", folder) == 0
    assert dataset.read_index(files.output).mask_area.tolist() == [0, 5]


def test_a_label_without_image_names_the_file_of_its_name(files):
    folder = pictures(files, "a.png", "b.png")
    files.rows = ["a, 0 9", "other/a.png, 0 9", "b, -1"]
    assert files.run("--images", folder) == 3
    (row,) = files.quarantine()
    assert row["detail"] == "No file has this id (line 3 of the label file); a.png has the id a."


def test_rows_that_are_there_twice_count_once_and_are_told(files, capsys):
    assert files.run() == 0
    assert "left out" not in capsys.readouterr().err
    once, files.output = files.output, files.folder / "twice"
    files.rows = [*files.rows, *files.rows[1:], files.rows[1].replace("1.1", "1.1.dcm")]
    assert files.run() == 0
    told = "4 rows of labels.csv have the id and the code of another row and are left out."
    assert told in capsys.readouterr().err
    assert dataset.read_index(files.output).label_rows.tolist() == dataset.read_index(once).label_rows.tolist()
    assert dataset.read_info(files.output)["made_from"]["label_rows"] == {"found": 8, "used": 4}


def test_two_patients_of_one_image_are_refused(files, capsys, tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("ImageId,patient\n1.1,7\n1.1.dcm,8\n1.2,7\n")
    refused(files, capsys, f"{path}: 1.1 and 1.1.dcm mean one image here, and their lines differ", "--patients", path)
    path.write_text("ImageId,patient\n1.1,7\n1.1.dcm,7\n1.2,7\n")
    assert files.run("--patients", path) == 0


def test_pictures_of_one_name_are_known_by_their_folders(files):
    """The layout of CheXpert: five pictures of one name; the csv has further folders before."""
    folder, rng = files.folder / "pictures", np.random.default_rng(0)
    names = [f"patient0000{number}/study1/view1_frontal" for number in range(5)]
    for name in names:
        (folder / name).parent.mkdir(parents=True)
        cv2.imwrite(str(folder / f"{name}.jpg"), cv2.resize(rng.integers(0, 256, (12, 16), np.uint8), (128, 96)))
    for output, before in (("a", ""), ("b", "CheXpert-v1.0/train/")):
        files.rows = [f"{before}{name}.jpg, 0 {number + 5}" for number, name in enumerate(names)]
        files.output = files.folder / output
        assert files.run("--images", folder) == 0
        index = dataset.read_index(files.output)
        assert index.image_id.tolist() == names
        assert index.mask_area.tolist() == [5, 6, 7, 8, 9]
    # One file in two folders of the csv: neither label is certain to be its own.
    files.rows = [f"train/{names[0]}.jpg, 0 5", f"valid/{names[0]}.jpg, -1", f"train/{names[1]}.jpg, -1"]
    files.output = files.folder / "c"
    assert files.run("--images", folder) == 3
    assert dataset.read_index(files.output).image_id.tolist() == [names[1]]


def test_labels_of_other_ids_are_told_once(files, capsys):
    files.rows = [row.replace("1.", "img-") for row in files.rows]
    refused(files, capsys, "3 of 3 files have no line in labels.csv. The id of")
    files.rows[-2:] = ["1.3, -1"]
    assert files.run() == 3
    error = capsys.readouterr().err
    assert error.count("2 of 3 files have no line in labels.csv") == 1
    assert "An id there without a file is img-3." in error
    assert "the file's name without ending, or its path below --images" in error
    assert not [row for row in files.quarantine() if "-1" in row["detail"]]


def test_codes_in_absolute_starts_are_refused_before_any_work(files, capsys):
    edges = np.flatnonzero(np.diff(files.masks["1.1"].T.ravel(), prepend=0))
    code = " ".join(f"{start + 1} {end - start}" for start, end in zip(edges[::2], edges[1::2], strict=True))
    files.rows = ["1.3, -1", f"1.1, {code}", "1.2, 17 5"]
    refused(files, capsys, "labels.csv line 3: the file's run-length codes seem to be absolute")
    assert not files.output.exists()


def test_an_empty_code_is_no_negative(files):
    files.rows[0] = "1.3,"
    assert files.run() == 3
    (row,) = files.quarantine()
    assert row["reason"] == "invalid run-length code"
    assert "labels.csv line 2: the run-length code is empty; -1 means no pneumothorax" in row["detail"]


def test_images_that_the_patients_file_does_not_list_are_told(files, capsys, tmp_path):
    """Their ids may be written otherwise there, and their patients would be on both sides of a split by patient."""
    path = tmp_path / "patients.csv"
    path.write_text("ImageId,patient\n1.1,a\nimage 1.2,a\n1.3,\n")
    assert files.run("--patients", path) == 0
    assert f"1 of 3 images have no line in {path}: each counts as a patient of its own." in capsys.readouterr().err
