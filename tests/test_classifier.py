"""A head on the encoder's last map that says whether an image shows anything: its loss, its score, its threshold."""

import functools
import html
import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers import as_typed, load_config, shrink
from networks import pattern, tiny

import jaxpneumo
from jaxpneumo.data import dataset
from jaxpneumo.evaluate import evaluate, thresholds
from jaxpneumo.evaluate.results import read_metrics
from jaxpneumo.evaluate.summary_text import table as as_text
from jaxpneumo.model.folding import fold
from jaxpneumo.predict import predict
from jaxpneumo.predict.certainty import Bands, bands_of
from jaxpneumo.predict.ensemble import combine, load_ensemble
from jaxpneumo.predict.infer import load_predictor
from jaxpneumo.predict.submission import read_submission
from jaxpneumo.process.atomic import write_json
from jaxpneumo.process.errors import DONE, InputError
from jaxpneumo.process.files import read_json
from jaxpneumo.report import report
from jaxpneumo.run.config import typed
from jaxpneumo.run.network import make_model
from jaxpneumo.score.threshold_counts import AREAS, THRESHOLDS, ThresholdCounts
from jaxpneumo.train.losses import classification_loss
from jaxpneumo.train.stages import train


@pytest.fixture(scope="module")
def trained(prepared, tmp_path_factory):
    """A finished and evaluated run of the fixture `evaluated`'s kind, with a classifier."""
    folder = tmp_path_factory.mktemp("classifier") / "run"
    config = shrink(load_config("exp2"), prepared)
    config.data.split, config.data.validation_fraction = "patient", 0.4
    config.model.dtype = "float32"
    config.model.unlock()
    config.model.classifier = True
    config.stage1.learning_rate = 0.01
    config.predict.threshold = 0.3
    train(as_typed(config), folder)
    assert evaluate.main(["--workdir", str(folder)]) == DONE
    return folder


@pytest.fixture
def workdir(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


IMAGE = np.random.Generator(np.random.PCG64(7)).random((2, 64, 64, 1), np.float32)


@functools.cache
def variables_of(encoder):
    model = tiny(encoder=encoder, classifier=True)
    return pattern(jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), IMAGE), seed=1)


@pytest.mark.long
@pytest.mark.parametrize("encoder", ["resnet34_preact", "resnet34"])
def test_the_head_adds_its_own_weights_and_changes_nothing_else(encoder):
    variables = variables_of(encoder)
    plain = jax.eval_shape(functools.partial(tiny(encoder=encoder).init, train=False), jax.random.key(0), IMAGE)
    added = flatten_dict(variables).keys() - flatten_dict(plain).keys()
    assert added == {("params", "classifier", "kernel"), ("params", "classifier", "bias")}
    assert variables["params"]["classifier"]["kernel"].shape == (64, 1)
    without = {
        key: {name: value for name, value in part.items() if name != "classifier"} for key, part in variables.items()
    }
    with_head, finding = tiny(encoder=encoder, classifier=True).apply(variables, IMAGE, False, method="outputs")
    alone, nothing = tiny(encoder=encoder).apply(without, IMAGE, False, method="outputs")
    np.testing.assert_array_equal(with_head, alone)
    assert (finding.shape, finding.dtype, nothing) == ((2,), jnp.float32, None)
    folded = fold(variables, encoder, jnp.float32)
    model = make_model(typed_model(encoder), training=False)
    again = model.apply(folded, IMAGE, False, method="outputs")[1]
    np.testing.assert_allclose(again, finding, rtol=1e-4, atol=1e-5)


def typed_model(encoder):
    config = load_config("exp5").to_dict()
    config["model"] |= {"encoder": encoder, "depths": (1, 1, 1, 1), "width": 8, "dtype": "float32", "classifier": True}
    return typed(config).model


def test_the_loss_by_hand():
    """Cross-entropy of logit 0 is log 2 whatever the label; filling images have no part."""
    mask = np.zeros((3, 4, 4), np.float32)
    mask[0, 1, 2] = 1
    finding = jnp.array([2.0, 0.0, 50.0])
    expected = (np.log1p(np.exp(-2.0)) + np.log(2)) / 2
    np.testing.assert_allclose(classification_loss(finding, mask, np.array([1.0, 1.0, 0.0])), expected, rtol=1e-6)
    np.testing.assert_allclose(classification_loss(finding, mask, np.array([0.0, 0.0, 1.0])), 50.0, rtol=1e-6)


@pytest.mark.long
def test_training_logs_its_loss_and_moves_its_weights(trained):
    (record,) = [json.loads(line) for line in (trained / "stage1/log.jsonl").read_text().splitlines()][-1:]
    assert np.isfinite(record["train_loss"])
    predictor = load_predictor(trained)
    assert np.abs(np.asarray(predictor.variables["params"]["classifier"]["bias"])).max() > 0


def test_results_have_the_score(trained, prepared, radiographs, tmp_path):
    """The mean of both views' probabilities, in the table of images, the summary, the counts and the manifest."""
    table, predictor = read_metrics(trained / "evaluation/metrics.csv"), load_predictor(trained)
    rows = table["row"].astype(int)
    images = np.asarray(dataset.open_arrays(prepared, 32)[0][rows[:4]])
    pixels, finding = predictor.outputs(predictor.variables, images, True)
    mirrored = predictor.outputs(predictor.variables, images[..., ::-1].copy(), False)[1]
    assert (pixels.shape, finding.shape, mirrored.shape) == ((2, 4, 32, 32), (2, 4), (1, 4))
    np.testing.assert_allclose(finding[1], (finding[0] + mirrored[0]) / 2, atol=1e-5)
    np.testing.assert_allclose(table["plain_classifier"].astype(float)[:4], finding[0], atol=1e-4)
    summary = read_json(trained / "evaluation/summary.json")
    assert {"maximum", "top_mean", "classifier"} == summary["image_level"]["tta"].keys()
    assert "classifier" in read_json(trained / "evaluation/calibration.json")
    arguments = ["--workdir", str(trained), "--input", str(radiographs / "dicom"), "--overlays", "0", "--workers", "0"]
    assert predict.main([*arguments, "--output", str(tmp_path / "out")]) == DONE
    lines = [json.loads(line) for line in (tmp_path / "out/manifest.jsonl").read_text().splitlines()]
    scores = {line["uid"]: line["finding"] for line in lines if "uid" in line}
    for name, score in zip(table["ImageId"], table["tta_classifier"].astype(float), strict=True):
        assert scores[name] == pytest.approx(score, abs=2e-3)


def test_texts_and_the_report_are_of_the_score_that_predictions_have(workdir):
    """The classifier's, as `results.csv` and the certainty's bands, and not that of the pixels; they name it."""
    folder = workdir / "evaluation"
    summary, limits = read_json(folder / "summary.json"), read_json(folder / "calibration.json")
    for name, figure in (("top_mean", 0.1111), ("classifier", 0.7654)):
        kinds = {"auroc": figure, "average_precision": figure}
        summary["image_level"]["tta"][name] |= kinds
        summary["intervals"]["image_level"]["tta"][name] |= dict.fromkeys(kinds)
        limits[name]["uncertain"] |= {"low": figure / 2, "high": figure}
    write_json(folder / "summary.json", summary)
    write_json(folder / "calibration.json", limits)
    text = as_text(summary)
    assert "image-level score (the classifier's probability): AUROC 0.7654, average precision 0.7654" in text
    assert bands_of(load_predictor(workdir)) == Bands(0.3827, 0.7654, calibrated=True)
    page = html.unescape(report.write_report(workdir)[0].read_text())
    assert "The score is the classifier's probability, as in predictions." in page
    assert "AUROC, image by image, of the classifier's probability" in page
    assert "low = 0.3827 and high = 0.7654." in page
    assert "0.1111" not in text + page
    score = read_metrics(folder / "metrics.csv")["tta_classifier"].astype(float)
    assert all(f"image-level score {one:.3f}" in page for one in score)
    without = {name: scores for name, scores in summary["image_level"]["tta"].items() if name != "classifier"}
    pixels = as_text({**summary, "image_level": {"tta": without}})
    assert "image-level score (the mean of an image's greatest probabilities): AUROC 0.1111" in pixels


def test_its_threshold_empties_images_in_prediction_and_evaluation(workdir, radiographs, tmp_path, capsys):
    table = read_metrics(workdir / "evaluation/metrics.csv")
    score = table["tta_classifier"].astype(float)
    middle = float(np.sort(score)[len(score) // 2 - 1 : len(score) // 2 + 1].mean())
    saved = {"threshold": 0.3, "removal_threshold": 0, "removal_rule": "image", "tta": True, "size": 32}
    write_json(workdir / "thresholds/all.json", saved)
    write_json(workdir / "thresholds/half.json", {**saved, "classifier_threshold": middle})
    assert evaluate.main(["--workdir", str(workdir), "--thresholds", "half", "--output", str(tmp_path / "e")]) == DONE
    summary, gated = read_json(tmp_path / "e/summary.json"), read_metrics(tmp_path / "e/metrics.csv")
    kept = score >= middle
    assert summary["run"]["mode"] == "tta_gated"
    assert summary["classifier"] == {"threshold": middle, "images_kept": kept.sum()}
    assert 0 < kept.sum() < len(kept)
    np.testing.assert_array_equal(gated["tta_gated_area"].astype(int), gated["tta_area"].astype(int) * kept)
    assert f"classifier {middle:g}" in capsys.readouterr().out

    def predicted(name):
        arguments = ["--workdir", str(workdir), "--input", str(radiographs / "dicom"), "--overlays", "0"]
        arguments += ["--workers", "0", "--thresholds", name, "--output", str(tmp_path / name)]
        assert predict.main(arguments) == DONE
        return read_submission(tmp_path / name / "submission.csv")

    alone, half = predicted("all"), predicted("half")
    clear = np.abs(score - middle) > 5e-3
    for name, keeps in zip(table["ImageId"][clear], kept[clear], strict=True):
        assert half[name] == (alone[name] if keeps else "-1")
    assert any(alone[name] != "-1" for name in table["ImageId"][clear & ~kept])
    emptied = {name for name, code in half.items() if code != alone[name]}
    assert f"\nOutlined, but left empty: {len(emptied)} by the classifier.\n" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "half/manifest.jsonl").read_text().splitlines()]
    assert {line["uid"] for line in lines if line.get("emptied_by") == "classifier"} == emptied
    model = jaxpneumo.load(workdir, thresholds="half")
    assert {one.id for one in model.predict(radiographs / "dicom") if one.emptied_by == "classifier"} == emptied


def test_its_score_does_not_hide_pixels_that_are_no_numbers(trained):
    def damage(path, leaf):
        return leaf * np.nan if "segmentation_head" in jax.tree_util.keystr(path) else leaf

    sound = load_predictor(trained)
    damaged = replace(sound, variables=jax.tree_util.tree_map_with_path(damage, sound.variables))
    with pytest.raises(InputError, match="the network's probabilities are no finite numbers"):
        list(damaged.find([("a", np.zeros((32, 32), np.uint8), (64, 64))], False))


def counts_with(finding, seed=3, n=40):
    rng = np.random.default_rng(seed)
    truth = rng.integers(2_000, 20_000, n) * (np.arange(n) % 2)
    area = np.sort(rng.integers(1, 30_000, (n, 20)))[:, ::-1].copy()
    tp = np.minimum(area, truth[:, None])
    kept = area[:, :, None] * (area[:, :, None] >= AREAS)
    pixels = np.full(n, 1024 * 1024)
    found = finding(truth > 0, rng)
    ids = np.array([str(number) for number in range(n)])
    parts = (pixels, truth, area, tp, kept, np.minimum(kept, tp[:, :, None]))
    return ThresholdCounts(THRESHOLDS, AREAS, ids, *parts, finding=found)


@pytest.mark.parametrize("rule", thresholds.RULES)
def test_its_threshold_is_chosen_with_the_others(rule):
    """By brute force over the classifier's thresholds: the images below are scored as empty ones."""
    counts = counts_with(lambda positive, rng: np.clip(0.3 + 0.4 * positive + rng.normal(0, 0.15, len(positive)), 0, 1))
    chosen = thresholds.choose(counts, np.arange(40), rule, "dice", "folds", 0)
    best = {}
    for level in (0.0, *THRESHOLDS):
        keeps = counts.finding >= level
        zeroed = {
            name: getattr(counts, name) * keeps.reshape(-1, *(1,) * (getattr(counts, name).ndim - 1))
            for name in ("area", "tp", "component_area", "component_tp")
        }
        best[round(float(level), 4)] = float(
            np.nanmax(thresholds.surface(replace(counts, finding=None, **zeroed), rule))
        )
    level = max(best, key=lambda key: (round(best[key], 12), -key))
    assert level > 0
    assert chosen["thresholds"]["classifier_threshold"] == level
    assert chosen["in_sample"] == pytest.approx(best[level])
    assert chosen["held_out"] <= chosen["in_sample"] + 1e-12
    alone = thresholds.choose(replace(counts, finding=None), np.arange(40), rule, "dice", "folds", 0)
    assert chosen["in_sample"] > alone["in_sample"] + 0.1
    assert "classifier_threshold" not in alone["thresholds"]


def test_a_classifier_that_knows_nothing_has_no_threshold():
    counts = counts_with(lambda positive, rng: np.full(len(positive), 0.5))
    chosen = thresholds.choose(counts, np.arange(40), "image", "dice", "folds", 0)
    assert chosen["thresholds"]["classifier_threshold"] is None


def test_chosen_thresholds_are_saved_and_used(workdir, radiographs, tmp_path):
    assert thresholds.main(["--workdir", str(workdir), "--name", "mine"]) == DONE
    assert "classifier_threshold" in read_json(workdir / "thresholds/mine.json")
    arguments = ["--workdir", str(workdir), "--input", str(radiographs / "dicom"), "--overlays", "0", "--workers", "0"]
    assert predict.main([*arguments, "--thresholds", "mine", "--output", str(tmp_path / "out")]) == DONE


def test_an_ensemble_has_the_mean_of_those_that_have_a_classifier(trained, evaluated, prepared):
    images = np.asarray(dataset.open_arrays(prepared, 32)[0][:4])
    own = load_predictor(trained)
    expected = own.outputs(own.variables, images, True)[1]
    ensemble = load_ensemble([evaluated, trained], [0.75, 0.25])
    pixels, finding = ensemble.outputs(ensemble.variables, images, True)
    assert pixels.shape == (2, 4, 32, 32)
    np.testing.assert_allclose(finding, expected, atol=1e-5)
    none = load_ensemble([evaluated, evaluated], [0.5, 0.5])
    assert none.outputs(none.variables, images, True)[1] is None


def test_an_ensemble_without_a_classifier_has_no_use_for_its_threshold(trained, evaluated):
    """The images that it empties would come out with their outlines, and nothing would say so."""
    own, other = load_predictor(trained), load_predictor(evaluated)
    own = replace(own, settings=replace(own.settings, classifier_threshold=0.5))
    with pytest.raises(InputError, match=r"need a classifier's score \(classifier_threshold 0\.5\), and no run with"):
        combine([own, other], [0.0, 1.0])
    assert combine([own, other], [0.1, 0.9]).settings.classifier_threshold == 0.5


def test_a_threshold_without_a_classifier_is_refused():
    config = load_config("exp5").to_dict()
    config["predict"]["classifier_threshold"] = 0.5
    with pytest.raises(InputError, match=r"predict\.classifier_threshold needs model\.classifier"):
        typed(config)
    config["model"]["classifier"] = True
    assert typed(config).predict.classifier_threshold == 0.5


def test_runs_of_different_folds_all_have_one_or_none(workdir, evaluated, tmp_path):
    """Else the image-level score would be a classifier's for some images, and for others it would not."""
    sides = read_json(workdir / "splits.json")
    write_json(workdir / "splits.json", {**sides, "train": sides["validation"], "validation": sides["train"]})
    with pytest.raises(InputError, match="only some of the runs have a classifier"):
        evaluate.main(["--workdir", f"{workdir},{evaluated}", "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out/metrics.csv").exists()


def test_thresholds_of_one_are_refused_where_there_is_none(evaluated, tmp_path):
    run = shutil.copytree(evaluated, tmp_path / "run")
    saved = {"threshold": 0.3, "removal_threshold": 0, "removal_rule": "image", "tta": True, "size": 32}
    write_json(run / "thresholds/ours.json", {**saved, "classifier_threshold": 0.2})
    with pytest.raises(InputError, match=r"says less than 0\.2, and .*run has no classifier"):
        evaluate.main(["--workdir", str(run), "--thresholds", "ours", "--output", str(tmp_path / "out")])
