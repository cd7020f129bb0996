"""What several test files share: shipped configs made small, a run's records, prepared arrays that may be spoilt."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxpneumo.data import dataset
from jaxpneumo.run import checkpoint
from jaxpneumo.run.config import Config, typed
from jaxpneumo.train.stages import train

REPOSITORY = Path(__file__).resolve().parent.parent


def load_config(name: str) -> ConfigDict:
    """A shipped config; an argument follows a colon."""
    file, _, argument = name.partition(":")
    specification = importlib.util.spec_from_file_location(file, REPOSITORY / "configs" / f"{file}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.get_config(*([argument] if argument else []))


def shrink(config: ConfigDict, data: Path) -> ConfigDict:
    """A shipped config made small: a tiny network of the same family, one epoch a stage, small images, each saved.

    Of the 24 images of the fixture `prepared`, 14 are for training, whether patients stay together or not. So the runs
    of all tests in one process share their compiled programs, unless network, loss or augmentation are others.
    """
    with config.unlocked():
        config.checkpoint_seconds = 0.0
    config.data.directory = str(data)
    config.data.validation_fraction = 0.4
    if "synthetic" in config.data:
        del config.data.synthetic
    config.model.depths = (1, 1, 1, 1)
    config.model.width = 8
    stages = [name for name in config if name.startswith("stage")]
    for stage in stages:
        config[stage].size = 32 if stage == "stage1" else 64
        config[stage].batch_size = 4
        config[stage].epochs = 1
        config[stage].swa_epochs = min(config[stage].swa_epochs, 1)
        if "warmup_epochs" in config[stage]:
            config[stage].warmup_epochs = min(config[stage].warmup_epochs, 1)
    config.predict.size = 32 if stages == ["stage1"] else 64
    config.predict.batch_size = 4
    config.predict.input = ""
    return config


def as_typed(config: ConfigDict) -> Config:
    """The dataclasses of a shipped config."""
    return typed(config.to_dict())


def train_interrupted(config: ConfigDict, folder: Path, epoch: int, stage: str = "stage1") -> None:
    """Trains until `epoch` epochs of a stage are saved, and is interrupted then."""
    original = checkpoint.save

    def save_then_stop(manager, step, state, progress):
        original(manager, step, state, progress)
        if progress["epoch"] == epoch and Path(manager.directory).parent.name == stage:
            manager.wait_until_finished()
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", save_then_stop)
        with pytest.raises(KeyboardInterrupt):
            train(as_typed(config), folder)


def writable_arrays(directory: Path, size: int) -> list[np.ndarray]:
    """Images and masks of one size, memory-mapped and writable, to make or to damage a data set by hand."""
    return [np.lib.format.open_memmap(path, "r+") for path, _ in dataset.array_files(directory, 0, (size,))]


def assert_same(one: Any, other: Any) -> None:
    """Two trees of arrays hold the same values."""
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=str(path))


def epoch_records(stage: Path) -> list[dict]:
    """What a stage logged of each epoch, without the speed, which is another each time."""
    records = [json.loads(line) for line in (stage / "log.jsonl").read_text().splitlines()]
    for record in records:
        record.pop("images_per_second")
    return records


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """One to three random changes: bits flipped, bytes overwritten, cut out or put in; half of them in the header."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        end = min(len(changed), 2000) if rng.random() < 0.5 else len(changed)
        place, length = int(rng.integers(end)), int(rng.integers(1, 40))
        kind = rng.integers(5)
        if kind == 0:
            changed[place] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            changed[place : place + length] = rng.bytes(length)
        elif kind == 2:
            changed[place:place] = rng.bytes(length)
        elif kind == 3:
            del changed[place : place + length]
        elif rng.random() < 0.3:
            del changed[place:]
        if len(changed) < 200:
            break
    return bytes(changed)
