"""Importing this package changes nothing in the process, and the floor of `process` has no circle."""

import ast
import json
import warnings
from pathlib import Path

import numpy as np
import pydicom
from commands import run
from helpers import REPOSITORY

from jaxpneumo.dicom import dicom

PROCESS = REPOSITORY / "jaxpneumo" / "process"

# Every module of the package, one after the other; what they have changed in the process is printed.
PROBE = """
import csv, json, logging, os, signal, sys, warnings
# What these change themselves is theirs.
import cv2, flax, grain, matplotlib.figure, ml_collections.config_flags, numpy, optax, orbax.checkpoint, scipy.stats
import jinja2, pydicom.config, pydicom.pixels, simplejpeg, tqdm
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
import albumentations
del os.environ["NO_ALBUMENTATIONS_UPDATE"]
from importlib import import_module

def state():
    return {
        "environment": dict(os.environ),
        "warnings": [str(each) for each in warnings.filters],
        "threads": cv2.getNumThreads(),
        "pydicom": [logging.getLogger("pydicom").level, pydicom.config.settings.reading_validation_mode],
        "absl": logging.getLogger("absl").level,
        "handlers": len(logging.getLogger().handlers),
        "sigterm": str(signal.getsignal(signal.SIGTERM)),
        "field": csv.field_size_limit(),
    }

before = state()
for name in sys.argv[1:]:
    import_module(name)
after = state()
print(json.dumps({key: [before[key], after[key]] for key in before if before[key] != after[key]}))
"""


def test_importing_changes_nothing():
    paths = sorted((REPOSITORY / "jaxpneumo").rglob("*.py"))
    names = [".".join(path.relative_to(REPOSITORY).with_suffix("").parts) for path in paths]
    names = [name for name in names if not name.endswith(("__init__", "__main__"))]
    assert {"jaxpneumo.process.runtime", "jaxpneumo.dicom.dicom", "jaxpneumo.train.loop"} <= set(names)
    done = run("-c", PROBE, *names, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {}


def test_albumentations_leaves_the_environment_as_it_was():
    probe = "import os, jaxpneumo.augment.host; print(os.environ.get('NO_ALBUMENTATIONS_UPDATE'))"
    assert run("-c", probe, timeout=300).stdout.strip() == "None"


def imports_of(path: Path) -> set[str]:
    """The modules of `process` that one of them imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "jaxpneumo.process":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxpneumo.process."):
            found.add(node.module.rsplit(".", 1)[1])
    return found


def test_process_has_no_circle():
    needs = {path.stem: imports_of(path) for path in PROCESS.glob("*.py") if path.stem != "__init__"}
    assert needs["recording"] >= {"atomic", "run_report"}, "the imports are found"
    while free := {name for name, others in needs.items() if not others & needs.keys()}:
        needs = {name: others for name, others in needs.items() if name not in free}
    assert not needs, f"these import each other: {needs}"


LEAK = """
import logging, sys, warnings
from multiprocessing import get_context
from pathlib import Path

def read(path):
    logging.basicConfig(level=logging.DEBUG)
    warnings.simplefilter("always")
    from jaxpneumo.dicom import dicom
    print(dicom.read_image(path).image.shape, dicom.read_uid(Path(path).read_bytes()))

if __name__ == "__main__":
    read(sys.argv[1])
    process = get_context("spawn").Process(target=read, args=sys.argv[1:2])
    process.start()
    process.join()
    with warnings.catch_warnings():
        read(sys.argv[1])
    read(sys.argv[1])
"""


def test_no_warning_tells_a_header_value(tmp_path):
    """As a library and in a worker process, though all warnings are asked for and filters come and go."""
    file = tmp_path / "a.dcm"
    dicom.write(file, np.arange(64 * 64, dtype=np.uint8).reshape(64, 64), "1.2.3", "P1", age=40)
    data = pydicom.dcmread(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Values that the standard forbids, as a hospital's system may write them; pydicom warns of each.
        data.PatientAge, data.PatientID, data.PatientSex = "SECRETAGE", "SECRETID" * 20, "secret sex"
        data.PatientBirthDate, data.SpecificCharacterSet = "SECRETDATE", "SECRETSET"
        data.PixelSpacing = ["0.1390000000000000000000001", "0.139"]
        data.save_as(file)
    loud = "import pydicom, sys; d = pydicom.dcmread(sys.argv[1]); d.decode(); str(d)"
    assert "SECRET" in run("-W", "always", "-c", loud, file).stderr, "pydicom alone does tell"
    script = tmp_path / "script.py"
    script.write_text(LEAK)
    done = run("-W", "always", script, file, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("(64, 64) 1.2.3") == 4
    assert "secret" not in (done.stdout + done.stderr).lower()
    assert "Warning" not in done.stderr
