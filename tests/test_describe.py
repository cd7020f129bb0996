"""`jaxpneumo describe`: the counts are those of the challenge, and those of what was prepared."""

import json
import re
import shutil

import cv2
import numpy as np
import pytest
from helpers import writable_arrays

from jaxpneumo.data import csv_tables, dataset, partition, verify
from jaxpneumo.evaluate import describe
from jaxpneumo.evaluate.data_figure import data_picture
from jaxpneumo.process.errors import InputError


@pytest.fixture(scope="module")
def challenge(shared):
    data = shared / "data"
    return describe.describe_tables(data / "train-rle-12047.csv.gz", data / "patients-12047.csv.gz")


@pytest.mark.parametrize(
    ("part", "counts", "sex_and_view"),
    [
        (
            "round 1",
            (10_675, 11_582, 2_379, 8_296, 1_755, 624),
            ((4_795, 1_053), (5_880, 1_326), (4_181, 858), (6_494, 1_521)),
        ),
        (
            "round 2",
            (12_047, 12_954, 2_669, 9_378, 2_045, 624),
            ((5_422, 1_181), (6_625, 1_488), (4_772, 971), (7_275, 1_698)),
        ),
    ],
)
def test_rounds_of_the_challenge(challenge, part, counts, sex_and_view):
    found = challenge["parts"][part]
    names = ("images", "label_rows", "positive", "negative", "positive_with_one_row", "positive_with_several_rows")
    assert tuple(found[name] for name in names) == counts
    cells = found["sex"]["F"], found["sex"]["M"], found["view"]["AP"], found["view"]["PA"]
    assert tuple((cell["images"], cell["positive"]) for cell in cells) == sex_and_view


def test_what_the_challenge_allows(challenge):
    """Ceiling of the removal threshold, all-empty baseline, areas, patients."""
    found = challenge["parts"]["round 2"]
    assert found["removal"]["below"] == 278
    ceiling = {side: round(value, 4) for side, value in found["removal"]["ceiling"].items()}
    assert ceiling == {"1024": 0.9769, "512": 0.8933, "256": 0.8018}
    assert round(found["all_empty"]["dice"], 4) == 0.7785
    assert (found["all_empty"]["dice_positive"], found["all_empty"]["dice_negative"]) == (0, 1)
    assert [found["area"][name] for name in ("min", "25 %", "median", "75 %", "max")] == [55, 4059, 8630, 18388, 161421]
    assert round(100 * found["foreground"], 2) == 0.30
    assert (found["patients"]["patients"], found["patients"]["positive_patients"]) == (6_171, 802)
    assert found["most_rows"] == 10
    assert challenge["duplicates"]["overlapping_regions"] == 183


def test_table_for_people(challenge):
    lines = describe.text(challenge).splitlines()
    assert "sex F (positive)                        4,795 (1,053)  5,422 (1,181)" in lines
    assert "positives below 2,048 px of 1024x1024             248            278" in lines
    assert [line for line in lines if "removed" in line or "best" in line][:3] == [
        "best possible mean Dice if masks below",
        "  2,048 px of 1024x1024 are removed            0.9768         0.9769",
        "  2,048 px of 512x512 are removed              0.8916         0.8933",
    ]
    assert "mean Dice of predicting nothing                0.7771         0.7785" in lines


def test_bare_tables(tmp_path):
    """Contradictions and copies are counted; what no file tells is unknown, not zero."""
    labels = tmp_path / "labels.csv"
    rows = ["a,-1", "b,0 3000", "c,0 3000", "d,9 10", "d,9 10", "e,-1", "e,0 100 50 100"]
    labels.write_text("\n".join(["ImageId,EncodedPixels", *rows]) + "\n")
    found = describe.describe_tables(labels, None, threshold=100)
    assert list(found["parts"]) == ["all"]
    part = found["parts"]["all"]
    assert (part["images"], part["positive"], part["patients"], part["age"]) == (5, 4, None, None)
    assert part["sex"] == {"": {"images": 5, "positive": 4}}
    assert part["removal"]["below"] == 1
    assert part["removal"]["ceiling"]["1024"] == pytest.approx(4 / 5)
    assert part["removal"]["ceiling"]["512"] == pytest.approx(3 / 5)
    assert found["duplicates"] == {
        "overlapping_regions": 1,
        "repeated_rows": 1,
        "contradicting_rows": 1,
        "same_mask": 2,
    }
    assert re.search("patients [(]positive[)] +unknown", describe.text(found))


def test_prepared_data(prepared, tmp_path):
    """Near-duplicates and quarantine besides; parts are those of splits.json."""
    data = shutil.copytree(prepared, tmp_path / "data")
    index = dataset.read_index(data)
    images, _ = writable_arrays(data, 32)
    images[4] = 255 - images[9]
    images[9] = np.clip(images[4] * 1.1, 0, 255)
    images.flush()
    (data / "quarantine.csv").write_text(
        "file,ImageId,reason,detail\nx.dcm,x,unreadable image,\n,y,labels\n,z,labels,\n"
    )
    with pytest.raises(InputError, match=r"quarantine\.csv line 3: 3 values"):
        describe.describe_data(data, quiet=True)
    (data / "quarantine.csv").write_text("file,ImageId,reason,detail\nx.dcm,x,unreadable,\n,y,label,\n,z,label,\n")
    found = describe.describe_data(data, quiet=True)
    assert found["synthetic"] is True
    assert found["set_aside"] == {"unreadable": 1, "label": 2}
    pairs = {(pair["first"], pair["second"]) for pair in found["duplicates"]["nearest"]}
    assert (index.image_id[4], index.image_id[9]) in pairs
    assert found["duplicates"]["near_pairs"] == len(pairs)
    assert found["duplicates"]["same_file"] == 0
    parts = found["parts"]
    assert list(parts) == ["all", "training", "validation"]
    for name in ("images", "positive", "label_rows"):
        assert parts["training"][name] + parts["validation"][name] == parts["all"][name]
    assert (parts["all"]["images"], parts["all"]["positive"]) == (24, int(index.positive.sum()))
    # Its images are 128 x 128: the threshold means pixels of 1024 x 1024.
    assert parts["all"]["removal"]["below"] == int((index.positive & (index.mask_area * 64 < 2048)).sum())
    text = describe.text(found)
    assert text.startswith("data: SYNTHETIC images at 32, 64 pixels\n")
    assert "Set aside in quarantine.csv: 1 unreadable, 2 label." in text
    (data / "splits.json").unlink()
    assert list(describe.describe_data(data, quiet=True)["parts"]) == ["all"]


def test_a_part_without_images_is_described_as_such(prepared, tmp_path, capsys):
    data = shutil.copytree(prepared, tmp_path / "data")
    assert partition.main(["--data", str(data), "--validation-fraction", "0", "--overwrite"]) == 0
    printed = capsys.readouterr().out
    assert "24 training images (" in printed
    assert "0 validation images (0 positive)" in printed
    assert verify.verify(data, quiet=True) == []
    parts = describe.describe_data(data, quiet=True)["parts"]
    assert parts["training"] == parts["all"]
    empty = parts["validation"]
    assert (empty["images"], empty["positive"], empty["patients"], empty["all_empty"]) == (0, 0, None, None)
    assert set(empty["removal"]["ceiling"].values()) == {None}
    assert describe.main(["--data", str(data), "--picture", str(tmp_path / "a.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if line.startswith("images ")).split() == ["images", "24", "24", "0"]
    assert next(line for line in lines if line.startswith("mean Dice of predicting nothing")).endswith(" -")
    assert describe.main(["--data", str(data), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parts"]["validation"]["images"] == 0


def test_a_round_without_images_is_described_as_such(tmp_path):
    (tmp_path / "labels.csv").write_text("ImageId,EncodedPixels\na,-1\nb,0 9\n")
    (tmp_path / "patients.csv").write_text("ImageId,patient,round1\na,1,test\nb,2,test\n")
    found = describe.describe_tables(tmp_path / "labels.csv", tmp_path / "patients.csv")
    assert {name: part["images"] for name, part in found["parts"].items()} == {"round 1": 0, "round 2": 2}
    assert "images " in describe.text(found)


def test_prepared_data_and_tables_agree(prepared, radiographs):
    data = describe.describe_data(prepared, quiet=True)["parts"]["all"]
    table = describe.summarise(csv_tables.read_tables(radiographs / "labels.csv", radiographs / "patients.csv"))
    for name in ("images", "label_rows", "positive", "most_rows", "sex", "view", "patients", "age", "area"):
        assert data[name] == table[name]


def test_command(prepared, tmp_path, capsys):
    picture = tmp_path / "made" / "data.png"
    arguments = ["--data", str(prepared)]
    assert describe.main([*arguments, "--json", "--picture", str(picture)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == describe.describe_data(prepared, quiet=True)
    assert describe.main(arguments) == 0
    assert capsys.readouterr().out == describe.text(printed) + "\n"
    pixels = cv2.imread(str(picture))
    assert pixels.shape[1] == 1600
    histograms, sheet = pixels[:440], pixels[440:]
    assert (histograms == 255).all(axis=-1).mean() > 0.5
    blueness = sheet[..., 0].astype(int) - sheet[..., 2]
    assert (blueness > 60).sum() > 1000  # outlines of the truth
    assert (blueness < -60).sum() == 0  # and of no prediction


def test_picture_of_nothing_positive(tmp_path):
    (tmp_path / "labels.csv").write_text("ImageId,EncodedPixels\na,-1\nb,-1\n")
    index = csv_tables.read_tables(tmp_path / "labels.csv")
    picture = data_picture(index, 2048)
    assert picture.shape == (440, 1600, 3)
    part = describe.summarise(index)
    assert (part["area"], part["foreground"], part["removal"]["ceiling"]["256"]) == (None, 0, 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Give either --data DIR"),
        (["--data", "x", "--labels", "y"], "Give either --data DIR"),
        (["--data", "x", "--patients", "y"], "Use --patients only with --labels"),
        (["--data", "none"], "is not a prepared data set"),
        (["--labels", "none.csv"], r"none\.csv cannot be read"),
        (
            ["--labels", "none.csv", "--removal", "-1"],
            "--removal: -1 cannot be used; give a whole number from 0",
        ),
    ],
)
def test_wrong_use(arguments, words):
    with pytest.raises(InputError, match=words):
        describe.main(arguments)
