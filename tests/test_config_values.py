"""Every value of a config has its range, and a start that is refused leaves nothing behind."""

import json
import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from commands import run
from helpers import REPOSITORY, as_typed, load_config, shrink

from jaxpneumo import main
from jaxpneumo.predict import saved_thresholds
from jaxpneumo.process.atomic import write_json
from jaxpneumo.process.errors import BAD_INPUT, InputError
from jaxpneumo.process.files import read_json
from jaxpneumo.run.config import differences, read_config, typed
from jaxpneumo.run.config_files import find_config_file, read_config_file
from jaxpneumo.run.config_values import ALLOWED
from jaxpneumo.train.stages import train

CONFIGS = [
    "exp1",
    "exp2",
    "exp3",
    "exp4",
    "exp5",
    "exp5_fast",
    "unet256",
    "quickstart",
    "augmentation_study:A1+A2",
    "winner",
    "x5:outline",
]


def numbers_in(values: dict, prefix: str = "") -> dict:
    """The numeric values of a config by their full names, and those without a value."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= numbers_in(value, f"{prefix}{key}.")
        elif value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            flat[prefix + key] = value
    return flat


class TestNumbersOfTheConfig:
    @pytest.mark.parametrize("name", CONFIGS)
    def test_shipped_configs_pass(self, name):
        as_typed(load_config(name))

    @pytest.mark.parametrize("name", CONFIGS)
    def test_every_number_has_a_range_and_is_refused_out_of_it(self, name):
        keys = numbers_in(load_config(name).to_dict())
        assert {"stage1.epochs", "predict.threshold", "augment.flip", "model.momentum", "data.fold"} <= keys.keys()
        for key in keys:
            kind = ALLOWED[key]
            step = kind.step if kind.whole else 1e-3
            high = kind.high if kind.below_high else kind.high + step
            values = [
                float("nan"),
                float("inf"),
                -float("inf"),
                kind.low - step,
                high,
                "7",
                [1],
                *([True] if kind.whole else []),
            ]
            for value in [*values, *([] if kind.word else [None])]:
                config = load_config(name)
                with config.ignore_type():
                    config.update_from_flattened_dict({key: value})
                with pytest.raises(InputError) as caught:
                    as_typed(config)
                assert f"--config.{key} must be {kind}, not {value!r}" in str(caught.value)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("model.encoder", "resnet18"),
            ("model.dtype", "float16"),
            ("model.depths", (1, 1, 1)),
            ("model.depths", (1, 0, 1, 1)),
            ("loss.dice", "pixel"),
            ("augment.engine", "gpu"),
            ("data.resident", "yes"),
            ("predict.removal_rule", "images"),
            ("stage1.size", 250),
            ("stage1.schedule", "steps"),
        ],
    )
    def test_words_and_lists(self, key, value):
        config = load_config("exp2")
        config.update_from_flattened_dict({key: value})
        with pytest.raises(InputError, match=rf"--config\.{re.escape(key)} must be "):
            as_typed(config)

    def test_more_averaged_epochs_than_there_are(self):
        config = load_config("exp2")
        config.stage1.epochs = 4
        with pytest.raises(InputError, match=r"stage1\.swa_epochs must be at most stage1\.epochs, 4, not 5"):
            as_typed(config)

    @pytest.mark.parametrize("name", ["exp1", "exp5", "quickstart"])
    def test_flags_set_what_another_schedule_and_another_rule_need(self, name):
        config = read_config_file(f"configs/{name}.py")
        before = typed(config.to_dict())
        assert before == as_typed(load_config(name))
        own = {"cosine": {"final_learning_rate": 1e-5}, "plateau": {"plateau_factor": 0.5, "plateau_patience": 3}}
        other = "plateau" if config.stage1.schedule == "cosine" else "cosine"
        config.update_from_flattened_dict({"stage1.schedule": other})
        with pytest.raises(InputError, match=rf"stage1\.{next(iter(own[other]))} is missing"):
            typed(config.to_dict())
        top = {"predict.top_threshold": 0.75, "predict.top_area": 2000}
        config.update_from_flattened_dict({f"stage1.{key}": value for key, value in own[other].items()} | top)
        after = typed(config.to_dict())
        assert after.stages[0] == replace(before.stages[0], schedule=other, **own[other])
        assert after.predict == replace(before.predict, top_threshold=0.75, top_area=2000)
        assert typed(after.to_dict()).to_dict() == after.to_dict()

    def test_the_encoders_are_those_of_the_network(self):
        from jaxpneumo.model.unet import ENCODERS

        assert set(ALLOWED["model.encoder"].words) == set(ENCODERS)

    def test_a_run_of_an_earlier_version_is_read_and_a_damaged_one_is_not(self, evaluated, tmp_path):
        values = read_json(evaluated / "config.json")
        del values["data"]["fold"], values["model"]["remat"], values["augment"]["engine"]
        write_json(tmp_path / "config.json", values)
        assert read_config(tmp_path).stages[0].epochs == 1
        values["predict"]["threshold"] = 70
        write_json(tmp_path / "config.json", values)
        with pytest.raises(
            InputError, match=r"config\.json cannot be used: predict\.threshold must be a number from 0"
        ):
            read_config(tmp_path)
        write_json(tmp_path / "config.json", [1])
        with pytest.raises(InputError, match="is not the config of a run"):
            read_config(tmp_path)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            *[("threshold", 70), ("removal_threshold", -1), ("removal_rule", "all"), ("threshold", float("nan"))],
            *[("top_threshold", 1.5), ("top_area", 2**20 + 1), ("size", 30), ("tta", "yes")],
        ],
    )
    def test_saved_thresholds(self, tmp_path, key, value):
        saved = {"threshold": 0.5, "removal_threshold": 0, "removal_rule": "image", "tta": True, "size": 32}
        settings = replace(as_typed(load_config("exp2")).predict, size=32)
        (tmp_path / "thresholds").mkdir()
        (tmp_path / "thresholds/a.json").write_text(json.dumps(saved))
        assert saved_thresholds.use(tmp_path, "a", settings).removal_threshold == 0
        (tmp_path / "thresholds/a.json").write_text(json.dumps({**saved, key: value}))
        with pytest.raises(InputError, match=rf"a\.json cannot be used: {key} must be .*, not .*Choose the thresholds"):
            saved_thresholds.use(tmp_path, "a", settings)

    @pytest.mark.parametrize(("key", "value"), [("top_threshold", 0.9), ("top_area", 512)])
    def test_one_value_of_the_triplet_rule_alone(self, tmp_path, key, value):
        """Alone it would be left out of the prediction, and nobody would know."""
        saved = {"threshold": 0.5, "removal_threshold": 0, "removal_rule": "image", "tta": True, "size": 32, key: value}
        (tmp_path / "thresholds").mkdir()
        (tmp_path / "thresholds/a.json").write_text(json.dumps(saved))
        with pytest.raises(InputError, match=r"a\.json cannot be used: top_threshold and top_area belong together"):
            saved_thresholds.use(tmp_path, "a", replace(as_typed(load_config("exp2")).predict, size=32))


EARLIER = sorted((REPOSITORY / "tests/earlier_configs").glob("*.json"), key=lambda path: int(path.stem.split("_")[0]))


class TestRunsOfEarlierVersions:
    """tests/earlier_configs holds a config.json of every shape that there was, the oldest first."""

    @pytest.mark.parametrize("path", EARLIER, ids=lambda path: path.stem)
    def test_what_came_later_is_what_was_done_before(self, path, tmp_path):
        shutil.copy(path, tmp_path / "config.json")
        values, config = read_json(path), read_config(tmp_path)
        assert (config.data.fold, config.model.remat) == (0, False)
        assert config.data.resident == "auto"
        assert config.augment.engine == values["augment"].get("engine", "host")
        now = config.to_dict()
        for key, value in values.items():
            kept = now[key] if not isinstance(value, dict) else {name: now[key][name] for name in value}
            assert json.loads(json.dumps(kept)) == value

    def test_the_file_has_the_form_that_it_had(self, tmp_path):
        write_json(tmp_path / "config.json", typed(read_json(EARLIER[-1])).to_dict())
        assert (tmp_path / "config.json").read_text() == EARLIER[-1].read_text()

    @pytest.mark.parametrize("path", [path for path in EARLIER if "exp" in path.stem], ids=lambda path: path.stem)
    def test_only_what_trains_differently_is_a_difference(self, path):
        values, config = read_json(path), load_config(path.stem.rsplit("_", 1)[1])
        by_host = "engine" not in values["augment"]
        # The configs' Dice loss was that of each image before the eighth shape.
        by_batch = int(path.stem.split("_")[0]) >= 8
        assert (config.loss.dice, values["loss"]["dice"]) == ("batch", "batch" if by_batch else "image")
        changed = [] if by_batch else ["loss.dice"]
        assert differences(typed(values), as_typed(config)) == (["augment.engine"] if by_host else []) + changed
        config.augment.engine, config.loss.dice = "host", values["loss"]["dice"]
        assert differences(typed(values), as_typed(config)) == ([] if by_host else ["augment.engine"])
        with config.unlocked():
            config.checkpoint_seconds = 7.0
        assert differences(typed(values), as_typed(config)) == ([] if by_host else ["augment.engine"])
        config.data.fold = 1
        assert "data.fold" in differences(typed(values), as_typed(config))

    def test_a_run_goes_on_and_predicts(self, evaluated, tmp_path, caplog):
        from jaxpneumo.predict.infer import load_predictor

        run = shutil.copytree(evaluated, tmp_path / "run")
        config, values = read_config(run), read_json(run / "config.json")
        del values["data"]["fold"], values["data"]["resident"], values["model"]["remat"]
        write_json(run / "config.json", values)
        assert load_predictor(run).model_id == load_predictor(evaluated).model_id
        caplog.set_level(logging.INFO, "jaxpneumo")
        train(config, run)
        assert "stage1 is complete; its result is read from" in caplog.text
        assert read_json(run / "config.json") == read_json(evaluated / "config.json")


class TestRefusedTraining:
    """Nothing is left behind that stands in the way of the corrected start."""

    @pytest.mark.parametrize(
        ("key", "value", "words"),
        [
            ("model.pretrained", "none.h5", r"--config\.model\.pretrained=none\.h5: no such file"),
            ("init_from", "none", r"--config\.init_from=none is not a folder"),
            ("data.directory", "none", "none is not a prepared data set"),
            ("data.split", "none.json", r"none\.json cannot be read"),
            ("data.split", "patients", r'--config\.data\.split patients: .* Did you mean "patient"'),
            ("predict.input", "none", r"--config\.predict\.input=none: there is no such folder"),
            ("stage1.swa_epochs", 2, "must be at most"),
            ("predict.threshold", 7.0, "must be a number from 0 to 1"),
        ],
    )
    def test_before_anything_is_written(self, prepared, tmp_path, monkeypatch, key, value, words):
        monkeypatch.chdir(tmp_path)
        config = shrink(load_config("exp2"), prepared)
        config.update_from_flattened_dict({key: value})
        with pytest.raises(InputError, match=words):
            main.run(config, Path("run"))
        assert list(tmp_path.iterdir()) == []

    def test_all_sizes_that_the_data_lack_are_named(self, prepared, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        config = load_config("exp5")
        config.data.directory = str(prepared)
        words = (
            r"no arrays of size 256 or 512: it has 32, 64\. .* new folder with --sizes 256,512, and give it as --config"
        )
        with pytest.raises(InputError, match=words):
            main.run(config, Path("run"))
        drawn = load_config("quickstart")
        drawn.data.directory, drawn.predict.input = str(prepared), ""
        with pytest.raises(InputError, match=r"no arrays of size 96 or 128: .* Name a new folder as --config\.data"):
            main.run(drawn, Path("run"))
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("key", ["init_from", "stage2.start_from"])
    def test_a_run_of_another_network_to_start_from(self, prepared, tmp_path, monkeypatch, key):
        """Both configs tell the difference; what does not change the weights, such as the dtype, is none."""
        monkeypatch.chdir(tmp_path)
        Path("other").mkdir()
        other = load_config("exp1")
        other.model.width, other.model.dtype = 8, "float32"
        write_json("other/config.json", as_typed(other).to_dict())
        config = read_config_file(find_config_file("configs/exp5.py"))
        config.update_from_flattened_dict({key: "other", "data.directory": str(prepared)})
        words = (
            f"--config.{key}=other is a run of another network: model.input_convolution is True there and False here; "
            "model.width is 8 there and 64 here. Give a run of this network, or make them equal."
        )
        with pytest.raises(InputError, match=re.escape(words)):
            main.run(config, Path("run"))
        assert [path.name for path in tmp_path.iterdir()] == ["other"]

    def test_before_jax_is_loaded(self, tmp_path):
        code = (
            "import sys; from jaxpneumo.__main__ import main; sys.argv = ['jaxpneumo', 'train', *sys.argv[1:]]; "
            "code = main(); assert 'jax' not in sys.modules; sys.exit(code)"
        )
        for change in ("model.pretrained=none.h5", "predict.input=none", "predict.threshold=7"):
            arguments = [f"--config={REPOSITORY}/configs/exp5.py", f"--config.{change}"]
            result = run("-c", code, *arguments, cwd=tmp_path)
            assert (result.returncode, change.split("=")[0] in result.stderr) == (BAD_INPUT, True), result.stderr
        assert list(tmp_path.iterdir()) == []

    def test_synthetic_data_are_not_drawn_for_a_start_that_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for key, value in (("model.pretrained", "none.h5"), ("data.split", "none.json")):
            config = load_config("quickstart")
            config.update_from_flattened_dict({key: value})
            with pytest.raises(InputError, match="none"):
                train(as_typed(config), tmp_path / "run")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("name", ["exp2.py", "exp2", "augmentation_study.py:A1"])
    def test_the_shipped_configs_are_found_outside_of_the_checkout(self, tmp_path, name):
        for flag in (["--config", f"configs/{name}"], [f"--config=configs/{name}"]):
            result = run("-m", "jaxpneumo", "train", *flag, "--config.data.directory=none", cwd=tmp_path)
            assert (result.returncode, "none is not a prepared data set" in result.stderr) == (BAD_INPUT, True)

    def test_a_config_of_the_current_folder_comes_first(self, tmp_path, monkeypatch):
        (tmp_path / "configs").mkdir()
        (tmp_path / "configs/exp2.py").write_text("")
        monkeypatch.chdir(tmp_path)
        assert find_config_file("configs/exp2.py") == "configs/exp2.py"
        assert Path(find_config_file("configs/exp1")) == REPOSITORY / "jaxpneumo/configs/exp1.py"
        with pytest.raises(InputError, match=r"there is no file configs/exp9\.py here.*configs/exp5\.py"):
            find_config_file("configs/exp9.py")

    def test_a_config_is_named_with_a_blank_too(self, tmp_path):
        for flag in (["--config", f"{REPOSITORY}/configs/exp2.py"], [f"--config={REPOSITORY}/configs/exp2.py"]):
            result = run("-m", "jaxpneumo", "train", *flag, "--config.data.directory=none", cwd=tmp_path)
            assert (result.returncode, "none is not a prepared data set" in result.stderr) == (BAD_INPUT, True)

    @pytest.mark.parametrize(
        ("flag", "words"),
        [
            ("--wrokdir=runs/x", 'there is no option --wrokdir. Did you mean "--workdir"?'),
            ("-x", "there is no option -x."),
            ("--config.model.widht=8", 'there is no --config.model.widht. Did you mean "--config.model.width"?'),
            ("--config.modle.width=8", 'there is no --config.modle.width. Did you mean "--config.model.width"?'),
            (
                "--config.stage2.size=64",
                "exp2.py has no stage2; add the section to a copy of the file, as in configs/exp5",
            ),
            ("--config.data.synthetic.train=9", "exp2.py has no data.synthetic; add the section to a copy of the file"),
        ],
    )
    def test_a_flag_that_is_not_there_does_not_blame_the_config_file(self, flag, words):
        with pytest.raises(InputError, match=re.escape(words)) as refusal:
            main.main([f"--config={REPOSITORY}/configs/exp2.py", flag])
        assert "cannot be used" not in str(refusal.value)

    @pytest.mark.parametrize("flag", ["--config.model.remat", "--noconfig.model.remat", "--config.stage1.epochs=9"])
    def test_flags_of_the_config_are_taken(self, flag):
        with pytest.raises(InputError, match="data/none is not a prepared data set"):
            main.main([f"--config={REPOSITORY}/configs/exp2.py", flag, "--config.data.directory=data/none"])

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ("stage1.epoch=2", 'jaxpneumo: there is no --config.stage1.epoch. Did you mean "--config.stage1.epochs"?'),
            ("stage1.epochs=nan", "--config.stage1.epochs=nan is not a whole number from 1 to 10000."),
            ("data.fold=1.5", "--config.data.fold=1.5 is not a whole number from 0 to 999."),
        ],
    )
    def test_a_wrong_change_of_the_config_is_told_without_a_quotation(self, tmp_path, change, words):
        result = run("-m", "jaxpneumo", "train", f"--config={REPOSITORY}/configs/exp2.py", f"--config.{change}")
        assert (result.returncode, result.stderr.endswith(words + "\n")) == (BAD_INPUT, True), result.stderr
