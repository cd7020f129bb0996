"""What predict writes beside the submission: a table of all files, masks, probabilities, pictures with captions."""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import REPOSITORY
from PIL import Image

import jaxpneumo
from jaxpneumo.api import LoadedModel
from jaxpneumo.data import rle
from jaxpneumo.dicom.dicom import read, read_image
from jaxpneumo.predict import merge, predict
from jaxpneumo.predict.captions import caption_height, captioned, white
from jaxpneumo.predict.finding import largest_component
from jaxpneumo.predict.infer import load_predictor
from jaxpneumo.predict.manifest import MANIFEST, read_entries
from jaxpneumo.predict.native import to_native_on_host
from jaxpneumo.predict.png import write_png
from jaxpneumo.predict.submission import read_submission
from jaxpneumo.process.errors import DONE, PARTIAL, InputError


@pytest.fixture(scope="module")
def files(radiographs, tmp_path_factory) -> Path:
    """Eight radiographs, one of them as a PNG and one twice; a damaged file and a lateral view."""
    folder = tmp_path_factory.mktemp("results") / "in"
    folder.mkdir()
    originals = sorted((radiographs / "dicom").rglob("*.dcm"))[:8]
    for number, path in enumerate(originals[:7]):
        shutil.copyfile(path, folder / f"{number}.dcm")
    shutil.copyfile(originals[0], folder / "again.dcm")
    write_png(folder / "film.png", read(originals[7]).image)
    (folder / "broken.dcm").write_text("not a radiograph")
    return folder


@pytest.fixture(scope="module")
def arguments(evaluated, files) -> list[str]:
    return ["--workdir", str(evaluated), "--input", str(files), "--removal-threshold", "740000", "--batch-size", "4"]


@pytest.fixture(scope="module")
def output(arguments, tmp_path_factory) -> Path:
    """What one prediction with everything on writes."""
    folder = tmp_path_factory.mktemp("output")
    more = ["--masks", "--probabilities", "png16"]
    assert predict.main([*arguments, *more, "--output", str(folder)]) == PARTIAL
    return folder


def table(path: Path) -> dict[str, dict[str, str]]:
    with open(path) as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == sorted(row["file"] for row in rows)
    return {row["file"]: row for row in rows}


def test_every_file_has_a_row(output, files):
    rows = table(output / "results.csv")
    assert set(rows) == {path.name for path in files.iterdir()}
    codes = read_submission(output / "submission.csv")
    results = {row["result"] for row in rows.values()}
    assert results == {"found", "nothing found", "set aside"}
    for name, row in rows.items():
        assert row["note"].startswith("research use only; not a medical device. Trained on synthetic radiographs")
        if row["result"] == "set aside":
            assert (row["id"], row["score"], row["area"], row["certainty"]) == ("", "", "", "")
            assert name in ("again.dcm", "broken.dcm")
            continue
        image = read_image(files / name)
        mask = rle.decode(codes[row["id"]], *image.image.shape)
        assert (row["result"] == "found") == (codes[row["id"]] != "-1") == (int(row["area"]) > 0)
        assert int(row["area"]) == mask.sum()
        assert int(row["largest"]) == largest_component(mask)
        if image.pixel_spacing:
            assert float(row["area_mm2"]) == pytest.approx(mask.sum() * np.prod(image.pixel_spacing), abs=0.051)
        else:
            assert (row["area_mm2"], row["largest_mm2"]) == ("", "")
        assert 0 <= float(row["score"]) <= 1
        assert row["certainty"] in ("likely", "uncertain", "unlikely")
        assert (row["certainty"] == "uncertain") == bool(row["why"])
        assert row["bands"] in ("calibrated", "uncalibrated")
    assert rows["0.dcm"]["result"] != "set aside"
    assert rows["again.dcm"]["why"].endswith("0.dcm was used")
    assert "not a DICOM" in rows["broken.dcm"]["why"]
    assert rows["film.png"]["id"] == "film"


def test_the_manual_has_every_column(output):
    manual = (REPOSITORY / "docs/usage.md").read_text()
    described = manual.split("| column of `results.csv` | |")[1].split("\n\n")[0]
    named = re.findall(r"`(\w+)`", " ".join(line.split("|")[1] for line in described.splitlines()[2:]))
    with open(output / "results.csv") as file:
        assert set(next(csv.reader(file))) == {*named}
    with open(output / "quarantine.csv") as file:
        assert "`quarantine.csv` has the columns `{}`, the path below `--input`, and `{}`.".format(
            *next(csv.reader(file))
        ) in " ".join(manual.split())


def test_scores_and_sides_are_those_of_the_python_way(output, files, evaluated):
    loaded = jaxpneumo.load(evaluated, batch_size=4)
    settings = next(read_entries(output / MANIFEST))["settings"]
    removal = replace(loaded.predictor.settings, removal_threshold=settings["removal_threshold"])
    predictor = replace(loaded.predictor, settings=removal)
    rows = table(output / "results.csv")
    names = [f"{number}.dcm" for number in range(4)]
    for name, result in zip(names, LoadedModel(predictor, fixed=True).predict([files / n for n in names]), strict=True):
        assert float(rows[name]["score"]) == pytest.approx(result.score, abs=6e-5)
        assert rows[name]["side"] == (result.side or "")
        assert int(rows[name]["area"]) == result.area


def test_masks_and_probabilities_are_what_the_network_said(output, files, evaluated):
    codes = read_submission(output / "submission.csv")
    assert {path.stem for path in (output / "masks").iterdir()} == set(codes)
    predictor = load_predictor(evaluated, 4)
    threshold = predictor.settings.threshold
    for uid, code in codes.items():
        mask = Image.open(output / f"masks/{uid}.png")
        assert mask.mode == "L"
        words = "0 = background, 255 = pneumothorax; research use only; not a medical device"
        assert mask.text["Description"].startswith(words)
        np.testing.assert_array_equal(np.asarray(mask), 255 * rle.decode(code, 128, 128))
        stored = cv2.imread(str(output / f"probabilities/{uid}.png"), cv2.IMREAD_UNCHANGED)
        assert (stored.dtype, stored.shape) == (np.uint16, (32, 32))
        native = to_native_on_host(stored.astype(np.float32) / 65535, 128, 128)
        if code != "-1":
            assert np.mean((native >= threshold) != (np.asarray(mask) > 0)) < 1e-3
        text = Image.open(output / f"probabilities/{uid}.png").text["Description"]
        assert text.startswith("probability of pneumothorax * 65535, of a radiograph of 128 x 128 pixels; research use")


def test_the_other_form_of_probabilities_is_written_on_a_second_start(output, arguments, tmp_path, caplog):
    folder = shutil.copytree(output, tmp_path / "out")
    caplog.set_level("INFO", "jaxpneumo")
    assert predict.main([*arguments, "--probabilities", "npz", "--output", str(folder)]) == PARTIAL
    assert "8 files were predicted without probabilities/.npz before" in caplog.text
    for path in (folder / "probabilities").glob("*.npz"):
        with np.load(path) as file:
            assert (file["probability"].dtype, file["probability"].shape) == (np.float32, (32, 32))
            assert (file["height"], file["width"]) == (128, 128)
            assert "not a medical device" in str(file["note"])
            stored = cv2.imread(str(path.with_suffix(".png")), cv2.IMREAD_UNCHANGED)
            np.testing.assert_allclose(stored / 65535, file["probability"], atol=1e-4)
    assert len(list((folder / "probabilities").glob("*.npz"))) == 8


def test_overlays_leave_every_pixel_of_the_radiograph_in_sight(output, files):
    rows = {row["id"]: row for row in table(output / "results.csv").values() if row["id"]}
    for uid, row in rows.items():
        picture = cv2.cvtColor(cv2.imread(str(output / f"overlays/{uid}.png")), cv2.COLOR_BGR2RGB)
        film = read_image(files / row["file"]).image
        inside = [picture[top : top + 128] for top in range(len(picture) - 127)]
        same = max((one == film[..., None]).all(axis=-1).mean() for one in inside)
        # Nothing but the outline differs, and nothing at all where there is none.
        assert same == 1.0 if row["result"] == "nothing found" else 0.5 < same < 1.0
        assert len(picture) > 128 + 60


def test_captions_are_added_and_cover_nothing():
    picture = np.random.default_rng(0).integers(0, 256, (50, 300, 3), np.uint8)
    above, below = [white("1.2.276.0.7230010." * 5), white("nothing found")], [white("not a medical device")]
    whole = captioned(picture, above, below)
    top = caption_height(above, 300, 50)
    assert whole.shape == (top + 50 + caption_height(below, 300, 50), 300, 3)
    np.testing.assert_array_equal(whole[top : top + 50], picture)
    for strip in (whole[:top], whole[top + 50 :]):
        written = np.argwhere((strip > 100).any(axis=-1))
        assert len(written) > 100
        assert written[:, 1].max() < 297  # all of it is on the strip
    assert caption_height(above, 300, 300) > caption_height(above, 3000, 3000) * 300 / 3000  # long lines are broken
    assert white("Привет, 张")[0].isascii()


def test_merged_parts_have_the_same_table_and_page(output, arguments, tmp_path):
    for part in range(2):
        own = [*arguments, "--output", str(tmp_path / "parts"), "--num-parts", "2", "--part-id", str(part)]
        assert predict.main(own) in (DONE, PARTIAL)
    assert merge.main(["--input", str(tmp_path / "parts"), "--output", str(tmp_path / "merged")]) == PARTIAL
    single, merged = (table(folder / "results.csv") for folder in (output, tmp_path / "merged"))
    assert single.keys() == merged.keys()
    for name, row in single.items():
        assert float(merged[name].pop("score") or 0) == pytest.approx(float(row.pop("score") or 0), abs=2e-4)
        assert merged[name] == row
    pictures = json.loads(_data(tmp_path / "merged/index.html"))["pictures"]
    for place in pictures:
        assert list((tmp_path / "merged" / place).resolve().glob("*.png"))


def test_an_older_manifest_has_a_table_with_what_it_knows(output, tmp_path):
    folder = shutil.copytree(output, tmp_path / "out")
    header, *entries, end = read_entries(folder / MANIFEST)
    del header["bands"]
    new = ("score", "spacing", "side", "largest", "outputs", "unwritten")
    entries = [{name: value for name, value in entry.items() if name not in new} for entry in entries]
    (folder / MANIFEST).write_text("".join(json.dumps(one) + "\n" for one in (header, *entries, end)))
    merge.write_results([folder / MANIFEST], folder / "submission.csv", folder)
    assert (folder / "submission.csv").read_bytes() == (output / "submission.csv").read_bytes()
    for name, row in table(folder / "results.csv").items():
        before = table(output / "results.csv")[name]
        assert (row["result"], row["area"]) == (before["result"], before["area"])
        assert (row["score"], row["certainty"], row["largest"], row["side"]) == ("", "", "", "")


def test_wrong_forms_are_refused(arguments, tmp_path):
    with pytest.raises(InputError, match="tiff cannot be used; give one of png16, npz"):
        predict.main([*arguments, "--output", str(tmp_path), "--probabilities", "tiff"])


def _data(page: Path) -> str:
    return page.read_text().split('<script type="application/json" id="data">')[1].split("</script>")[0]
