"""Several runs predict as one: the weighted mean of probabilities, in `predict`, `evaluate` and `thresholds`."""

import json
import shutil
from argparse import ArgumentTypeError

import cv2
import jax
import numpy as np
import pytest
from helpers import as_typed, load_config, shrink

from jaxpneumo.data import dataset, splits
from jaxpneumo.evaluate import evaluate, parts, thresholds
from jaxpneumo.evaluate.results import read_metrics
from jaxpneumo.predict import predict, workdir_options
from jaxpneumo.predict.ensemble import load_ensemble
from jaxpneumo.predict.infer import load_predictor
from jaxpneumo.predict.native import shrink as shrink_images
from jaxpneumo.predict.submission import read_submission
from jaxpneumo.process.errors import DONE, InputError
from jaxpneumo.score.threshold_counts import read_counts
from jaxpneumo.train.stages import train


def one_stage(data):
    """The config of the fixture `evaluated`, to train with another rate or split."""
    config = shrink(load_config("exp2"), data)
    config.data.split = "patient"
    config.model.dtype = "float32"
    config.stage1.learning_rate = 0.01
    config.predict.threshold = 0.3
    return config


@pytest.fixture(scope="module")
def second(prepared, tmp_path_factory):
    """A run on the split of `evaluated`, of other weights."""
    folder = tmp_path_factory.mktemp("second") / "run"
    config = one_stage(prepared)
    config.stage1.learning_rate = 0.003
    train(as_typed(config), folder)
    return folder


@pytest.fixture(scope="module")
def larger(prepared, tmp_path_factory):
    """A run of another encoder, at 64 pixels."""
    folder = tmp_path_factory.mktemp("larger") / "run"
    config = one_stage(prepared)
    config.model.encoder = "resnet34"
    config.stage1.size = config.predict.size = 64
    train(as_typed(config), folder)
    return folder


@pytest.fixture(scope="module")
def folds(prepared, tmp_path_factory):
    """Two evaluated runs, each validated on one of two folds."""
    folder = tmp_path_factory.mktemp("folds")
    index = dataset.read_index(prepared)
    fold = splits.patient_folds(index.positive, index.patient, 2, 0)
    splits.write_folds(folder / "folds.json", [index.image_id[fold == number] for number in (0, 1)], "patient", 0)
    for number in (0, 1):
        config = one_stage(prepared)
        config.data.split, config.data.fold = str(folder / "folds.json"), number
        train(as_typed(config), folder / f"fold{number}")
        assert evaluate.main(["--workdir", str(folder / f"fold{number}")]) == DONE
    return [folder / "fold0", folder / "fold1"]


@pytest.fixture(scope="module")
def images(prepared):
    return np.asarray(dataset.open_arrays(prepared, 32)[0][:4])


def probabilities(predictor, images, mirror=True):
    return np.asarray(predictor.probabilities(predictor.variables, images, mirror))


def test_an_ensemble_is_the_weighted_mean(evaluated, second, images):
    a, b = (probabilities(load_predictor(run), images) for run in (evaluated, second))
    assert np.abs(a - b).max() > 0.01
    ensemble = load_ensemble([evaluated, second], [0.7, 0.3])
    mean = probabilities(ensemble, images)
    assert mean.shape == (2, 4, 32, 32)
    np.testing.assert_allclose(mean, 0.7 * a + 0.3 * b, atol=1e-5)
    np.testing.assert_allclose(probabilities(ensemble, images, mirror=False), mean[:1], atol=1e-5)
    assert ensemble.weighted_runs == ((evaluated, 0.7), (second, 0.3))
    assert {leaf.shape[0] for leaf in jax.tree.leaves(ensemble.variables)} == {2}


def test_twice_the_same_run_and_weight_0_are_that_run(evaluated, second, images):
    alone = probabilities(load_predictor(evaluated), images)
    np.testing.assert_allclose(
        probabilities(load_ensemble([evaluated, evaluated], [0.5, 0.5]), images), alone, atol=1e-6
    )
    np.testing.assert_allclose(probabilities(load_ensemble([evaluated, second], [1.0, 0.0]), images), alone, atol=1e-6)
    np.testing.assert_array_equal(probabilities(load_ensemble([evaluated], [1.0]), images), alone)


@pytest.mark.long
def test_runs_of_other_networks_and_sizes_are_averaged(evaluated, larger, prepared, images):
    """Each network sees its own size: the images' means over areas. The probabilities are enlarged between pixels."""
    large = np.asarray(dataset.open_arrays(prepared, 64)[0][:4])
    ensemble = load_ensemble([evaluated, larger, evaluated], [0.3, 0.6, 0.1])
    assert ensemble.settings.size == 64
    assert [group.weights for group in ensemble.outputs.__wrapped__.args[0]] == [(0.3, 0.1), (0.6,)]
    blocks = large.reshape(4, 32, 2, 32, 2).mean((2, 4))
    small = np.asarray(shrink_images(large, 32))
    assert np.abs(small - blocks).max() <= 0.5
    ours = jax.image.resize(probabilities(load_predictor(evaluated), small), (2, 4, 64, 64), "linear")
    expected = 0.4 * np.asarray(ours) + 0.6 * probabilities(load_predictor(larger), large)
    np.testing.assert_allclose(probabilities(ensemble, large), expected, atol=1e-5)


def test_areas_that_are_no_whole_pixels_count_by_their_share():
    image = np.random.default_rng(0).integers(0, 256, (2, 96, 96)).astype(np.uint8)
    expected = [cv2.resize(picture, (64, 64), interpolation=cv2.INTER_AREA) for picture in image]
    assert np.abs(np.asarray(shrink_images(jax.numpy.asarray(image), 64)).astype(int) - np.stack(expected)).max() <= 1


@pytest.mark.long
def test_predict_takes_runs_of_other_networks(evaluated, larger, radiographs, tmp_path):
    arguments = ["--workdir", str(evaluated), "--workdir", str(larger), "--input", str(radiographs / "dicom")]
    arguments += ["--output", str(tmp_path / "out"), "--overlays", "0", "--workers", "0"]
    assert predict.main(arguments) == DONE
    assert len(read_submission(tmp_path / "out/submission.csv")) == 24
    header = json.loads((tmp_path / "out/manifest.jsonl").read_text().splitlines()[0])
    assert header["settings"]["size"] == 64


def test_a_folder_that_is_no_run_is_refused(evaluated, tmp_path):
    with pytest.raises(InputError, match="is not a run"):
        load_ensemble([evaluated, tmp_path], [0.5, 0.5])


def test_weights_and_folders_of_the_command_line(tmp_path):
    (tmp_path / "a,b").mkdir()
    assert [str(path) for path in workdir_options.read_workdirs(["x,y", "z"])] == ["x", "y", "z"]
    assert workdir_options.read_workdirs([str(tmp_path / "a,b")]) == [tmp_path / "a,b"]
    assert workdir_options.read_weights(None, 4) == [0.25] * 4
    assert workdir_options.read_weights(workdir_options.WEIGHTS("3,1"), 2) == [0.75, 0.25]
    with pytest.raises(InputError, match="empty name"):
        workdir_options.read_workdirs(["x,"])
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with pytest.raises(InputError, match=r"link is given twice\. Name each run once; --weights gives it more weight"):
        workdir_options.read_workdirs([f"{tmp_path / 'run'},x", str(tmp_path / "link")])
    for text in ("1,a", "1,-1", "1,nan", "1,inf", "1,,1", ""):
        with pytest.raises(ArgumentTypeError, match="cannot be used; give numbers between commas, each"):
            workdir_options.WEIGHTS(text)
    for text, words in (
        ("0,0", "at least one .* above 0"),
        ("1", "1 weights for 2 runs"),
        ("1,1,1", "3 weights for 2 runs"),
    ):
        with pytest.raises(InputError, match=words):
            workdir_options.read_weights(workdir_options.WEIGHTS(text), 2)


def test_predict_takes_several_runs(evaluated, second, radiographs, tmp_path):
    def predicted(*flags):
        output = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        arguments = [*flags, "--input", str(radiographs / "dicom"), "--output", str(output), "--overlays", "0"]
        arguments += ["--threshold", "0.3", "--removal-threshold", "0", "--workers", "0"]
        assert predict.main(arguments) == DONE
        return read_submission(output / "submission.csv")

    first, other = predicted("--workdir", str(evaluated)), predicted("--workdir", str(second))
    assert first != other
    both = ["--workdir", str(evaluated), "--workdir", str(second)]
    assert predicted(*both, "--weights", "1,0") == first
    assert predicted("--workdir", f"{evaluated},{second}", "--weights", "0,2") == other
    assert predicted(*both) not in (first, other)


def test_evaluate_scores_an_ensemble_into_its_own_folder(evaluated, second, tmp_path):
    both = ["--workdir", str(evaluated), "--workdir", str(second)]
    with pytest.raises(InputError, match="give --output FOLDER"):
        evaluate.main(both)
    assert evaluate.main([*both, "--weights", "1,0", "--output", str(tmp_path / "first")]) == DONE
    summary = json.loads((tmp_path / "first/summary.json").read_text())
    alone = json.loads((evaluated / "evaluation/summary.json").read_text())
    assert summary["scores"] == alone["scores"]
    assert summary["split"] == alone["split"]
    assert summary["run"]["members"] == [
        {"workdir": evaluated.name, "weight": 1.0},
        {"workdir": second.name, "weight": 0.0},
    ]
    assert "members" not in alone["run"]
    assert not (second / "evaluation").exists()


@pytest.mark.long
def test_runs_of_different_folds_are_scored_out_of_fold(folds, tmp_path, capsys):
    """Each image by the run that was not trained on it: as in that run's own evaluation, with its own thresholds."""
    both = ["--workdir", f"{folds[0]},{folds[1]}"]
    assert evaluate.main([*both, "--output", str(tmp_path / "out")]) == DONE
    printed = capsys.readouterr().out
    assert "out of fold (each image by the runs that were not trained on it)" in printed
    assert f"from the config of {folds[0]}, the first of 2 runs" in printed
    assert f"Save them with `jaxpneumo thresholds --workdir {folds[0]} --workdir {folds[1]} --evaluation" in printed
    assert "Chosen on the scores of single runs, one an image, as no mean of runs was scored: " in printed
    ours = read_metrics(tmp_path / "out/metrics.csv")
    alone = [read_metrics(run / "evaluation/metrics.csv") for run in folds]
    for column in ("ImageId", "tta_area", "tta_tp", "removal_area", "tta_maximum"):
        joined = np.concatenate([table[column] for table in alone])
        order = np.argsort(np.concatenate([table["row"].astype(int) for table in alone]))
        np.testing.assert_array_equal(ours[column], joined[order])
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert (summary["n_images"], summary["split"]["runs_per_image"]) == (24, [1])
    assert summary["split"]["validation_images_with_patient_in_training"] == 0
    assert summary["mean_shape"] is None
    assert "from the config of" in summary["thresholds_from"]

    with pytest.raises(InputError, match="were trained on different images"):
        evaluate.main([*both, "--output", str(tmp_path / "train"), "--part", "train"])
    assert evaluate.main([*both, "--output", str(tmp_path / "all"), "--part", "all"]) == DONE
    split = json.loads((tmp_path / "all/summary.json").read_text())["split"]
    assert split["images_in_training"] == 24


@pytest.mark.long
def test_an_image_is_scored_by_all_runs_that_were_not_trained_on_it(folds, second, prepared):
    """Runs of any splits; a run of weight 0 scores nothing."""
    runs = [*folds, second]
    teams, split = parts.select(runs, prepared, "validation")
    image_id = dataset.read_index(prepared).image_id
    sides = [json.loads((run / "splits.json").read_text()) for run in runs]
    rows = np.concatenate([own for _, own in teams])
    assert sorted(rows) == list(range(24))
    assert split["runs_per_image"] == [1, 2]
    for members, own in teams:
        for name in image_id[own]:
            assert members == tuple(run for run, side in enumerate(sides) if name not in side["train"])
    teams, split = parts.select(runs, prepared, "validation", [0.5, 0.0, 0.5])
    assert {run for members, _ in teams for run in members} == {0, 2}
    assert split["validation_images"] == len({*sides[0]["validation"], *sides[2]["validation"]})


@pytest.mark.long
def test_an_ensemble_has_thresholds_of_its_own(folds, larger, radiographs, tmp_path, capsys):
    """Chosen on the scores of the whole, whatever its networks and sizes; predictions say what theirs were made for."""
    runs = [shutil.copytree(run, tmp_path / f"run{number}") for number, run in enumerate((folds[0], larger, folds[1]))]
    named = [word for run in runs for word in ("--workdir", str(run))]
    assert evaluate.main([*named, "--output", str(tmp_path / "scores")]) == DONE
    choose = [*named, "--evaluation", str(tmp_path / "scores"), "--name", "ours"]
    assert thresholds.main(choose) == DONE
    saved = [json.loads((run / "thresholds/ours.json").read_text()) for run in runs]
    assert saved[0] == saved[1] == saved[2]
    result = json.loads((tmp_path / "scores/thresholds.json").read_text())["rules"]["triplet"]
    assert {key: saved[0][key] for key in result["thresholds"]} == result["thresholds"]
    assert (saved[0]["size"], saved[0]["chosen_by"]["n_images"], saved[0]["in_sample"]) == (64, 24, result["in_sample"])
    counts = read_counts(tmp_path / "scores/levels.npz")
    place = thresholds.best(thresholds.surface(counts, "triplet"))
    assert saved[0]["threshold"] == pytest.approx(counts.thresholds[place[2]])

    capsys.readouterr()
    rescored = [*named, "--output", str(tmp_path / "again"), "--thresholds", "ours"]
    assert evaluate.main(rescored) == DONE
    assert "chosen for this ensemble of 3 runs, on 24 images out of fold." in capsys.readouterr().out
    summary = json.loads((tmp_path / "again/summary.json").read_text())
    assert summary["scores"][summary["run"]["mode"]]["dice"] == pytest.approx(result["in_sample"], abs=1e-9)

    def predicted(*flags):
        arguments = [*flags, "--input", str(radiographs / "dicom"), "--overlays", "0", "--workers", "0"]
        output = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        assert predict.main([*arguments, "--output", str(output)]) == DONE
        return capsys.readouterr().out

    assert "chosen for this ensemble of 3 runs, on 24 images out of fold." in predicted(*named, "--thresholds", "ours")
    assert "not for this ensemble" in predicted(*named, "--weights", "1,1,2", "--thresholds", "ours")
    assert f"from the config of {runs[0]}, the first of 3 runs." in predicted(*named)
    assert f"from the config of {runs[0]}, threshold by flag." in predicted(*named[:2], "--threshold", "0.4")

    with pytest.raises(InputError, match="give exactly these runs"):
        thresholds.main([*named[:4], "--evaluation", str(tmp_path / "scores")])
    with pytest.raises(InputError, match="holds no evaluation"):
        thresholds.main([*named, "--evaluation", str(tmp_path)])


@pytest.mark.long
def test_out_of_fold_counts_choose_the_thresholds_of_all_runs(folds, radiographs, tmp_path):
    command = ["--workdir", str(folds[0]), "--workdir", str(folds[1]), "--rule", "image", "--name", "both"]
    before = (folds[0] / "evaluation/thresholds.json").read_bytes()
    assert thresholds.main(command) == DONE
    saved = [json.loads((run / "thresholds/both.json").read_text()) for run in folds]
    assert saved[0] == saved[1]
    # In any order of the runs it is the same choice, so nothing is there to replace.
    assert thresholds.main([*command[2:4], *command[:2], *command[4:]]) == DONE
    assert json.loads((folds[1] / "thresholds/both.json").read_text()) == saved[0]
    assert saved[0]["chosen_by"]["n_images"] == 24
    assert [run["fold"] for run in saved[0]["chosen_on"]["split"]["runs"]] == [0, 1]
    assert (folds[0] / "evaluation/thresholds.json").read_bytes() == before
    # Each image counts as much as in its own run: the pooled mean is the mean of both runs at these thresholds.
    tables = [thresholds.read_pooled([run])[0] for run in folds]
    level = int(np.argmin(np.abs(tables[0].thresholds - saved[0]["threshold"])))
    area = tables[0].areas.tolist().index(saved[0]["removal_threshold"])
    each = [thresholds.surface(table, "image")[level, area] for table in tables]
    assert saved[0]["in_sample"] == pytest.approx(np.average(each, weights=[len(table.pixels) for table in tables]))
    arguments = ["--workdir", f"{folds[0]},{folds[1]}", "--input", str(radiographs / "dicom")]
    arguments += ["--output", str(tmp_path / "out"), "--overlays", "0", "--thresholds", "both", "--workers", "0"]
    assert predict.main(arguments) == DONE


@pytest.mark.long
def test_thresholds_refuse_runs_that_do_not_belong_together(evaluated, folds, tmp_path):
    again = shutil.copytree(folds[0], tmp_path / "again")
    with pytest.raises(InputError, match="12 images were evaluated by more than one of the runs"):
        thresholds.main(["--workdir", f"{folds[0]},{again}"])
    other = shutil.copytree(folds[1], tmp_path / "other")
    summary = json.loads((other / "evaluation/summary.json").read_text())
    (other / "evaluation/summary.json").write_text(json.dumps({**summary, "tta": False}))
    with pytest.raises(InputError, match=r"tta=True.*tta=False: thresholds hold for one size and TTA only"):
        thresholds.main(["--workdir", f"{folds[0]},{other}"])
    (other / "evaluation/summary.json").write_text(json.dumps({**summary, "input_size": 64}))
    with pytest.raises(InputError, match=r"at size 32 .* at 64"):
        thresholds.main(["--workdir", f"{folds[0]},{other}"])
    shutil.rmtree(other / "evaluation")
    with pytest.raises(InputError, match="was not evaluated"):
        thresholds.main(["--workdir", f"{folds[0]},{other}"])
