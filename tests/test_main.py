"""The commands as a user types them: help, wrong input in words, distinct exit codes."""

import os
import re
import subprocess
import sys

import pytest
from helpers import REPOSITORY

from jaxpneumo import __main__ as command
from jaxpneumo import main
from jaxpneumo.process.errors import BAD_INPUT, DONE, FAILED, InputError, TrainingError, exit_code


def run(*arguments: str, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, cwd=REPOSITORY, check=False, **kwargs
    )


@pytest.mark.parametrize("verb", sorted(command.VERBS))
def test_every_verb_has_help_with_an_example(verb):
    result = run("jaxpneumo", verb, "--help")
    assert result.returncode == 0
    example = rf"^(example: | +)(jaxpneumo {verb} \S|python -m jaxpneumo\.main --config=)"
    assert re.search(example, result.stdout, re.MULTILINE)


def test_help_lists_the_verbs():
    result = run("jaxpneumo")
    assert result.returncode == DONE
    for verb in command.VERBS:
        assert verb in result.stdout
    assert "Not a medical device" in result.stdout
    wrong = run("jaxpneumo", "trian")
    assert wrong.returncode == BAD_INPUT
    assert "train" in wrong.stderr


def test_starting_up_loads_neither_jax_nor_the_network():
    """Grain's worker processes import the main module again: it must stay light and off the accelerator."""
    code = "import sys, jaxpneumo.main, jaxpneumo.__main__; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--config=configs/exp5.py"),
        (["--config=configs/absent.py"], "configs/absent.py"),
        (["configs/exp1.py"], "jaxpneumo: no config: write --config=configs/exp1.py.\n"),
        (["--confg=configs/exp1.py"], 'jaxpneumo: there is no option --confg. Did you mean "--config"?\n'),
        (["--config=configs/exp5.py", "--config.stage1.epochs=many"], "epochs"),
        (["--config=configs/augmentation_study.py:A9"], "A1+A2"),
        (["--config=configs/exp5.py", "epochs=2"], "--config.stage1.epochs=2"),
        (["--config=configs/exp5.py", "--config.data.directory=absent"], "jaxpneumo prepare"),
    ],
)
def test_wrong_use_is_answered_in_words(arguments, words, tmp_path):
    result = run("jaxpneumo.main", *arguments, f"--workdir={tmp_path}")
    assert result.returncode == BAD_INPUT
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_config_that_is_no_config_is_refused(tmp_path):
    (tmp_path / "empty.py").write_text("get_config = None\n")
    (tmp_path / "broken.py").write_text("def get_config(:\n")
    for name in ("empty", "broken"):
        result = run("jaxpneumo.main", f"--config={tmp_path / name}.py", f"--workdir={tmp_path / 'run'}")
        assert result.returncode == BAD_INPUT
        assert f"{name}.py" in result.stderr
        assert "Traceback" not in result.stderr


def test_config_without_a_section_names_what_is_missing(tmp_path):
    (tmp_path / "half.py").write_text(
        "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({'seed': 0})\n"
    )
    result = run("jaxpneumo.main", f"--config={tmp_path / 'half.py'}", f"--workdir={tmp_path / 'run'}")
    assert result.returncode == BAD_INPUT
    assert "stage1 is missing" in result.stderr


@pytest.mark.long
def test_batch_size_and_weights_are_checked_before_training(prepared, tmp_path):
    """On two devices; the file of weights is empty."""
    shrunk = ["--config.model.depths=(1,1,1,1)", "--config.model.width=8", "--config.stage1.size=32"]
    shrunk += ["--config.stage2.size=64", "--config.predict.size=64", f"--config.data.directory={prepared}"]
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    arguments = ["jaxpneumo.main", "--config=configs/exp5.py", *shrunk, f"--workdir={tmp_path / 'run'}"]
    result = run(*arguments, "--config.stage1.batch_size=5", env=environment)
    assert result.returncode == BAD_INPUT
    assert "stage1.batch_size=5" in result.stderr
    (tmp_path / "weights.safetensors").write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
    weights = f"--config.model.pretrained={tmp_path / 'weights.safetensors'}"
    result = run(*arguments, weights, "--config.model.encoder=resnet34", env=environment)
    assert result.returncode == BAD_INPUT
    assert "weights.safetensors holds no weights" in result.stderr


def test_failures_become_exit_codes(capsys):
    def fail(error):
        def verb(arguments):
            raise error

        return exit_code(verb, [])

    assert fail(InputError("the way out")) == BAD_INPUT
    assert fail(TrainingError("the loss")) == FAILED
    assert fail(KeyboardInterrupt()) == 130
    assert "the way out" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        fail(ZeroDivisionError())


def test_main_names_the_runs_folder_by_its_config(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    seen = {}
    monkeypatch.setattr(main, "run", lambda config, workdir: seen.update(workdir=str(workdir)) or DONE)
    assert main.main([f"--config={REPOSITORY}/configs/augmentation_study.py:A1+A2"]) == DONE
    assert seen == {"workdir": "runs/augmentation_study_A1+A2"}
