"""The bare tables give the index that the images would have."""

import numpy as np
import pytest

from jaxpneumo.data import csv_tables, dataset
from jaxpneumo.data.prepare import prepare
from jaxpneumo.process.errors import InputError


def test_tables_agree_with_the_prepared_images(shared, tmp_path):
    folder, sample = tmp_path / "data", shared / "data/siim-sample"
    prepare(
        sample / "dicom-images-train",
        sample / "train-rle.csv",
        folder,
        (32,),
        sample / "patients.csv",
        workers=1,
        quiet=True,
    )
    index = dataset.read_index(folder)
    table = csv_tables.read_tables(sample / "train-rle.csv", sample / "patients.csv")
    order = np.argsort(table.image_id)
    for name in ("image_id", "sex", "age", "view", "height", "width", "mask_area", "label_rows"):
        np.testing.assert_array_equal(getattr(table, name)[order], getattr(index, name))
    assert len(set(table.patient.tolist())) == len(set(index.patient.tolist()))


@pytest.fixture
def files(tmp_path):
    labels, patients = tmp_path / "labels.csv", tmp_path / "patients.csv"
    labels.write_text("ImageId, EncodedPixels\na, -1\nb, 5 10 5 10\nc,0 10\nc,5 10\nc,-1\n")
    patients.write_text("ImageId,patient,sex,age,view,round1\nb,7,f,50,pa,train\nc,7,M,,AP,test\n")
    return labels, patients


def test_areas_and_rows(files):
    index = csv_tables.read_tables(*files)
    assert index.image_id.tolist() == ["a", "b", "c"]
    assert index.mask_area.tolist() == [0, 20, 15]
    assert index.label_rows.tolist() == [0, 1, 2]
    assert index.patient.tolist() == ["", "7", "7"]
    assert (index.sex.tolist(), index.view.tolist()) == (["", "F", "M"], ["", "PA", "AP"])
    assert index.age[1] == 50
    assert np.isnan(index.age[2])
    assert csv_tables.read_tables(files[0]).patient.tolist() == ["", "", ""]


def test_columns_are_found_by_id(files):
    assert csv_tables.read_column(files[1], "round1", np.array(["c", "b"])).tolist() == ["test", "train"]
    with pytest.raises(InputError, match="lacks 1 of the images, a first"):
        csv_tables.read_column(files[1], "round1", np.array(["a", "b"]))
    with pytest.raises(InputError, match="header lacks round2"):
        csv_tables.read_column(files[1], "round2", np.array(["b"]))
    files[1].write_text("ImageId,round1\nb,train\nb,test\n")
    with pytest.raises(InputError, match="line 3: b is listed a second time"):
        csv_tables.read_column(files[1], "round1", np.array(["b"]))


def test_patients_of_another_file(files):
    index = csv_tables.with_patients(csv_tables.read_tables(files[0]), files[1])
    assert index.patient.tolist() == ["", "7", "7"]
    files[1].write_text("ImageId,patient\nz,7\n")
    with pytest.raises(InputError, match="lists none of the images"):
        csv_tables.with_patients(index, files[1])
    with pytest.raises(InputError, match="lists none of the images"):
        csv_tables.read_tables(*files)


def test_ids_of_the_patients_may_be_paths(files):
    files[1].write_text("ImageId,patient,round1\ntrain/b.dcm,7,train\nx/c.png,7,test\na.png,8,test\n")
    files[0].write_text("ImageId,EncodedPixels\na,-1\nb,-1\nc,-1\n")
    index = csv_tables.read_tables(*files)
    assert index.patient.tolist() == ["8", "7", "7"]
    assert csv_tables.with_patients(csv_tables.read_tables(files[0]), files[1]).patient.tolist() == ["8", "7", "7"]
    assert csv_tables.read_column(files[1], "round1", index.image_id).tolist() == ["test", "train", "test"]


def test_one_image_under_two_spellings_is_one_image(files):
    files[0].write_text("ImageId,EncodedPixels\na.dcm,0 10\na,5 10\na,0 10\nb.png,-1\nb.jpg,0 4\n")
    index = csv_tables.read_tables(files[0])
    assert index.image_id.tolist() == ["a.dcm", "b.png", "b.jpg"]  # endings of two kinds may be of two images
    assert index.mask_area.tolist() == [15, 0, 4]
    assert index.label_rows.tolist() == [2, 0, 1]
    files[1].write_text("ImageId,patient,round1\na,7,train\na.dcm,8,train\nb.png,8,train\nb.jpg,8,test\n")
    with pytest.raises(InputError, match=r"patients\.csv: a and a\.dcm mean one image here, and their lines differ"):
        csv_tables.read_tables(*files)
    with pytest.raises(InputError, match=r"a and a\.dcm mean one image"):
        csv_tables.with_patients(index, files[1])
    assert csv_tables.read_column(files[1], "round1", index.image_id).tolist() == ["train", "train", "test"]


def test_nobody_is_no_patient(files, caplog):
    files[1].write_text("ImageId,patient\na,unknown\nb,7\nc,7\n")
    assert csv_tables.read_tables(*files).patient.tolist() == ["", "7", "7"]
    assert "1 of 3 images have a placeholder such as" in caplog.text
    names = [f"i{number}" for number in range(12)]
    files[0].write_text("ImageId,EncodedPixels\n" + "".join(f"{name},-1\n" for name in names))
    files[1].write_text("ImageId,patient\n" + "".join(f"{name},7\n" for name in names))
    assert csv_tables.with_patients(csv_tables.read_tables(files[0]), files[1]).patient.tolist() == [""] * 12
    assert "patients.csv: 12 of 12 images have the same patient id, which therefore names no patient" in caplog.text


def test_codes_of_another_kind_are_said(files):
    files[0].write_text("ImageId,EncodedPixels\na,-1\nb,5000 7 6024 7 7048 7\n")
    with pytest.raises(InputError, match=r"labels\.csv line 3: the file's run-length codes seem to be absolute"):
        csv_tables.read_tables(files[0])
    rows = ["b,5000 7 6024 7 7048 7", "c,5000 7 1017 7 1017 7", "d,5000 7 1017 7"]
    files[0].write_text("\n".join(["ImageId,EncodedPixels", *rows]) + "\n")
    with pytest.raises(InputError, match=r"labels\.csv line 2: the run-length code seems to be absolute"):
        csv_tables.read_tables(files[0])


def test_wrong_codes_are_said(files):
    files[0].write_text("ImageId,EncodedPixels\na,-1\nb,1048570 7\n")
    with pytest.raises(InputError, match=r"labels.csv line 3: .* leaves the image by 1 pixels"):
        csv_tables.read_tables(files[0])
