"""How the tests run: in several processes, with quick compilation; and what is made once for all of them.

The whole suite runs in as many processes as there are cores, and so do `-m long` and `-m 'not slow'`. Tests that are
chosen by a path, `-k` or `-m slow` run in one process, which starts sooner. `-n 0` and `-n 2` choose otherwise.
"""

import fcntl
import logging
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from jaxpneumo.process import machine, runtime

# Before JAX and the libraries of linear algebra start: two devices of the one CPU; for each of several test processes
# its share of the cores; and compilation that takes a third of the time, without optimisation and with XLA's older
# emitters of fusions. All other flags are the users'. Tests that pin figures or bits to rounding compile as users do
# (test_model.py, test_processes.py).
os.environ.setdefault(
    "XLA_FLAGS",
    runtime.xla_flags(
        "--xla_force_host_platform_device_count=2 --xla_cpu_use_fusion_emitters=false", runtime.jaxlib_version()
    ),
)
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if processes := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    for variable in ("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(variable, str(max(machine.cores() // processes, 1)))

import pytest
from absl import flags
from helpers import REPOSITORY, as_typed, load_config, shrink

from jaxpneumo.data.prepare import prepare
from jaxpneumo.process import command, progress
from jaxpneumo.synthetic import radiographs as synthetic

MOST_PROCESSES = 8  # each needs about 2 GB of memory

runtime.one_thread_each()
# Grain reads absl's flags, which pytest leaves unparsed.
flags.FLAGS.mark_as_parsed()


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """The processes of `-n auto`; 0 is this one."""
    chosen = config.option.keyword or config.args_source != pytest.Config.ArgsSource.TESTPATHS
    return 0 if chosen or config.option.markexpr == "slow" else min(machine.cores(), MOST_PROCESSES)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data beside the checkout; tests that need it skip where it is absent."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip("the reference data ../shared is not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def common(tmp_path_factory) -> Path:
    """A folder that all processes of this test session share."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "common"
    folder.mkdir(exist_ok=True)
    return folder


def made_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """A folder that the first process to ask for it makes; the others wait."""
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder.with_suffix(".done")
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a process that failed on the way
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session", autouse=True)
def _compile_once(request):
    """Equal programs of different tests, of the processes that they start and of later test runs are compiled once."""
    import jax

    settings = {
        "jax_compilation_cache_dir": str(request.config.cache.mkdir("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.2,
    }
    for name, value in settings.items():
        os.environ[name.upper()] = str(value)
        jax.config.update(name, value)


@pytest.fixture(scope="session")
def radiographs(common) -> Path:
    """A folder of 24 small synthetic radiographs with labels.csv and patients.csv."""

    def make(folder: Path) -> None:
        synthetic.write(folder, 24, seed=3, size=128, positive_fraction=0.5, workers=1, quiet=True)

    return made_once(common / "dicom", make)


@pytest.fixture(scope="session")
def prepared(radiographs, common) -> Path:
    """The same, prepared at 32 and 64 pixels."""
    labels, patients = radiographs / "labels.csv", radiographs / "patients.csv"

    def make(folder: Path) -> None:
        prepare(radiographs, labels, folder, (32, 64), patients, workers=1, quiet=True)

    return made_once(common / "data", make)


@pytest.fixture(scope="session")
def evaluated(prepared, common) -> Path:
    """A finished and evaluated one-stage run of a tiny network on a patient-grouped split. Copy it to change it."""
    from jaxpneumo.evaluate.evaluate import main
    from jaxpneumo.process.errors import DONE
    from jaxpneumo.train.stages import train

    def make(folder: Path) -> None:
        config = shrink(load_config("exp2"), prepared)
        config.data.split = "patient"
        config.model.dtype = "float32"
        config.stage1.learning_rate = 0.01
        config.predict.threshold = 0.3
        config.predict.removal_threshold = 20000
        train(as_typed(config), folder)
        assert main(["--workdir", str(folder)]) == DONE

    return made_once(common / "run", make)


@pytest.fixture(scope="session")
def onnx_file(evaluated, common) -> Path:
    """The ONNX file of that run."""
    from jaxpneumo.export.export import main
    from jaxpneumo.process.errors import DONE

    def make(folder: Path) -> None:
        folder.mkdir()
        arguments = ["--workdir", str(evaluated), "--format", "onnx", "--output", str(folder / "run.onnx")]
        assert main(arguments) == DONE

    return made_once(common / "onnx", make) / "run.onnx"


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


@pytest.fixture
def compiled_as_for_users():
    """With the options AS_FOR_USERS: programs as users have them. Quick compilation rounds more coarsely."""
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
