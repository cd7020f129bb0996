"""What several test files share: reference data, a small prepared data set, shipped configs made small."""

import importlib.util
import logging
import os
import signal
from pathlib import Path

from jaxpneumo.process import runtime

# Before JAX starts: the flags that users have, two devices of the one CPU, and compilation that does not optimise
# for long.
os.environ.setdefault(
    "XLA_FLAGS", runtime.xla_flags("--xla_force_host_platform_device_count=2", runtime.jaxlib_version())
)
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import numpy as np
import pytest
from absl import flags
from ml_collections import ConfigDict

from jaxpneumo.data import dataset
from jaxpneumo.data.prepare import prepare
from jaxpneumo.process import command, progress
from jaxpneumo.run.config import Config, typed
from jaxpneumo.synthetic import radiographs as synthetic

REPOSITORY = Path(__file__).resolve().parent.parent

runtime.one_thread_each()
# Grain reads absl's flags, which pytest leaves unparsed.
flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data beside the checkout; tests that need it skip where it is absent."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip("the reference data ../shared is not beside this checkout")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _compile_once(tmp_path_factory):
    """Equal programs of different tests are compiled once."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture(scope="session")
def radiographs(tmp_path_factory) -> Path:
    """A folder of 24 small synthetic radiographs with labels.csv and patients.csv."""
    folder = tmp_path_factory.mktemp("radiographs") / "dicom"
    synthetic.write(folder, 24, seed=3, size=128, positive_fraction=0.5, workers=1, quiet=True)
    return folder


@pytest.fixture(scope="session")
def prepared(radiographs, tmp_path_factory) -> Path:
    """The same, prepared at 32 and 64 pixels."""
    folder = tmp_path_factory.mktemp("prepared") / "data"
    prepare(
        radiographs,
        radiographs / "labels.csv",
        folder,
        (32, 64),
        radiographs / "patients.csv",
        workers=1,
        quiet=True,
    )
    return folder


@pytest.fixture(scope="session")
def evaluated(prepared, tmp_path_factory) -> Path:
    """A finished and evaluated one-stage run of a tiny network on a patient-grouped split. Copy it to change it."""
    from jaxpneumo.evaluate.evaluate import main
    from jaxpneumo.process.errors import DONE
    from jaxpneumo.train.stages import train

    folder = tmp_path_factory.mktemp("run")
    config = shrink(load_config("exp2"), prepared)
    config.data.split = "patient"
    config.data.validation_fraction = 0.4
    config.model.dtype = "float32"
    config.stage1.learning_rate = 0.01
    config.predict.threshold = 0.3
    config.predict.removal_threshold = 20000
    train(as_typed(config), folder)
    assert main(["--workdir", str(folder)]) == DONE
    return folder


@pytest.fixture
def as_before():
    """A command that a test runs in this process leaves its handlers, log and progress bars as they were."""
    handler, root = signal.getsignal(signal.SIGTERM), logging.getLogger()
    handlers, levels = root.handlers[:], (root.level, command.logger.level, logging.getLogger("absl").level)
    yield
    signal.signal(signal.SIGTERM, handler)
    root.handlers[:] = handlers
    for logger, level in zip((root, command.logger, logging.getLogger("absl")), levels, strict=True):
        logger.setLevel(level)
    progress.silent = False


def load_config(name: str) -> ConfigDict:
    """A shipped config; an argument follows a colon."""
    file, _, argument = name.partition(":")
    specification = importlib.util.spec_from_file_location(file, REPOSITORY / "configs" / f"{file}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.get_config(*([argument] if argument else []))


def shrink(config: ConfigDict, data: Path) -> ConfigDict:
    """A shipped config made small: a tiny network of the same family, one epoch a stage, small images."""
    config.data.directory = str(data)
    if "synthetic" in config.data:
        del config.data.synthetic
    config.model.depths = (1, 1, 1, 1)
    config.model.width = 8
    for stage, size in (("stage1", 32), ("stage2", 64)):
        if stage in config:
            config[stage].size = size
            config[stage].batch_size = 4
            config[stage].epochs = 1
            config[stage].swa_epochs = min(config[stage].swa_epochs, 1)
    config.predict.size = 64 if "stage2" in config else 32
    config.predict.batch_size = 4
    config.predict.input = ""
    return config


def as_typed(config: ConfigDict) -> Config:
    """The dataclasses of a shipped config."""
    return typed(config.to_dict())


def writable_arrays(directory: Path, size: int) -> list[np.ndarray]:
    """Images and masks of one size, memory-mapped and writable, to make or to damage a data set by hand."""
    return [np.lib.format.open_memmap(path, "r+") for path, _ in dataset.array_files(directory, 0, (size,))]
