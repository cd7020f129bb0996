"""Two runs on the same images: a run and itself, a run and a better one, and everything that is refused."""

import csv
import os
import shutil

import numpy as np
import pytest

from jaxpneumo.evaluate import compare, evaluate, thresholds
from jaxpneumo.evaluate.results import read_metrics
from jaxpneumo.process.atomic import write_json
from jaxpneumo.process.errors import DONE, InputError
from jaxpneumo.process.files import read_json
from jaxpneumo.report import report


@pytest.fixture
def runs(evaluated, tmp_path):
    return tuple(shutil.copytree(evaluated, tmp_path / name) for name in ("a", "b"))


def edit(path, change):
    table = change({name: column.astype(object) for name, column in read_metrics(path).items()})
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))


def test_a_run_and_itself_do_not_differ(runs, capsys):
    assert compare.main([*map(str, runs), "--replicates", "200"]) == DONE
    assert "split by patient, validation part" in capsys.readouterr().out
    result = compare.compare(*runs, None, 200, 0)
    assert result["unit"] == "patient"
    for score in result["scores"].values():
        assert score["difference"] in (0, None)
        assert score["p"] in (1, None)


def test_a_perfect_run_is_better_whatever_the_order_of_its_rows(runs, tmp_path):
    def perfect(table):
        table["tta_tp"] = table["tta_area"] = table["truth_area"]
        order = np.random.default_rng(0).permutation(len(table["ImageId"]))
        return {name: column[order] for name, column in table.items()}

    edit(runs[1] / "evaluation/metrics.csv", perfect)
    arguments = [*map(str, runs), "--mode", "tta", "--output", str(tmp_path / "result.json"), "--replicates", "500"]
    assert compare.main(arguments) == DONE
    result = read_json(tmp_path / "result.json")
    dice = result["scores"]["dice"]
    summary = read_json(runs[0] / "evaluation/summary.json")
    assert dice["a"] == pytest.approx(summary["scores"]["tta"]["dice"])
    assert dice["b"] == 1
    assert dice["difference"] == pytest.approx(1 - dice["a"])
    assert dice["interval"][0] <= dice["difference"] <= dice["interval"][1]
    assert result["modes"] == ["tta", "tta"]


def test_emptying_the_worst_outlines_does_not_improve_distances(runs, capsys):
    """They are of the images that both runs outline, and their number is told; in these, the runs are the same."""
    emptied = []

    def without_the_worst(table):
        distance = np.array([float(value or -1) for value in table["plain_hausdorff95_px"]])
        emptied[:] = np.argsort(-distance)[:3]
        assert (distance[emptied] > 0).all()
        for name in table:
            if name.startswith("plain_") and name not in ("plain_maximum", "plain_top_mean"):
                table[name][emptied] = "" if name.endswith(("px", "mm")) else "0"
        return table

    edit(runs[1] / "evaluation/metrics.csv", without_the_worst)
    result = compare.compare(*runs, "plain", 200, 0)
    for name in ("hausdorff95_px", "surface_distance_mm"):
        score = result["scores"][name]
        assert (score["difference"], score["p"]) == (0, 1)
        assert score["images"] == score["images_b"] == score["images_a"] - 3 > 0
        assert f"{score['images']} images (A {score['images_a']}, B {score['images_b']})" in compare.table(result)
    assert result["scores"]["dice_positive"]["difference"] < 0
    assert "Distances are of the positive images that both runs outline." in compare.table(result)


@pytest.mark.parametrize("known", ["all", "some", "none"])
def test_the_order_of_the_runs_does_not_matter(runs, known):
    """Nor which of the evaluations names the patients."""

    def others(table):
        rng = np.random.default_rng(0)
        table["tta_tp"] = [str(rng.integers(int(tp) + 1)) for tp in table["tta_tp"]]
        keeps = {"all": len(table["patient"]), "some": 4, "none": 0}[known]
        table["patient"][keeps:] = ""
        return table

    edit(runs[1] / "evaluation/metrics.csv", others)
    first, second = (compare.compare(*order, "tta", 300, 0) for order in (runs, runs[::-1]))
    patients = set(read_metrics(runs[0] / "evaluation/metrics.csv")["patient"])
    assert (first["unit"], first["clusters"]) == (second["unit"], second["clusters"]) == ("patient", len(patients))
    assert first["images_without_patient"] == second["images_without_patient"] == 0
    widths = 0
    for name, score in first["scores"].items():
        turned = second["scores"][name]
        assert (score["a"], score["b"], score["p"]) == (turned["b"], turned["a"], turned["p"])
        if score["interval"]:
            assert score["interval"] == pytest.approx([-end for end in turned["interval"][::-1]], abs=1e-9)
            widths += 1
    assert widths > 0


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("tta_tp", "9000000", "tta_area is less than tta_tp"),
        ("tta_tp", "-1", "tta_tp is negative"),
        ("truth_area", "-5", "tta_tp is more than truth_area"),
        ("tta_regions", "-2", "regions is negative"),
    ],
)
def test_impossible_counts_are_damage(runs, column, value, told):
    def changed(table):
        table[column][0] = value
        return table

    edit(runs[1] / "evaluation/metrics.csv", changed)
    with pytest.raises(InputError, match=rf"b/evaluation/metrics\.csv is damaged: {told} in some image"):
        compare.compare(*runs, "tta", 100, 0)


def test_another_data_set_is_refused(runs):
    path = runs[1] / "evaluation/summary.json"
    summary = read_json(path)
    summary["data"] |= {"labels_sha256": "0" * 64, "directory": "other"}
    write_json(path, summary)
    with pytest.raises(InputError, match="on another one, other"):
        compare.compare(*runs, None, 100, 0)


def test_another_split_is_refused(runs):
    def renamed(table):
        table["ImageId"][0] = "another"
        return table

    edit(runs[1] / "evaluation/metrics.csv", renamed)
    with pytest.raises(InputError, match="another split: 1 images are in the first only, 1 in the second"):
        compare.compare(*runs, None, 100, 0)


def test_another_part_is_not_called_another_split(runs):
    evaluate.main(["--workdir", str(runs[1]), "--part", "train", "--output", str(runs[1] / "evaluation")])
    words = "on the validation part and .*b on the train part. Evaluate both on the same part"
    with pytest.raises(InputError, match=words):
        compare.compare(*runs, None, 100, 0)


def test_an_unfinished_run_is_refused(runs, tmp_path):
    shutil.rmtree(runs[1] / "stage1/final")
    with pytest.raises(InputError, match="unfinished run"):
        compare.compare(*runs, None, 100, 0)
    with pytest.raises(InputError, match="is not a run"):
        compare.compare(runs[0], tmp_path / "absent", None, 100, 0)


def test_an_evaluation_that_is_missing_or_not_whole_is_refused(runs):
    path = runs[1] / "evaluation/metrics.csv"
    whole = path.read_text()
    path.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    with pytest.raises(InputError, match="does not fit together"):
        compare.compare(*runs, None, 100, 0)
    path.write_text(whole.replace("tta_removal_tp", "tta_removal_xx"))
    with pytest.raises(InputError, match="damaged"):
        compare.compare(*runs, None, 100, 0)
    path.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        compare.compare(*runs, None, 100, 0)
    summary = read_json(runs[1] / "evaluation/summary.json")
    write_json(runs[1] / "evaluation/summary.json", {key: summary[key] for key in ("data", "split", "scores")})
    with pytest.raises(InputError, match="earlier version"):
        compare.compare(*runs, None, 100, 0)
    shutil.rmtree(runs[1] / "evaluation")
    with pytest.raises(InputError, match="was not evaluated"):
        compare.compare(*runs, None, 100, 0)
    with pytest.raises(InputError, match="--replicates: 9 cannot be used; give a whole number from 100"):
        compare.main([*map(str, runs), "--replicates", "9"])


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"members": [{"workdir": "a", "weight": 0.5}, {"workdir": "c", "weight": 0.5}]}, "is of the ensemble of a, c"),
        ({"workdir": "a", "model": "0" * 64}, "is of another run, a"),
    ],
)
def test_scores_of_other_runs_in_its_folder_are_refused(runs, told, words):
    """In all commands that read them; `evaluate --output` may have written them there."""
    path = runs[1] / "evaluation/summary.json"
    summary = read_json(path)
    write_json(path, {**summary, "run": {**summary["run"], **told}})
    with pytest.raises(InputError, match=rf"{words}, not of {runs[1]} alone"):
        compare.compare(*runs, None, 100, 0)
    with pytest.raises(InputError, match=words):
        thresholds.main(["--workdir", str(runs[1])])


def test_scores_of_earlier_weights_are_refused(runs):
    """As of a run that was trained again in its old folder and not evaluated since."""
    path, final = runs[1] / "evaluation/summary.json", runs[1] / "stage1/final"
    summary = read_json(path)

    def evaluated_before_its_result(model):
        write_json(path, {**summary, "run": {**summary["run"], "workdir": runs[1].name, "model": model}})
        os.utime(final, (later := path.stat().st_mtime + 60, later))

    evaluated_before_its_result(summary["run"]["model"])
    assert compare.main([*map(str, runs), "--replicates", "200"]) == DONE  # a copy's times say nothing
    evaluated_before_its_result("0" * 64)
    for command, arguments in (
        (compare, map(str, runs)),
        (thresholds, ("--workdir", str(runs[1]))),
        (report, ("--workdir", str(runs[1]))),
    ):
        with pytest.raises(InputError, match=f"is of earlier weights of {runs[1]}: run `jaxpneumo evaluate"):
            command.main([*arguments])
