"""What a start is compared with before it trains: the folder, the data, the runs it starts from, the config's sense."""

import json
import logging
import shutil

import numpy as np
import pytest
from helpers import REPOSITORY, as_typed, epoch_records, load_config, shrink, train_interrupted

from jaxpneumo.data import dataset, splits
from jaxpneumo.data.prepare import prepare
from jaxpneumo.predict import trained_on
from jaxpneumo.process.errors import InputError, TrainingError
from jaxpneumo.process.files import read_json
from jaxpneumo.run.config import differences, typed
from jaxpneumo.run.config_files import read_config_file
from jaxpneumo.run.network import first_variables, stage_result
from jaxpneumo.synthetic import radiographs as synthetic
from jaxpneumo.train.epoch import Sums
from jaxpneumo.train.stages import make_synthetic_data, train


def one_stage(prepared, **stage1):
    """Exp2, shrunk."""
    config = shrink(load_config("exp2"), prepared)
    config.data.split = "patient"
    config.model.dtype = "float32"
    config.stage1.update(stage1)
    return config


@pytest.fixture(scope="module")
def two_stages(prepared, tmp_path_factory):
    """A finished run of exp5, shrunk."""
    folder = tmp_path_factory.mktemp("checks") / "two"
    config = shrink(load_config("exp5"), prepared)
    config.data.split = "patient"
    config.model.dtype = "float32"
    train(as_typed(config), folder)
    return folder


def test_stages_without_their_config_are_not_gone_on_with(prepared, evaluated, tmp_path):
    """They may be of any config and any split."""
    run = shutil.copytree(evaluated, tmp_path / "run")
    (run / "config.json").unlink()
    with pytest.raises(InputError, match=r"holds stage1/checkpoints of a run, but not its config\.json"):
        train(as_typed(one_stage(prepared)), run)


def test_a_run_goes_on_with_its_own_data_alone(prepared, radiographs, tmp_path):
    """The folder may be another, as a copy of it is; labels and arrays may not."""
    data = shutil.copytree(prepared, tmp_path / "data")
    config = one_stage(prepared, epochs=2, swa_epochs=1)
    train_interrupted(config, tmp_path / "run", epoch=1)
    config.data.directory = str(data)
    others = tmp_path / "labels.csv"
    lines = (radiographs / "labels.csv").read_text().splitlines()
    others.write_text("\n".join([lines[0], *(f"{line.split(',')[0]},-1" for line in lines[1:])]) + "\n")
    empty = tmp_path / "empty"
    prepare(radiographs, others, empty, (32, 64), radiographs / "patients.csv", workers=1, quiet=True)
    config.data.directory = str(empty)
    with pytest.raises(InputError, match=r"holds other data .* started with: labels\.csv, masks_32\.npy changed"):
        train(as_typed(config), tmp_path / "run")
    config.data.directory = str(data)
    train(as_typed(config), tmp_path / "run")
    assert len(epoch_records(tmp_path / "run/stage1")) == 2


def test_validation_images_that_a_run_to_start_from_was_trained_on_are_told(prepared, evaluated, tmp_path, caplog):
    """In the log, and with the split wherever the run's scores are told."""
    config = one_stage(prepared)
    config.data.split_seed = 5
    config.init_from = str(evaluated)
    train(as_typed(config), tmp_path / "run")
    trained = set(splits.read_splits(evaluated / "splits.json")["train"])
    index = dataset.read_index(prepared)
    patients = set(index.patient[np.isin(index.image_id, list(trained))])
    own = np.isin(index.image_id, splits.read_splits(tmp_path / "run/splits.json")["validation"])
    seen = int(np.isin(index.patient[own], list(patients)).sum())
    assert seen > 0
    assert f"{seen} of {own.sum()} validation images, or other images of their patients, were training" in caplog.text
    _, _, split = splits.split_rows(index, tmp_path / "run/splits.json", 0.0, 0)
    assert split[splits.SEEN] == seen
    assert f"{seen} of the validation images seen by the run that it started from" in splits.words(split)
    summary = {"n_images": int(own.sum()), "split": {"part": "validation", **split}}
    assert trained_on.images_in_training(summary) == seen
    assert f"{seen} of these images were used for training by the run" in trained_on.in_words(summary)

    # A run that only uses that file as its split has seen none of them.
    caplog.clear()
    config = one_stage(prepared)
    config.data.split = str(tmp_path / "run/splits.json")
    train(as_typed(config), tmp_path / "fresh")
    assert splits.SEEN not in read_json(tmp_path / "fresh/splits.json")
    assert "too optimistic" not in caplog.text


def test_a_split_of_both_runs_has_no_such_images(prepared, evaluated, tmp_path, caplog):
    config = one_stage(prepared)
    config.init_from = str(evaluated)
    train(as_typed(config), tmp_path / "run")
    assert splits.SEEN not in read_json(tmp_path / "run/splits.json")
    assert "starts from" not in caplog.text


def test_a_run_of_unknown_training_images_to_start_from_is_told(prepared, evaluated, tmp_path, caplog):
    source = shutil.copytree(evaluated, tmp_path / "source")
    (source / "splits.json").unlink()
    config = one_stage(prepared)
    config.init_from = str(source)
    train(as_typed(config), tmp_path / "run")
    assert f"It is not known on which images {source} was trained" in caplog.text


def test_a_run_of_one_stage_starts_from_the_other_runs_end_and_one_of_two_from_its_stage1(prepared, two_stages):
    config = one_stage(prepared)
    config.model.input_convolution = False
    config.init_from = str(two_stages)
    fresh = first_variables(as_typed(one_stage(prepared)))

    def kernel(variables):
        return np.asarray(variables["params"]["segmentation_head"]["kernel"])

    ends = {stage: kernel(stage_result(two_stages, stage, fresh)) for stage in ("stage1", "stage2")}
    np.testing.assert_array_equal(kernel(first_variables(as_typed(config))), ends["stage2"])
    both = shrink(load_config("exp5"), prepared)
    both.init_from = str(two_stages)
    np.testing.assert_array_equal(kernel(first_variables(as_typed(both))), ends["stage1"])


def test_without_positive_images_there_is_nothing_to_learn_or_to_score(prepared, tmp_path, caplog):
    index = dataset.read_index(prepared)
    positive, negative = (index.image_id[rows].tolist() for rows in (index.positive, ~index.positive))
    for name, parts in {"none": (negative, positive), "scores": (positive, negative)}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(dict(zip(("train", "validation"), parts, strict=True))))
    config = one_stage(prepared)
    config.data.split = str(tmp_path / "none.json")
    with pytest.raises(InputError, match=r"none of the 12 training images shows pneumothorax"):
        train(as_typed(config), tmp_path / "a")
    config.data.split = str(tmp_path / "scores.json")
    with caplog.at_level(logging.WARNING):
        train(as_typed(config), tmp_path / "b")
    assert "None of the 12 validation images shows pneumothorax" in caplog.text


def test_findings_that_are_lost_at_a_stages_size_are_told(prepared, radiographs, tmp_path, caplog):
    """Their images are positive in the labels and the sampling, and negative in the masks that are trained on."""
    header, *lines = (radiographs / "labels.csv").read_text().splitlines()
    codes = dict(line.split(",") for line in lines)
    tiny = [name for name, code in codes.items() if code.strip() != "-1"][::2]
    lines = [f"{name},{'700 1' if name in tiny else code}" for name, code in codes.items()]
    (tmp_path / "labels.csv").write_text("\n".join([header, *lines]) + "\n")
    patients = radiographs / "patients.csv"
    prepare(radiographs, tmp_path / "labels.csv", tmp_path / "data", (32, 64), patients, workers=1, quiet=True)
    with caplog.at_level(logging.WARNING):
        train(as_typed(one_stage(tmp_path / "data")), tmp_path / "run")
    trained = set(splits.read_splits(tmp_path / "run/splits.json")["train"])
    lost, positive = trained.intersection(tiny), [name for name in trained if codes[name].strip() != "-1"]
    assert 0 < len(lost) < len(positive)
    told = f"At 32 pixels no pixel is left of the finding of {len(lost)} among the {len(positive)} training images"
    assert told in caplog.text


def test_other_synthetic_radiographs_than_asked_for_are_refused(tmp_path):
    """Another number or share would be in the config of a run that did not see it."""
    config = load_config("quickstart")
    config.data.directory = str(tmp_path / "data")
    config.data.synthetic.update(train=8, test=2, positive_fraction=0.5)
    for part, seed in (("train", 0), ("test", 1)):
        count = config.data.synthetic[part]
        synthetic.write(tmp_path / f"data-{part}", count, seed, 128, positive_fraction=0.5, workers=1, quiet=True)
    (tmp_path / "data").mkdir()
    make_synthetic_data(as_typed(config))
    for name, value in (("train", 9), ("test", 3), ("positive_fraction", 0.75)):
        other = config.copy_and_resolve_references()
        other.data.synthetic[name] = value
        with pytest.raises(InputError, match=r"data-(train|test) holds [28] radiographs, [14] positive, and --config"):
            make_synthetic_data(as_typed(other))


def test_the_threshold_may_change_where_the_average_is_the_result(prepared):
    """Where the best epoch is, its scores are at that threshold."""
    averaged, best = one_stage(prepared), one_stage(prepared, swa_epochs=0)
    for config, expected in ((averaged, []), (best, ["predict.threshold"])):
        before = as_typed(config)
        config.predict.threshold = 0.123
        assert differences(before, as_typed(config)) == expected


def test_a_validation_that_is_no_number_is_no_good_score():
    """Probabilities that are no numbers outline nothing, which is right in every image without a finding."""
    totals = {"weight": 4.0, "positive": 2.0, "outlined": 0.0, "loss": float("nan"), "iou": 2.0, "dice": 2.0}
    scores = Sums({}, totals).scores()
    assert (scores["validation_iou"], scores["validation_dice"], scores["validation_outlined"]) == (0.0, 0.0, 0.0)


def test_a_result_that_is_no_number_is_none(prepared, tmp_path, monkeypatch):
    original = Sums.scores

    def scores(self):
        return {**original(self), "validation_loss": float("nan")}

    monkeypatch.setattr(Sums, "scores", scores)
    with pytest.raises(TrainingError, match=r"the result of stage1 has a validation loss of nan, so it is no result"):
        train(as_typed(one_stage(prepared)), tmp_path / "run")
    assert not (tmp_path / "run/stage1/final").exists()


def test_plateau_waits_for_the_warm_up(prepared, tmp_path, monkeypatch):
    """A loss that grows while the rate does lowers nothing."""
    original = Sums.scores
    losses = iter(range(1, 100))

    def scores(self):
        return {**original(self), "validation_loss": float(next(losses))}

    monkeypatch.setattr(Sums, "scores", scores)
    config = shrink(load_config("exp1"), prepared)
    config.model.dtype = "float32"
    config.stage1.unlock()
    config.stage1.update(epochs=5, warmup_epochs=3, learning_rate=0.008, plateau_factor=0.1, plateau_patience=1)
    train(as_typed(config), tmp_path / "run")
    rates = [record["learning_rate"] for record in epoch_records(tmp_path / "run/stage1")]
    np.testing.assert_allclose(rates, [0.002, 0.004, 0.006, 0.008, 0.008], rtol=1e-6)


def test_a_lost_best_epoch_is_told(prepared, tmp_path, monkeypatch, caplog):
    original = Sums.scores
    ious = iter((0.2, 0.4, 0.1, 0.1, 0.1, 0.1, 0.1))  # of epochs and of the result

    def scores(self):
        return {**original(self), "validation_iou": next(ious)}

    monkeypatch.setattr(Sums, "scores", scores)
    config = one_stage(prepared, epochs=4, swa_epochs=0)
    train_interrupted(config, tmp_path / "run", epoch=3)
    steps = sorted(int(path.name) for path in (tmp_path / "run/stage1/checkpoints").iterdir())
    shutil.rmtree(tmp_path / f"run/stage1/checkpoints/{steps[-2]}/model/d")
    train(as_typed(config), tmp_path / "run")
    assert "the result is epoch 4, the best of the checkpoints that are left. Epoch 2, with IoU 0.4000" in caplog.text


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"init_from": "a", "stage1.start_from": "b"}, "init_from and stage1.start_from are both given"),
        ({"init_from": "a", "model.pretrained": "b"}, "init_from and model.pretrained are both given"),
        ({"stage1.start_from": "a", "model.pretrained": "b"}, "stage1.start_from and model.pretrained are both given"),
        ({"stage1.bce_weight": 0.0, "stage1.dice_weight": 0.0}, "all weights of its loss are 0"),
        ({"model.momentum": "None"}, "model.momentum must be"),
    ],
)
def test_settings_that_cancel_each_other_are_refused(prepared, changes, problem):
    values = one_stage(prepared).to_dict()
    for name, value in changes.items():
        *sections, key = name.split(".")
        (values[sections[0]] if sections else values)[key] = value
    with pytest.raises(InputError, match=problem):
        typed(values)


def test_a_config_without_stage1_is_refused(prepared):
    values = shrink(load_config("exp5"), prepared).to_dict()
    del values["stage1"]
    with pytest.raises(InputError, match="stage1 is missing, and there is stage2"):
        typed(values)


@pytest.mark.parametrize("name", ["stage1.warmup_epoch", "loss.focal_wieght", "agument", "stage_2", "stage10"])
def test_a_misspelt_name_in_a_config_file_is_refused(tmp_path, name):
    change = f"config.{name} = 3.0" if "." in name else f"config.{name} = ml_collections.ConfigDict({{'flip': 0.5}})"
    text = (
        (REPOSITORY / "configs/exp2.py")
        .read_text()
        .replace("    return config\n", f"    {change}\n    return config\n")
    )
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(InputError, match=rf"mine\.py has {name}(\.flip)?, which no config has"):
        read_config_file(str(tmp_path / "mine.py"))
