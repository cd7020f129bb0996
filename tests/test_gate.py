"""Two steps: one run decides which images show pneumothorax, another, trained on positive images, outlines it."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import as_typed, load_config, shrink

from jaxpneumo.data import dataset
from jaxpneumo.data.rle import EMPTY
from jaxpneumo.evaluate import evaluate, thresholds
from jaxpneumo.evaluate.results import read_metrics
from jaxpneumo.predict import predict
from jaxpneumo.predict.infer import load_predictor
from jaxpneumo.predict.native import to_native_on_host
from jaxpneumo.predict.submission import read_submission
from jaxpneumo.process.errors import DONE, InputError
from jaxpneumo.report.report import write_report
from jaxpneumo.score.threshold_counts import read_counts
from jaxpneumo.train.stages import train


@pytest.fixture(scope="module")
def of_positives(prepared, tmp_path_factory):
    """A run at 64 pixels that saw positive images only."""
    folder = tmp_path_factory.mktemp("positives") / "run"
    config = shrink(load_config("exp2"), prepared)
    config.data.split = "patient"
    config.model.dtype = "float32"
    config.stage1.size = config.predict.size = 64
    config.stage1.unlock()
    config.stage1.positive_share = 1.0
    train(as_typed(config), folder)
    return folder


@pytest.fixture
def gate(evaluated, tmp_path):
    """A run at 32 pixels, of all images; a test may save thresholds in it."""
    return shutil.copytree(evaluated, tmp_path / "gate-run")


@pytest.fixture
def predicted(radiographs, tmp_path):
    """Predicts the radiographs into a folder of this name; returns image id -> codes."""

    def run(name, *flags):
        arguments = [*flags, "--input", str(radiographs / "dicom"), "--output", str(tmp_path / name)]
        arguments += ["--overlays", "0", "--workers", "0", "--removal-threshold", "0"]
        assert predict.main([*arguments, *(() if "--threshold" in flags else ("--threshold", "0.3"))]) == DONE
        return read_submission(tmp_path / name / "submission.csv")

    return run


def save_thresholds(run, name, threshold, removal=0, rule="image"):
    """As `jaxpneumo thresholds` saves them."""
    saved = {"threshold": threshold, "removal_threshold": removal, "removal_rule": rule, "tta": True, "size": 32}
    (run / "thresholds").mkdir(exist_ok=True)
    (run / "thresholds" / f"{name}.json").write_text(json.dumps(saved))


def middle_threshold(run):
    """One that some images' highest probability at native size reaches and others' does not, by a clear margin.

    A gate sees the picture of the network after it, made smaller: its grey levels differ by one here and there.
    """
    predictor = load_predictor(run)
    data = Path(json.loads((run / "config.json").read_text())["data"]["directory"])
    images, index = dataset.open_arrays(data, 32)[0], dataset.read_index(data)
    highest = []
    for i in range(0, len(images), 4):
        probability = np.asarray(predictor.probabilities(predictor.variables, images[i : i + 4], True))[1]
        sizes = zip(index.height[i : i + 4], index.width[i : i + 4], strict=True)
        highest += [to_native_on_host(one, *size).max() for one, size in zip(probability, sizes, strict=True)]
    middle = np.sort(highest)[4:-4]
    widest = np.diff(middle).argmax()
    return float(middle[widest : widest + 2].mean())


def test_an_image_stays_empty_where_the_gate_outlines_nothing(gate, of_positives, predicted, tmp_path, capsys):
    """By the gate's own network, size, threshold and TTA: exactly as it predicts alone. What it empties is told."""
    threshold = middle_threshold(gate)
    save_thresholds(gate, "half", threshold)
    alone = predicted("alone", "--workdir", str(of_positives))
    decided = predicted("gate", "--workdir", str(gate), "--threshold", str(threshold))
    gated = predicted("gated", "--workdir", str(of_positives), "--gate", str(gate), "--gate-thresholds", "half")
    kept = {image for image, code in decided.items() if code != EMPTY}
    assert 0 < len(kept) < 24
    emptied = {image for image, code in alone.items() if code != EMPTY} - kept
    assert emptied
    assert gated == {image: code if image in kept else EMPTY for image, code in alone.items()}
    assert f"\nOutlined, but left empty: {len(emptied)} by the gate.\n" in capsys.readouterr().out
    with open(tmp_path / "gated/results.csv") as file:
        told = {row["id"]: row["emptied_by"] for row in csv.DictReader(file)}
    assert told == {image: "gate" if image in emptied else "" for image in alone}


def test_the_manifest_names_the_gate_and_another_gate_does_not_go_on(gate, of_positives, predicted, tmp_path, capsys):
    flags = ("--workdir", str(of_positives), "--gate", str(gate))
    predicted("out", *flags)
    told = f"Gate: {gate} (B-TH 0.3, R-TH 20000 px (image)); images stay empty where it outlines nothing.\n"
    assert told in capsys.readouterr().out
    named = json.loads((tmp_path / "out/manifest.jsonl").read_text().splitlines()[0])["settings"]["gate"]
    assert (named["threshold"], named["removal_threshold"], named["size"]) == (0.3, 20000, 32)
    assert len(named["model"]) == 64
    save_thresholds(gate, "other", 0.9)
    with pytest.raises(InputError, match=r"settings \(gate's threshold 0\.3, now 0\.9; gate's removal_threshold"):
        predicted("out", *flags, "--gate-thresholds", "other")
    with pytest.raises(InputError, match=rf"settings \(gate {named['model'][:12]}, now None\)"):
        predicted("out", "--workdir", str(of_positives))


def test_a_gate_that_cannot_be_used_is_refused(gate, of_positives, predicted, tmp_path):
    with pytest.raises(InputError, match=r"predicts at size 64, which is more than the 32"):
        predicted("a", "--workdir", str(gate), "--gate", str(of_positives))
    with pytest.raises(InputError, match="--gate-thresholds needs --gate RUN"):
        predicted("b", "--workdir", str(of_positives), "--gate-thresholds", "half")
    with pytest.raises(InputError, match="is not a run"):
        predicted("c", "--workdir", str(of_positives), "--gate", str(tmp_path))
    with pytest.raises(InputError, match="has no thresholds named absent"):
        predicted("d", "--workdir", str(of_positives), "--gate", str(gate), "--gate-thresholds", "absent")


def test_a_gate_that_removes_components_is_refused(gate, of_positives, predicted):
    """It decides by the area of all that it outlines, which components that are all removed would add up to."""
    save_thresholds(gate, "parts", 0.3, removal=40_000, rule="component")
    with pytest.raises(InputError, match=r'one by one \(rule "component"\).* --rule image`, and give'):
        predicted("e", "--workdir", str(of_positives), "--gate", str(gate), "--gate-thresholds", "parts")
    save_thresholds(gate, "whole", 0.3, rule="component")
    predicted("f", "--workdir", str(of_positives), "--gate", str(gate), "--gate-thresholds", "whole")


@pytest.fixture
def outlining(of_positives, tmp_path):
    """A copy of the run of positive images, to evaluate into its folder."""
    return shutil.copytree(of_positives, tmp_path / "outlining")


@pytest.mark.long
def test_scores_with_the_gate_stand_beside_those_without(gate, outlining, tmp_path, capsys):
    threshold = middle_threshold(gate)
    save_thresholds(gate, "half", threshold)
    flags = ["--workdir", str(outlining), "--part", "validation"]
    assert evaluate.main([*flags, "--output", str(tmp_path / "alone")]) == DONE
    capsys.readouterr()
    gated = ["--gate", str(gate), "--gate-thresholds", "half", "--output", str(outlining / "evaluation")]
    assert evaluate.main([*flags, *gated]) == DONE
    printed = capsys.readouterr().out
    alone, gated = (
        json.loads((path / "summary.json").read_text()) for path in (tmp_path / "alone", outlining / "evaluation")
    )
    assert {mode: gated["scores"][mode] for mode in alone["scores"]} == alone["scores"]
    own = alone["run"]["mode"]
    assert gated["run"]["mode"] == f"{own}_gated"
    assert gated["scores"].keys() - alone["scores"].keys() == {f"{own}_gated"}

    # By hand: what the gate's own masks leave.
    assert evaluate.main(["--workdir", str(gate), "--thresholds", "half", "--output", str(tmp_path / "gate")]) == DONE
    decided, table = (read_metrics(path / "metrics.csv") for path in (tmp_path / "gate", outlining / "evaluation"))
    np.testing.assert_array_equal(decided["ImageId"], table["ImageId"])
    kept = decided["tta_area"].astype(int) > 0
    assert 0 < kept.sum() < len(kept)
    area, truth = (table[name].astype(int) for name in (f"{own}_area", "truth_area"))
    np.testing.assert_array_equal(table[f"{own}_gated_area"].astype(int), np.where(kept, area, 0))
    empty = np.where(truth == 0, 1.0, 0.0)
    dice = np.where(kept, table[f"{own}_dice"].astype(float), empty)
    assert gated["scores"][f"{own}_gated"]["dice"] == pytest.approx(dice.mean(), abs=1e-6)
    codes = read_submission(outlining / "evaluation/submission.csv")
    assert [codes[name] != EMPTY for name in table["ImageId"]] == [bool(one) for one in kept & (area > 0)]
    counts, ungated = (read_counts(path / "levels.npz") for path in (outlining / "evaluation", tmp_path / "alone"))
    np.testing.assert_array_equal(counts.area, ungated.area * kept[:, None])
    np.testing.assert_array_equal(counts.component_tp, ungated.component_tp * kept[:, None, None])

    named = gated["gate"]
    assert (named["workdir"], named["size"], named["threshold"]) == ("gate-run", 32, threshold)
    assert (named["images_kept"], named["images_in_training"]) == (kept.sum(), 0)
    assert f"gate: gate-run (B-TH {threshold:g}, R-TH 0 px (image)) leaves {(~kept).sum()} of {len(kept)}" in printed
    assert "+ gate" in printed
    page = write_report(outlining)[0].read_text()
    assert "The gate is the run <b>gate-run</b>" in page
    assert "+ gate" in page

    assert thresholds.main(["--workdir", str(outlining), "--name", "with-gate"]) == DONE
    saved = json.loads((outlining / "thresholds/with-gate.json").read_text())
    assert saved["chosen_for"]["gate"] == "gate-run"


def test_a_gate_that_was_trained_on_the_images_is_told(gate, of_positives, tmp_path, capsys):
    flags = ["--workdir", str(of_positives), "--gate", str(gate), "--output", str(tmp_path / "out")]
    assert evaluate.main([*flags, "--part", "train"]) == DONE
    trained = len(json.loads((gate / "splits.json").read_text())["train"])
    assert f"The gate was trained on {trained} of these images" in capsys.readouterr().out
