"""Prediction: both views in one call, masks at native size, folders with bad files, a submission."""

import csv
import json
import os
import shutil
import subprocess
import sys

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import as_typed, load_config, shrink
from networks import compiled_apply
from PIL import Image

from jaxpneumo.data import rle
from jaxpneumo.data.resize import resize_to_squares
from jaxpneumo.dicom.dicom import read, write
from jaxpneumo.predict import predict
from jaxpneumo.predict.ensemble import load_ensemble
from jaxpneumo.predict.infer import load_predictor, predict_masks, predict_probabilities
from jaxpneumo.predict.submission import read_submission
from jaxpneumo.process.atomic import write_json
from jaxpneumo.process.errors import DONE, PARTIAL, InputError
from jaxpneumo.process.files import read_json
from jaxpneumo.run.network import make_model
from jaxpneumo.run.provenance import trained_on_synthetic
from jaxpneumo.train.stages import train


@pytest.fixture(scope="module")
def workdir(prepared, tmp_path_factory):
    """A finished one-stage run of a tiny network."""
    folder = tmp_path_factory.mktemp("run")
    config = shrink(load_config("exp2"), prepared)
    config.model.dtype = "float32"
    config.predict.threshold = 0.5
    config.predict.removal_threshold = 0
    train(as_typed(config), folder)
    return folder


@pytest.fixture(scope="module")
def predictor(workdir):
    return load_predictor(workdir)


def test_probabilities_are_those_of_two_separate_calls(predictor):
    """In float64, where no rounding hides a difference. The grey levels are divided in float32, as in the product."""
    divided = jax.jit(lambda image: image.astype(jnp.float32)[..., None] / 255.0)
    image = np.random.default_rng(0).integers(0, 256, (4, 32, 32), np.uint8)
    with jax.enable_x64(True):
        model = make_model(predictor.config.model, training=False).clone(dtype=jnp.float64)
        variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), predictor.variables)

        def one_view(image):
            return jax.nn.sigmoid(compiled_apply(model, variables, divided(image)))

        both_views = jax.jit(predict_probabilities, static_argnums=(0, 3))
        plain, tta = both_views(model, variables, image, True)
        assert plain.dtype == jnp.float64
        np.testing.assert_allclose(plain, one_view(image), atol=1e-12)
        by_hand = (one_view(image) + one_view(image[..., ::-1])[..., ::-1]) / 2
        np.testing.assert_allclose(tta, by_hand, atol=1e-12)
        (alone,) = both_views(model, variables, image, False)
        np.testing.assert_allclose(alone, plain, atol=1e-12)


def test_masks_do_not_depend_on_batch_or_company(predictor):
    rng = np.random.default_rng(2)
    images = [(i, rng.integers(0, 256, (32, 32), np.uint8), (64, 64) if i % 3 else (50, 300)) for i in range(7)]
    together = list(predict_masks(predictor, images, (0, 1)))
    assert [key for key, _ in together] == list(range(7))
    for (key, image, native), (_, masks) in zip(images, together, strict=True):
        ((_, alone),) = predict_masks(predictor, [(key, image, native)], (0, 1))
        for view in (0, 1):
            assert alone[view].unpack().shape == native
            assert alone[view].area == alone[view].unpack().sum()
            # Convolutions of another batch may round differently just at the threshold.
            assert (alone[view].unpack() != masks[view].unpack()).mean() < 0.002


def test_many_native_sizes_need_one_program_and_do_not_pile_up(predictor):
    """Every image of another size: masks come out in order, long before the stream ends; nothing is compiled anew."""
    taken = 0

    def stream():
        nonlocal taken
        for i in range(40):
            taken += 1
            yield i, np.full((32, 32), 5 * i, np.uint8), (40 + i, 64)

    programs = None
    for seen, (key, masks) in enumerate(predict_masks(predictor, stream(), (0,))):
        assert (key, masks[0].unpack().shape) == (seen, (40 + seen, 64))
        assert taken - seen <= 2 * predictor.settings.batch_size
        programs = programs or predictor.native_masks._cache_size()
    assert seen == 39
    assert predictor.native_masks._cache_size() == programs


def test_a_batch_smaller_than_the_devices_uses_fewer_of_them(workdir, predictor):
    """conftest.py makes two devices of the CPU."""
    assert predictor.mesh.size == 2
    one = load_predictor(workdir, batch_size=1)
    assert (one.mesh.size, one.settings.batch_size) == (1, 1)
    image = np.random.default_rng(3).integers(0, 256, (32, 32), np.uint8)
    ((_, masks),) = predict_masks(one, [(0, image, (64, 64))])
    ((_, others),) = predict_masks(predictor, [(0, image, (64, 64))])
    assert (masks[1].unpack() != others[1].unpack()).mean() < 0.002
    with pytest.raises(InputError, match="divide evenly over the 2 devices"):
        load_predictor(workdir, batch_size=3)


def test_folder_is_predicted_with_its_bad_files_set_aside(predictor, workdir, radiographs, tmp_path, capsys):
    files = sorted((radiographs / "dicom").rglob("*.dcm"))[:6]
    source = tmp_path / "in"
    source.mkdir()
    for path in files:
        (source / path.name).write_bytes(path.read_bytes())
    (source / "truncated.dcm").write_bytes(files[0].read_bytes()[:2000])
    (source / "text.dcm").write_text("not a radiograph")
    (source / "zz_copy.dcm").write_bytes(files[0].read_bytes())
    cv2.imwrite(str(source / "film.png"), read(files[1]).image)

    arguments = ["--workdir", str(workdir), "--input", str(source), "--output", str(tmp_path / "out")]
    assert predict.main(arguments) == PARTIAL
    assert "7 radiographs" in capsys.readouterr().out
    codes = read_submission(tmp_path / "out/submission.csv")
    assert set(codes) == {read(path).uid for path in files} | {"film"}
    assert {path.stem for path in (tmp_path / "out/overlays").iterdir()} == set(codes)
    with open(tmp_path / "out/quarantine.csv") as file:
        reasons = {row["file"]: row["reason"] for row in csv.DictReader(file)}
    assert set(reasons) == {"truncated.dcm", "text.dcm", "zz_copy.dcm"}
    assert "not a DICOM" in reasons["text.dcm"]

    # The submission holds what the network says of that radiograph.
    radiograph = read(files[2])
    ((_, masks),) = predict_masks(
        predictor, [("x", *resize_to_squares(radiograph.image, (32,)), radiograph.image.shape)], (1,)
    )
    expected = masks[1].unpack()
    assert (rle.decode(codes[radiograph.uid], *radiograph.image.shape) != expected).mean() < 0.002


def test_names_of_any_kind_are_predicted_and_drawn(workdir, radiographs, tmp_path, capsys):
    """Other scripts, the longest name, bytes that are no text, one name in two folders and in two cases."""
    image = read(sorted((radiographs / "dicom").rglob("*.dcm"))[0]).image
    names = ["张伟.png", "王芳.png", "Иван.png", "x" * 251 + ".png", "p1/view.png", "p2/view.png", "A.png", "a.png"]
    names.append(os.fsdecode(b"M\xfcller.png"))
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(cv2.imencode(".png", image)[1].tobytes())
    output = tmp_path / "out"
    arguments = ["--workdir", str(workdir), "--input", str(tmp_path / "in"), "--output", str(output)]
    assert predict.main(arguments) == DONE
    codes = read_submission(output / "submission.csv")
    ids = {"张伟", "王芳", "Иван", "x" * 251, "p1/view", "p2/view", "A", "a", r"M\xfcller"}
    assert set(codes) == ids
    assert len(set(codes.values())) == 1
    overlays = [path.name.lower() for path in (output / "overlays").iterdir()]
    assert len(set(overlays)) == len(names)
    assert "9 radiographs" in capsys.readouterr().out
    assert predict.main(arguments) == DONE  # again, from the manifest
    assert read_submission(output / "submission.csv") == codes


def test_output_in_the_input_is_never_input(workdir, radiographs, tmp_path):
    for path in sorted((radiographs / "dicom").rglob("*.dcm"))[:2]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    arguments = ["--workdir", str(workdir), "--input", str(tmp_path), "--output", str(tmp_path)]
    assert predict.main(arguments) == DONE
    first = {name: (tmp_path / name).read_bytes() for name in ("submission.csv", "manifest.jsonl")}
    assert len(list((tmp_path / "overlays").iterdir())) == 2
    assert predict.main(arguments) == DONE
    assert first == {name: (tmp_path / name).read_bytes() for name in first}
    assert predict.main([*arguments[:-1], str(tmp_path / "out")]) == DONE
    assert (tmp_path / "out/submission.csv").read_bytes() == first["submission.csv"]


def test_other_pictures_are_set_aside_unless_they_are_wanted(workdir, radiographs, tmp_path, capsys):
    image = read(sorted((radiographs / "dicom").rglob("*.dcm"))[0]).image
    for uid, view in (("1.1", "PA"), ("1.2", "LL"), ("1.3", "RLD"), ("1.4", "")):
        write(tmp_path / "in" / f"{uid}.dcm", image, uid, view=view)
    arguments = ["--workdir", str(workdir), "--input", str(tmp_path / "in"), "--overlays", "0"]
    assert predict.main([*arguments, "--output", str(tmp_path / "out")]) == PARTIAL
    told = capsys.readouterr().out
    assert "2 files set aside" in told
    assert "2 of them are not frontal chest radiographs; --any-image predicts them too." in told
    assert set(read_submission(tmp_path / "out/submission.csv")) == {"1.1", "1.4"}
    with open(tmp_path / "out/quarantine.csv") as file:
        reasons = {row["file"]: row["reason"] for row in csv.DictReader(file)}
    assert reasons == {
        f"{uid}.dcm": f"not a frontal chest radiograph: View Position is {view}"
        for uid, view in (("1.2", "LL"), ("1.3", "RLD"))
    }
    (tmp_path / "in/1.3.dcm").unlink()
    assert predict.main([*arguments, "--output", str(tmp_path / "out")]) == PARTIAL
    told = capsys.readouterr().out
    assert "1 of them is not a frontal chest radiograph; --any-image predicts it too." in told
    with pytest.raises(InputError, match=r"1\.2\.dcm cannot be used: not a frontal .* is LL\. --any-image also"):
        predict.main(["--workdir", str(workdir), "--input", str(tmp_path / "in/1.2.dcm"), "--output", str(tmp_path)])
    write(tmp_path / "in/1.3.dcm", image, "1.3", view="RLD")
    with pytest.raises(InputError, match=r"any_image False, now True\)\. Choose another --output"):
        predict.main([*arguments, "--output", str(tmp_path / "out"), "--any-image"])
    assert predict.main([*arguments, "--output", str(tmp_path / "any"), "--any-image"]) == DONE
    assert set(read_submission(tmp_path / "any/submission.csv")) == {"1.1", "1.2", "1.3", "1.4"}


def test_a_picture_that_cannot_be_drawn_costs_nothing_else(workdir, radiographs, tmp_path, capsys, caplog):
    for path in sorted((radiographs / "dicom").rglob("*.dcm"))[:3]:
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / path.name).write_bytes(path.read_bytes())
    uid = read(path).uid
    # A folder has the place of the temporary file.
    (tmp_path / "out/overlays" / f"{uid}.png.tmp").mkdir(parents=True)
    arguments = ["--workdir", str(workdir), "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    for _ in range(2):
        assert predict.main(arguments) == PARTIAL
        assert f"1 files of {tmp_path / 'out/overlays'} could not be written" in capsys.readouterr().out
    assert (
        f"{path.name} was predicted, but a file could not be written: {uid}.png cannot be written: Is a directory."
        in caplog.text
    )
    assert len(read_submission(tmp_path / "out/submission.csv")) == 3
    assert len(list((tmp_path / "out/overlays").glob("*.png"))) == 2


def test_masks_that_were_not_asked_for_at_first_are_written_on_the_second_start(workdir, radiographs, tmp_path, caplog):
    for path in sorted((radiographs / "dicom").rglob("*.dcm"))[:3]:
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "in/bad.dcm").write_text("not a radiograph")
    output, threshold = tmp_path / "out", ["--threshold", "0.45"]
    arguments = ["--workdir", str(workdir), "--input", str(tmp_path / "in"), "--output", str(output), *threshold]
    caplog.set_level("INFO", "jaxpneumo")
    assert predict.main([*arguments, "--overlays", "0"]) == PARTIAL
    first = (output / "submission.csv").read_bytes()
    (output / "masks").write_text("in the way")
    assert predict.main([*arguments, "--overlays", "1", "--masks"]) == PARTIAL
    assert "3 files were predicted without masks before; they are predicted again." in caplog.text
    assert len(list((output / "overlays").iterdir())) == 1
    (output / "masks").unlink()
    for again in (True, False):  # masks that could not be written are tried again, those that could are not
        caplog.clear()
        assert predict.main([*arguments, "--masks", "--overlays", "1"]) == PARTIAL
        assert ("files were predicted without masks" in caplog.text) == again
    codes = read_submission(output / "submission.csv")
    assert (output / "submission.csv").read_bytes() == first
    assert len(list((output / "masks").iterdir())) == len(codes) == 3
    for uid, code in codes.items():
        mask = cv2.imread(str(output / f"masks/{uid}.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(mask, 255 * rle.decode(code, 128, 128))


def test_a_run_on_synthetic_radiographs_says_so(workdir, radiographs, tmp_path, capsys):
    """It knows from its own folder: the data may be gone. A run of real ones, here by its record alone, does not."""
    words = "Trained on synthetic radiographs: these outlines say nothing about patients."
    file = sorted((radiographs / "dicom").rglob("*.dcm"))[0]
    real = tmp_path / "real"
    shutil.copytree(workdir, real)
    starts = read_json(real / "provenance.json")["starts"]
    assert [start["synthetic"] for start in starts] == [True]
    write_json(real / "provenance.json", {"starts": [{**starts[0], "synthetic": False}]})
    for run, says in ((workdir, True), (real, False)):
        output = tmp_path / f"out-{run.name}"
        assert predict.main(["--workdir", str(run), "--input", str(file), "--output", str(output)]) == DONE
        assert (words in capsys.readouterr().out) == says
        header = json.loads((output / "manifest.jsonl").read_text().splitlines()[0])
        assert (words in header["note"]) == says
        assert (output / "submission.csv").read_text().splitlines()[0] == "ImageId,EncodedPixels"
        assert (words in (output / "results.csv").read_text()) == says
        assert (words in Image.open(next((output / "overlays").iterdir())).text["Description"]) == says
    assert load_ensemble([real, workdir], [0.5, 0.5]).synthetic
    assert not load_ensemble([real, real], [0.5, 0.5]).synthetic


def test_an_older_run_is_asked_for_what_its_starts_do_not_say(workdir, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(workdir, run)
    (run / "provenance.json").unlink()
    assert trained_on_synthetic(run)  # of its data set
    config = read_json(run / "config.json")
    config["data"]["directory"] = str(tmp_path / "gone")
    write_json(run / "config.json", config)
    assert not trained_on_synthetic(run)
    for directory, says in (("other", False), ("gone", True)):
        write_json(run / "evaluation/summary.json", {"data": {"directory": directory, "synthetic": True}})
        assert trained_on_synthetic(run) == says
    (run / "evaluation/summary.json").unlink()
    config["data"]["synthetic"] = {"train": 12, "test": 1, "positive_fraction": 0.5, "area_scale": 1.0}
    write_json(run / "config.json", config)
    assert trained_on_synthetic(run)


def test_one_file_is_predicted_by_itself(workdir, radiographs, tmp_path, capsys):
    file = sorted((radiographs / "dicom").rglob("*.dcm"))[0]
    arguments = ["--workdir", str(workdir), "--input", str(file), "--output", str(tmp_path)]
    assert predict.main(arguments) == DONE
    assert list(read_submission(tmp_path / "submission.csv")) == [read(file).uid]
    assert [path.stem for path in (tmp_path / "overlays").iterdir()] == [read(file).uid]
    output = tmp_path / "rule"
    assert predict.main([*arguments[:-1], str(output), "--removal-rule", "component"]) == DONE
    assert len(read_submission(output / "submission.csv")) == 1


def test_help_and_wrong_use_do_without_jax():
    program = (
        "import sys; from jaxpneumo.__main__ import main; sys.argv = ['jaxpneumo', 'predict', *sys.argv[1:]]\n"
        "try: main()\nfinally: assert 'jax' not in sys.modules"
    )
    for arguments, code in ((["--help"], 0), (["--workdir", "x", "--input", "nowhere", "--output", "y"], 0)):
        done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
        assert done.returncode == code
        assert ("examples:" in done.stdout) or ("nowhere is neither" in done.stderr)


def test_with_and_without_views_is_refused(workdir, tmp_path):
    for flags in (["--no-tta", "--tta", "flip"], ["--tta", "flip", "--no-tta"]):
        with pytest.raises(InputError, match=r"tta: not allowed with argument --(no-)?tta\."):
            predict.main(["--workdir", str(workdir), "--input", str(tmp_path), "--output", str(tmp_path), *flags])


def test_options_change_the_runs_settings(workdir, radiographs, tmp_path):
    arguments = ["--workdir", str(workdir), "--input", str(radiographs / "dicom"), "--overlays", "2"]
    output = tmp_path / "all"
    assert predict.main([*arguments, "--output", str(output), "--threshold", "0", "--no-tta"]) == DONE
    codes = read_submission(output / "submission.csv")
    assert len(codes) == 24
    assert set(codes.values()) == {f"0 {128 * 128}"}
    assert len(list((output / "overlays").iterdir())) == 2
    assert not (output / "quarantine.csv").exists()
    output = tmp_path / "none"
    assert predict.main([*arguments, "--output", str(output), "--removal-threshold", str(1024 * 1024)]) == DONE
    assert set(read_submission(output / "submission.csv").values()) == {"-1"}


def test_wrong_folders_are_refused_in_words(workdir, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no radiographs"):
        predict.main(["--workdir", str(workdir), "--input", str(tmp_path / "empty"), "--output", str(tmp_path)])
    with pytest.raises(InputError, match="is not a run"):
        load_predictor(tmp_path)
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
    with pytest.raises(InputError, match="no finished stage"):
        load_predictor(tmp_path)
    (tmp_path / "empty/broken.dcm").write_text("x")
    with pytest.raises(InputError, match=r"empty/broken\.dcm cannot be used: broken\.dcm is not a DICOM"):
        predict.main(["--workdir", str(workdir), "--input", str(tmp_path / "empty"), "--output", str(tmp_path / "o")])
