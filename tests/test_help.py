"""What a verb's help loads: it answers at once, and a verb that does not compute never loads what computes."""

import json
import os
import subprocess
import sys

import pytest
from helpers import REPOSITORY

from jaxpneumo.__main__ import VERBS
from jaxpneumo.bench.bench import BENCHMARKS

SLOW = ("jax", "jaxlib", "flax", "optax", "orbax", "grain", "scipy", "matplotlib", "albumentations", "pydicom", "tqdm")
SLOW += ("onnx", "onnxruntime", "openvino")
SLOW += ("pynetdicom", "dicomweb_client", "highdicom")

# The command in this process, and then which modules it has loaded and whether it would have started anew.
PROBE = """
import json, os, sys
os.environ.pop("GLIBC_TUNABLES", None)
def no_new_start(*_):
    raise AssertionError("the command starts anew")
os.execv = no_new_start
from jaxpneumo.__main__ import main
try:
    code = main()
except SystemExit as end:  # argparse leaves so after a help
    code = end.code
print("\\n" + json.dumps([code, sorted(sys.modules)]))
"""


def after(*arguments: str) -> tuple[int, str, set[str]]:
    """Exit code, output and top-level modules of a command in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    line = [sys.executable, "-c", PROBE, *arguments]
    done = subprocess.run(line, capture_output=True, text=True, env=environment, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    text, _, last = done.stdout.rstrip().rpartition("\n")
    code, modules = json.loads(last)
    return code, text, {name.split(".")[0] for name in modules}


@pytest.mark.parametrize("verb", [*sorted(VERBS), *(f"bench {name}" for name in BENCHMARKS)])
def test_the_help_of_a_verb_loads_nothing_slow(verb):
    code, text, modules = after(*verb.split(), "--help")
    assert code == 0
    assert "usage:" in text or "jaxpneumo.main --config" in text
    assert modules.isdisjoint(SLOW), modules.intersection(SLOW)
    assert "jaxpneumo" in modules


def test_verbs_that_do_not_compute_never_load_jax(prepared, tmp_path):
    drawn = str(tmp_path / "drawn")
    for arguments in (
        ("synthesize", "--output", drawn, "--count", "2", "--size", "32", "--workers", "1"),
        ("verify", "--data", str(prepared)),
        ("split", "--data", str(prepared), "--output", str(tmp_path / "splits.json")),
        ("describe", "--data", str(prepared)),
    ):
        code, text, modules = after(*arguments)
        assert code == 0, text
        assert modules.isdisjoint({"jax", "orbax", "grain", "albumentations"}), arguments[0]


def test_what_computes_is_told_from_what_does_not():
    computes = {"train", "evaluate", "predict", "export", "import", "bench", "listen", "dicomweb", "page"}
    assert {name for name, verb in VERBS.items() if verb.computes} == computes
