"""`jaxpneumo predict --model`: an exported model in the pipeline of predict, without JAX."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest

import jaxpneumo
from jaxpneumo.data.rle import decode
from jaxpneumo.predict.native import native_grid, native_masks, pixels_at_least
from jaxpneumo.predict.onnx_predictor import load_onnx, native_mask
from jaxpneumo.predict.onnx_session import RUNTIMES
from jaxpneumo.predict.predict import main
from jaxpneumo.predict.submission import read_submission
from jaxpneumo.process.errors import DONE, InputError
from jaxpneumo.run.config import Predict


def entries(folder):
    header, *lines = map(json.loads, (folder / "manifest.jsonl").read_text().splitlines())
    return header, [line for line in lines if line.get("state") == "done"]


@pytest.fixture(scope="module")
def by_run(evaluated, radiographs, tmp_path_factory):
    """What the run itself writes."""
    folder = tmp_path_factory.mktemp("predictions")
    arguments = ["--input", str(radiographs / "dicom"), "--output", str(folder), "--overlays", "0"]
    assert main(["--workdir", str(evaluated), *arguments]) == DONE
    return folder


@pytest.fixture
def predict(onnx_file, radiographs, tmp_path):
    """Predicts the shared radiographs with the model and further arguments; returns the output folder."""

    def run(*arguments):
        given = ["--model", str(onnx_file), "--input", str(radiographs / "dicom"), "--output", str(tmp_path / "out")]
        assert main([*given, "--overlays", "0", *arguments]) == DONE
        return tmp_path / "out"

    return run


@pytest.fixture(scope="module")
def probabilities(evaluated, radiographs):
    """The run's probabilities at native size, by image id."""
    return {result.id: result.probability for result in jaxpneumo.load(evaluated).predict(radiographs / "dicom")}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_masks_scores_and_certainties_are_the_runs(predict, by_run, probabilities, runtime):
    """Masks pixel by pixel, but where rounding decides: at a probability that is nearly the threshold."""
    folder = predict("--runtime", runtime)
    (header, ours), (of_run, theirs) = entries(folder), entries(by_run)
    codes = [read_submission(each / "submission.csv") for each in (folder, by_run)]
    assert codes[0].keys() == codes[1].keys() == probabilities.keys()
    for image, probability in probabilities.items():
        mine, its = (decode(code[image], *probability.shape) for code in codes)
        assert np.abs(probability[mine != its] - of_run["settings"]["threshold"]).max(initial=0) < 1e-5
    assert any(entry["positive"] for entry in ours)
    for mine, its in zip(ours, theirs, strict=True):
        assert mine.pop("score") == pytest.approx(its.pop("score"), abs=1e-5)
        if mine.pop("code") != its.pop("code"):
            for name in ("area", "largest"):
                assert mine.pop(name) == pytest.approx(its.pop(name), abs=5)
        assert mine == its
    assert (header["model"], header["bands"], header["note"]) == (of_run["model"], of_run["bands"], of_run["note"])
    assert header["settings"] == {**of_run["settings"], "runtime": runtime}
    assert header["software"]["packages"][runtime]


def test_other_thresholds_and_batches(predict, by_run):
    folder = predict("--threshold", "0.25", "--removal-threshold", "0", "--batch-size", "5")
    header, ours = entries(folder)
    assert (header["settings"]["threshold"], header["settings"]["removal_threshold"]) == (0.25, 0)
    assert all(mine["area"] >= its["area"] for mine, its in zip(ours, entries(by_run)[1], strict=True))
    assert sum(mine["area"] for mine in ours) > sum(its["area"] for its in entries(by_run)[1])
    with pytest.raises(
        InputError, match=r"holds predictions made with other settings \(runtime onnxruntime, now openvino"
    ):
        predict("--threshold", "0.25", "--removal-threshold", "0", "--runtime", "openvino")


def test_jax_is_not_loaded(onnx_file, radiographs, tmp_path):
    code = (
        "import sys\nfrom jaxpneumo.predict.predict import main\n"
        "code = main(sys.argv[1:])\nprint(code, [name for name in ('jax', 'orbax', 'flax') if name in sys.modules])"
    )
    film = sorted((radiographs / "dicom").rglob("*.dcm"))[0]
    arguments = ["--model", onnx_file, "--input", film, "--output", tmp_path, "--overlays", "0"]
    line = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, env={**os.environ}, check=False)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"removal_threshold": 300_000},
        {"threshold": 0.625, "top_threshold": 0.75, "top_area": 100_000},
        {"threshold": 0.625, "top_threshold": 0.75, "top_area": 300_000},
        {"classifier_threshold": 0.5},
        {"classifier_threshold": 0.75},
    ],
)
def test_masks_of_numpy_are_those_of_the_device(change):
    """Eighths at twice the size: no product is rounded, and both are equal to the bit."""
    settings = replace(Predict(32, 1, True, 0.5, 0), **change)
    probability, size, finding = np.random.default_rng(4).integers(0, 9, (32, 32)).astype(np.float32) / 8, (64, 64), 0.5
    ours = native_mask(probability, size, settings, finding)
    areas = [pixels_at_least(area, *size) for area in (settings.removal_threshold, settings.top_area or 0)]
    levels = np.float32([settings.threshold, settings.top_threshold or 0])
    grid = native_grid([size], 32, 1)
    bits, area = native_masks(probability[None], grid, np.int32([areas]), levels)
    kept = settings.classifier_threshold is None or finding >= settings.classifier_threshold
    assert ours.area == (int(area[0]) if kept else 0)
    np.testing.assert_array_equal(ours.bits, np.asarray(bits[0])[: size[0], : size[1] // 8] * np.uint8(kept))
    assert (ours.height, ours.width, ours.finding) == (*size, finding)
    assert ours.emptied_by == ("" if kept else "classifier")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--workdir RUN or --model FILE is missing"),
        (["--workdir", "run", "--runtime", "openvino"], "--runtime openvino needs --model FILE"),
        (
            ["--model", "a.onnx", "--workdir", "run"],
            "--workdir does not go with --model: the model has a run's weights",
        ),
        (["--model", "a.onnx", "--tta", "True"], "its views are in the file"),
        (["--model", "a.onnx", "--no-tta"], "its views are in the file"),
        (["--model", "a.onnx", "--thresholds", "low"], "--threshold and the like change them"),
        (["--model", "a.onnx", "--gate", "run"], "a gate is a run"),
        (["--model", "a.onnx", "--runtime", "tensorrt"], "give one of onnxruntime, openvino"),
        (["--model", "a.onnx"], r"a\.onnx: no such file"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments, words, radiographs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words):
        main([*arguments, "--input", str(radiographs / "dicom"), "--output", str(tmp_path / "out")])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_model_of_another_program_is_refused(runtime, tmp_path):
    """One that only passes its image on."""
    image, same = (onnx.helper.make_tensor_value_info(name, 2, ["n", "h", "w"]) for name in ("image", "same"))
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["image"], ["same"])], "g", [image], [same])
    onnx.save(
        onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 18)]),
        tmp_path / "a.onnx",
    )
    with pytest.raises(InputError, match=r"a\.onnx is no model of `jaxpneumo export --format onnx`"):
        load_onnx(tmp_path / "a.onnx", runtime)
