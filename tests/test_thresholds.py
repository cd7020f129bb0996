"""The threshold search against brute force over masks; optimism; names that predict uses; refusals."""

import re
import shutil
import time
import tracemalloc
from dataclasses import replace
from decimal import Decimal
from itertools import product

import numpy as np
import pytest

from jaxpneumo.data import rle
from jaxpneumo.data.labels import mask, read_labels
from jaxpneumo.evaluate import thresholds
from jaxpneumo.predict import predict
from jaxpneumo.predict import saved_thresholds as named
from jaxpneumo.predict.postprocess import NATIVE_AREA, remove_small
from jaxpneumo.predict.submission import read_submission
from jaxpneumo.process.atomic import write_json
from jaxpneumo.process.errors import DONE, InputError
from jaxpneumo.process.files import read_json
from jaxpneumo.run.config import read_config
from jaxpneumo.score.bootstrap import clusters
from jaxpneumo.score.folds import folds
from jaxpneumo.score.metrics import counts, dice, iou
from jaxpneumo.score.threshold_counts import AREAS, THRESHOLDS, ThresholdCounts, count_components, pool

ROWS = {*thresholds.RULES, "all empty"}


def images(n: int, size: int = 128) -> list[tuple[np.ndarray, np.ndarray]]:
    """Probabilities and truths: n soft discs on noise with a bright spot, every third image without finding."""
    rng = np.random.default_rng(11)
    y, x = np.indices((size, size))
    made = []
    for i in range(n):
        centre, radius = rng.uniform(20, size - 20, 2), rng.uniform(2, 25)
        distance = np.hypot(y - centre[0], x - centre[1])
        truth = (distance < radius) & (i % 3 != 0)
        seen = rng.uniform(0.2, 1.2) * np.exp(-((distance / (rng.uniform(0.7, 1.4) * radius)) ** 4))
        spot = 0.8 * np.exp(-(((y - rng.integers(size)) ** 2 + (x - rng.integers(size)) ** 2) / rng.uniform(5, 40)))
        made.append((np.clip(seen + spot + rng.uniform(0, 0.06, seen.shape), 0, 1).astype(np.float32), truth))
    return made


def tables(made: list[tuple[np.ndarray, np.ndarray]]) -> ThresholdCounts:
    reached = [p[None] >= THRESHOLDS[:, None, None] for p, _ in made]
    truths = [truth for _, truth in made]
    pairs = list(zip(reached, truths, strict=True))
    components = [count_components(r.sum(axis=0).astype(np.uint8), t.astype(np.uint8)) for r, t in pairs]
    return ThresholdCounts(
        thresholds=THRESHOLDS,
        areas=AREAS,
        image_id=np.array([str(i) for i in range(len(made))]),
        pixels=np.array([t.size for t in truths]),
        truth_area=np.array([t.sum() for t in truths]),
        area=np.array([r.sum(axis=(1, 2)) for r in reached]),
        tp=np.array([(r & t).sum(axis=(1, 2)) for r, t in pairs]),
        component_area=np.array([area for area, _ in components]),
        component_tp=np.array([tp for _, tp in components]),
    )


@pytest.fixture(scope="module")
def small():
    made = images(15)
    return made, tables(made)


@pytest.mark.parametrize("score", ["dice", "iou"])
def test_triplets_are_those_of_brute_force(small, score):
    made, table = small
    ratio = {"dice": dice, "iou": iou}[score]
    found = thresholds.surface(table, "triplet", score)
    expected = np.full((20, 20, 20), np.nan)
    for top, bottom in product(range(20), range(20)):
        if bottom > top:
            continue
        scores = np.zeros((len(made), 20))
        for i, (probability, truth) in enumerate(made):
            kept = ratio(*counts(probability >= THRESHOLDS[bottom], truth))
            emptied = ratio(*counts(np.zeros_like(truth), truth))
            enough = (probability >= THRESHOLDS[top]).sum() >= AREAS * truth.size / NATIVE_AREA
            scores[i] = np.where(enough, kept, emptied)
        expected[top, :, bottom] = scores.mean(axis=0)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert thresholds.best(found) == thresholds.best(expected.round(12))
    assert np.nanmax(found) > np.nanmin(found) + 0.1


@pytest.mark.parametrize("rule", ["image", "component"])
def test_surfaces_are_those_of_prediction(small, rule):
    made, table = small
    found = thresholds.surface(table, rule)
    for k, m in product(range(0, 20, 3), range(0, 20, 2)):
        masks = [(remove_small((p >= THRESHOLDS[k]).astype(np.uint8), int(AREAS[m]), rule), t) for p, t in made]
        assert found[k, m] == pytest.approx(np.mean([dice(*counts(*pair)) for pair in masks]), abs=1e-12)
    if rule == "image":
        triplets = thresholds.surface(table, "triplet")
        np.testing.assert_allclose(found, np.einsum("kmk->km", triplets), atol=1e-12)


def test_held_out_means_held_out(small):
    """Each fold's score is that of thresholds found without it."""
    _, table = small
    patient = np.array([f"p{i // 2}" for i in range(15)])
    result = thresholds.choose_all(table, patient, method="folds", seed=4)
    fold = folds(clusters(patient)[0], table.truth_area > 0, 5, 4)
    for rule, chosen in result["rules"].items():
        assert chosen["in_sample"] == pytest.approx(np.nanmax(thresholds.surface(table, rule)))
        scores = []
        for f in range(5):
            place = thresholds.best(thresholds.surface(table, rule, images=fold != f))
            scores += [thresholds.surface(table, rule, images=fold == f)[place]] * int((fold == f).sum())
        assert chosen["held_out"] == pytest.approx(np.mean(scores))
        assert chosen["optimism"] == pytest.approx(chosen["in_sample"] - chosen["held_out"])


def test_halves_are_chosen_on_one_and_scored_on_the_other(small):
    """Both ways round: every image is scored once with its own half's thresholds and once with the other half's."""
    _, table = small
    patient = np.array([f"p{i // 2}" for i in range(15)])
    half = folds(clusters(patient)[0], table.truth_area > 0, 2, 4) == 0
    n, m = half.sum(), (~half).sum()
    assert n + m == 15
    for rule, chosen in thresholds.choose_all(table, patient, method="half", seed=4)["rules"].items():
        first, second = (thresholds.surface(table, rule, images=images) for images in (half, ~half))
        a, b = thresholds.best(first), thresholds.best(second)
        assert chosen["thresholds"]["threshold"] == pytest.approx(THRESHOLDS[a[-1] if rule == "triplet" else a[0]])
        assert chosen["in_sample"] == pytest.approx((n * first[a] + m * second[b]) / 15)
        assert chosen["held_out"] == pytest.approx((n * first[b] + m * second[a]) / 15)
        assert chosen["optimism"] == pytest.approx(chosen["in_sample"] - chosen["held_out"])
        assert chosen["optimism"] >= 0  # however much easier one half is
        assert (chosen["chosen_on_images"], chosen["held_out_images"]) == (n, m)


@pytest.mark.parametrize("method", ["half", "folds"])
def test_printed_rows_add_up(small, method):
    """In sample less held out is the optimism; predicting nothing is scored on the same images in both columns."""
    _, table = small
    patient = np.array([f"p{i // 2}" for i in range(15)])
    text = thresholds.table(thresholds.choose_all(table, patient, method=method, seed=4))
    rows = {line[:10].strip(): line[10:].split()[:3] for line in text.splitlines() if line[:10].strip() in ROWS}
    assert rows.keys() == ROWS
    for in_sample, held_out, optimism in rows.values():
        assert Decimal(in_sample) - Decimal(held_out) == Decimal(optimism)
    negative = f"{(table.truth_area == 0).mean():.4f}"
    assert rows["all empty"] == [negative, negative, "0.0000"]
    if method == "half":
        chosen_on, others = re.search(r"one half \((\d+) images\), held out: the other \((\d+)\)", text).groups()
        assert int(chosen_on) + int(others) == 15


def noise(n: int, seed: int) -> ThresholdCounts:
    """Counts without any relation between thresholds and truth."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 20_000, n) * (rng.random(n) < 0.3)
    area = np.sort(rng.integers(0, 40_000, (n, 20)) * (rng.random((n, 1)) < 0.5))[:, ::-1].copy()
    tp = np.minimum((area * rng.random((n, 20))).astype(int), truth[:, None])
    kept = area[:, :, None] * (area[:, :, None] >= AREAS)
    ids = np.array([str(i) for i in range(n)])
    pixels = np.full(n, NATIVE_AREA)
    return ThresholdCounts(THRESHOLDS, AREAS, ids, pixels, truth, area, tp, kept, np.minimum(kept, tp[:, :, None]))


def test_optimism_is_there_where_there_is_nothing_to_find():
    patient = np.array([""] * 60)
    optimism = [thresholds.choose_all(noise(60, seed), patient)["rules"]["triplet"]["optimism"] for seed in range(10)]
    assert np.mean(optimism) > 0.01


def test_search_over_1205_images_is_fast_and_small():
    """All three rules with their folds: far below the 60 s and 2 GB that a search may take."""
    table = noise(1205, 0)
    patient = np.array([f"p{i // 2}" for i in range(1205)])
    tracemalloc.start()
    start = time.perf_counter()
    thresholds.choose_all(table, patient)
    seconds, peak = time.perf_counter() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"{seconds:.1f} s, {peak / 1e6:.0f} MB")
    assert seconds < 30
    assert peak < 1e9


@pytest.fixture
def workdir(evaluated, tmp_path):
    return shutil.copytree(evaluated, tmp_path / "run")


def score_of(codes: dict[str, str], workdir, radiographs) -> float:
    """Mean Dice of a submission on the run's validation images."""
    labels = read_labels(radiographs / "labels.csv")
    scores = []
    for image_id in read_json(workdir / "splits.json")["validation"]:
        _, code, _ = mask(labels, image_id, 128, 128)
        truth = rle.decode(code, 128, 128)
        scores.append(dice(*counts(rle.decode(codes[image_id], 128, 128), truth)))
    return float(np.mean(scores))


@pytest.mark.parametrize("rule", thresholds.RULES)
def test_predict_uses_thresholds_by_name(workdir, radiographs, tmp_path, capsys, rule):
    assert thresholds.main(["--workdir", str(workdir), "--rule", rule, "--name", "mine"]) == DONE
    assert "optimism" in capsys.readouterr().out
    saved = read_json(workdir / "thresholds/mine.json")
    assert saved["rule"] == rule
    assert saved["chosen_on"]["split"]["part"] == "validation"
    result = read_json(workdir / "evaluation/thresholds.json")
    assert saved["held_out"] == result["rules"][rule]["held_out"]

    arguments = ["--workdir", str(workdir), "--input", str(radiographs / "dicom"), "--overlays", "0"]
    output = tmp_path / "out"
    assert predict.main([*arguments, "--output", str(output), "--thresholds", "mine"]) == DONE
    codes = read_submission(output / "submission.csv")
    # On the images they were chosen on, predictions score what the choice said.
    assert score_of(codes, workdir, radiographs) == pytest.approx(saved["in_sample"], abs=0.02)


def test_a_saved_name_is_replaced_only_where_that_is_asked_for(workdir, capsys):
    """The same choice again changes nothing and is no reason to ask."""
    arguments = ["--workdir", str(workdir), "--name", "mine"]
    saved, surfaces = workdir / "thresholds/mine.json", workdir / "evaluation/thresholds.json"
    for _ in range(2):
        assert thresholds.main(arguments) == DONE
    before = saved.read_bytes(), surfaces.read_bytes()
    with pytest.raises(InputError, match=r"mine\.json holds other thresholds\. Give another --name, or --ov"):
        thresholds.main([*arguments, "--rule", "image", "--score", "iou"])
    assert (saved.read_bytes(), surfaces.read_bytes()) == before
    assert thresholds.main([*arguments, "--rule", "image", "--score", "iou", "--overwrite"]) == DONE
    assert read_json(saved)["rule"] == "image"
    assert read_json(saved)["chosen_by"]["score"] == "iou"


def test_a_choice_on_one_half_says_how_many_images_it_was_made_on(workdir, capsys):
    """Not all that were scored: in the table, in the last line, in the saved file and when it is used."""
    assert thresholds.main(["--workdir", str(workdir), "--choose", "half", "--name", "half"]) == DONE
    printed, every = capsys.readouterr().out, read_json(workdir / "evaluation/summary.json")["n_images"]
    number = int(re.search(r"chosen on one half \((\d+) images\)", printed)[1])
    assert 0 < number < every
    assert f"Chosen on {number} images of the validation part." in printed
    chosen_by = read_json(workdir / "thresholds/half.json")["chosen_by"]
    assert (chosen_by["n_images"], chosen_by["of_images"]) == (number, every)
    told = named.origin(read_config(workdir).predict, [workdir], "half", "abc", [1.0])
    assert told.endswith(f", on {number} images of the validation part.")


@pytest.mark.parametrize(
    ("split", "count", "told"),
    [
        ({"part": "validation"}, 5, " of the validation part"),
        ({"part": "whole", "images_in_training": 4}, 5, " of a whole data set, up to 4 of them TRAINING images"),
        ({"part": "whole", "images_in_training": 7}, 5, " of a whole data set, up to 5 of them TRAINING images"),
        ({"part": "whole", "images_in_training": 4}, 10, " of a whole data set, 4 of them TRAINING images"),
        ({"part": "train"}, 5, " of the train part, 5 of them TRAINING images"),
        ({"part": "validation", "method": "out of fold", "runs_per_image": [1, 2]}, 5, " out of fold"),
        (
            {"part": "validation", "method": "out of fold", "runs_per_image": [1]},
            5,
            " out of fold, each scored by one run alone",
        ),
    ],
)
def test_it_is_said_what_a_choice_was_made_on(split, count, told):
    """On some or all of 10 scored images; of one half nobody counted the training images."""
    assert named.of_part(split, count, 10) == told


def test_the_order_of_pooled_runs_does_not_matter():
    """Images are taken by their ids, so patients, folds and means are the same."""
    first, second = noise(25, 1), noise(15, 2)
    first, second = (
        replace(table, image_id=np.array([f"{k}{name}" for k in range(len(table.pixels))]))
        for table, name in ((first, "a"), (second, "b"))
    )
    patient = {name: f"p{n // 3}" for n, name in enumerate([*first.image_id.tolist(), *second.image_id.tolist()])}
    chosen = []
    for tables in ((first, second), (second, first)):
        pooled, place = pool(tables)
        assert pooled.image_id.tolist() == sorted(patient)
        np.testing.assert_array_equal(np.concatenate([table.image_id for table in tables])[place], pooled.image_id)
        chosen.append(thresholds.choose_all(pooled, np.array([patient[name] for name in pooled.image_id])))
    assert chosen[0] == chosen[1]
    alone, place = pool([first])
    np.testing.assert_array_equal(alone.image_id, first.image_id)
    np.testing.assert_array_equal(place, np.arange(25))


OWN = {"threshold": 0.4, "removal_threshold": 0, "removal_rule": "image", "tta": True, "size": 32}


def test_a_saved_choice_replaces_all_thresholds_of_the_config(workdir):
    """Those that it has not, too: it was made without them."""
    settings = read_config(workdir).predict
    of_triplet = replace(settings, top_threshold=0.9, top_area=500, classifier_threshold=0.5)
    write_json(workdir / "thresholds/image.json", OWN)
    used = named.use(workdir, "image", of_triplet)
    assert (used.threshold, used.top_threshold, used.top_area, used.classifier_threshold) == (0.4, None, None, None)


@pytest.mark.parametrize(
    ("made_for", "told"),
    [
        ({"runs": ["run"], "model": "abc", "weights": [1.0]}, "chosen for this run."),
        ({"runs": ["run"], "model": "old", "weights": [1.0]}, "chosen for run, whose weights were others then."),
        ({"runs": ["other"], "model": "old", "weights": [1.0]}, "chosen for other."),
        ({"runs": ["run", "b"], "model": "abc+d", "weights": [0.5, 0.5]}, "chosen for the ensemble of run, b."),
        ({"runs": ["run"], "model": "abc+d", "weights": [1.0]}, "chosen for run."),
        ({"runs": ["run", "b"]}, "chosen for each alone: run, b."),
    ],
)
def test_it_is_said_what_a_choice_was_made_for(workdir, made_for, told):
    write_json(workdir / "thresholds/image.json", {**OWN, "chosen_for": made_for})
    assert named.origin(read_config(workdir).predict, [workdir], "image", "abc", [1.0]).endswith(told)


def test_top_threshold_empties_masks(workdir, radiographs, tmp_path):
    arguments = ["--workdir", str(workdir), "--input", str(radiographs / "dicom"), "--overlays", "0"]
    saved = {"threshold": 0.0, "removal_threshold": 0, "removal_rule": "image", "tta": True, "size": 32}
    write_json(workdir / "thresholds/all.json", {**saved, "top_threshold": 0.0, "top_area": NATIVE_AREA})
    write_json(workdir / "thresholds/none.json", {**saved, "top_threshold": 1.0, "top_area": NATIVE_AREA})
    for name, code in (("all", f"0 {128 * 128}"), ("none", "-1")):
        assert predict.main([*arguments, "--output", str(tmp_path / name), "--thresholds", name]) == DONE
        assert set(read_submission(tmp_path / name / "submission.csv").values()) == {code}


def test_wrong_use_is_refused_in_words(workdir, radiographs, tmp_path):
    arguments = ["--workdir", str(workdir), "--input", str(radiographs / "dicom"), "--output", str(tmp_path / "out")]
    with pytest.raises(InputError, match="has no thresholds named x: it has none"):
        predict.main([*arguments, "--thresholds", "x"])
    with pytest.raises(InputError, match="leave out --threshold"):
        predict.main([*arguments, "--thresholds", "x", "--threshold", "0.5"])
    with pytest.raises(InputError, match="cannot be the name of thresholds"):
        thresholds.main(["--workdir", str(workdir), "--name", "../x"])
    assert thresholds.main(["--workdir", str(workdir), "--rule", "image"]) == DONE
    with pytest.raises(InputError, match="it has image"):
        predict.main([*arguments, "--thresholds", "x"])
    with pytest.raises(InputError, match="chosen with flip TTA at size 32"):
        predict.main([*arguments, "--thresholds", "image", "--no-tta"])
    (workdir / "thresholds/image.json").write_text("{}")
    with pytest.raises(InputError, match="is not a file of"):
        named.use(workdir, "image", read_config(workdir).predict)
    (workdir / "evaluation/levels.npz").unlink()
    with pytest.raises(InputError, match="jaxpneumo evaluate --workdir"):
        thresholds.main(["--workdir", str(workdir)])
    with pytest.raises(InputError, match="cannot be divided into 2 folds"):
        thresholds.choose(noise(4, 0), np.zeros(4, int), "image", "dice", "half", 0)


def test_they_are_saved_with_the_size_and_views_of_the_evaluation(workdir):
    """The config may say others since, or the evaluation was made with others."""
    summary = read_json(workdir / "evaluation/summary.json")
    write_json(workdir / "evaluation/summary.json", {**summary, "tta": False, "input_size": 64})
    assert thresholds.main(["--workdir", str(workdir), "--rule", "image"]) == DONE
    saved = read_json(workdir / "thresholds/image.json")
    assert (saved["tta"], saved["size"]) == (False, 64)
    with pytest.raises(InputError, match="was chosen without TTA at size 64: predict with these settings"):
        named.use(workdir, "image", read_config(workdir).predict)
