"""launch/winner.sh: each network on each fold, from its own weights; what cannot be is refused before any training."""

import os
import subprocess
import sys

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers import REPOSITORY, as_typed, load_config
from safetensors.numpy import save_file

from jaxpneumo.model.pretrained import torch_name
from jaxpneumo.run.network import make_model
from jaxpneumo.run.state import variable_shapes

SCRIPT = REPOSITORY / "launch/winner.sh"
NETWORKS = ("resnet34", "resnet50", "se_resnext50_32x4d")


@pytest.fixture
def launch(tmp_path):
    """Runs the script with a python that writes down how it is called, but for checks of weight files."""
    python, calls = tmp_path / "bin/python", tmp_path / "calls"
    for folder in ("bin", "data", "images", "runs"):
        (tmp_path / folder).mkdir()
    python.write_text(
        f'#!/usr/bin/env bash\nif [[ $1 == -c ]]; then exec {sys.executable} "$@"; fi\necho "$@" >> {calls}\n'
    )
    python.chmod(0o755)
    (tmp_path / "runs/winner-folds-2.json").write_text('{"folds": [["a"], ["b"]]}')

    def run(*arguments, **environment):
        calls.write_text("")
        environment = {"RUNS": str(tmp_path / "runs"), "FOLDS": "2", "PYTHONPATH": str(REPOSITORY)} | environment
        environment = os.environ | {"PATH": f"{python.parent}:{os.environ['PATH']}"} | environment
        done = subprocess.run(
            [SCRIPT, "data", "images", *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        return done.returncode, done.stderr, calls.read_text().splitlines()

    return run


def weights(path, encoder):
    """A file of torchvision's names, large enough for the encoder to be told from the others; returns its name."""
    shapes, arrays = variable_shapes(make_model(as_typed(load_config(f"winner:{encoder}")).model)), {}
    for (_, *place), value in flatten_dict(shapes).items():
        if place[0] == "encoder":
            shape = (value.shape[3], value.shape[2], *value.shape[:2]) if len(value.shape) == 4 else value.shape
            arrays[torch_name(tuple(place)).removeprefix("encoder.")] = np.ones(shape, np.float32)
    save_file(arrays, path)
    return path.name


def test_each_network_starts_from_its_own_file(launch, tmp_path):
    files = {network: weights(tmp_path / f"{network}.safetensors", network) for network in ("resnet34", "resnet50")}
    chosen = " ".join(f"{network}={file}" for network, file in files.items())
    code, said, calls = launch("--config.seed=1", NETWORKS="resnet34 resnet50", WEIGHTS=chosen)
    for file in files.values():  # 190 MB
        (tmp_path / file).unlink()
    assert code == 0, said
    runs = [call for call in calls if "jaxpneumo.main" in call]
    assert len(runs) == 4
    for call, network in zip(runs, ("resnet34", "resnet34", "resnet50", "resnet50"), strict=True):
        assert f"--config=configs/winner.py:{network} " in call
        assert call.endswith(f" --config.model.pretrained={tmp_path / files[network]} --config.seed=1")


def test_without_weights_all_networks_start_untrained(launch):
    code, said, calls = launch()
    assert code == 0, said
    assert sum("--config=configs/winner.py:" in call for call in calls) == 2 * len(NETWORKS)
    assert not [call for call in calls if "pretrained" in call]


def test_the_script_knows_the_networks_of_the_config():
    assert f'all_networks="{" ".join(NETWORKS)}"' in SCRIPT.read_text()
    for network in NETWORKS:
        assert load_config(f"winner:{network}").model.encoder == network


@pytest.mark.parametrize(
    ("flags", "environment", "words"),
    [
        (["--config.model.pretrained=a.pth"], {}, 'give each network a file of its own: WEIGHTS="resnet34=FILE ...".'),
        (["--config.model.encoder=resnet50"], {}, "NETWORKS chooses the networks"),
        (["--config.data.fold=1"], {}, "the folds are made here: leave --config.data.fold=1 away."),
        (["--config.data.directory=x"], {}, "the first argument is the prepared data"),
        (["--workdir=x"], {}, "usage: "),
        ([], {"NETWORKS": "resnet34 vgg"}, "there is no network vgg; NETWORKS holds some of resnet34 resnet50"),
        ([], {"FOLDS": "1"}, "FOLDS=1 cannot be; give 2 or more."),
        ([], {"WEIGHTS": "resnet34.pth"}, "WEIGHTS holds NETWORK=FILE, and resnet34.pth is none."),
        ([], {"WEIGHTS": "resnet34=a", "NETWORKS": "resnet50"}, "resnet34 is none of the networks resnet50."),
        ([], {"WEIGHTS": "resnet34=here"}, "WEIGHTS has no file for resnet50; give one file a network."),
        ([], {"WEIGHTS": "resnet34=gone", "NETWORKS": "resnet34"}, "/gone for resnet34."),
        ([], {"WEIGHTS": "resnet34=here", "NETWORKS": "resnet34"}, "here does not fit resnet34: "),
    ],
)
def test_what_cannot_be_is_refused_before_any_network_is_trained(launch, tmp_path, flags, environment, words):
    """`here` holds the weights of something else."""
    save_file({"layer1.0.conv1.weight": np.ones((2, 2), np.float32)}, tmp_path / "here.safetensors")
    environment = {name: value.replace("=here", "=here.safetensors") for name, value in environment.items()}
    code, said, calls = launch(*flags, **environment)
    assert (code, calls) == (2, []), said
    assert words.replace("here does", "here.safetensors does") in said
