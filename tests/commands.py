"""The verbs as functions and as processes, for tests of what all of them have."""

import os
import subprocess
import sys

from helpers import REPOSITORY

from jaxpneumo import __main__ as command
from jaxpneumo.bench.bench import BENCHMARKS

# Modules whose `main` is a verb; train has a command line of its own.
MAINS = {name: verb.module for name, verb in command.VERBS.items() if name not in ("train", "bench")}
MAINS |= {f"bench {what}": f"jaxpneumo.bench.bench_{what}" for what in BENCHMARKS}


def run(*arguments, **kwargs) -> subprocess.CompletedProcess:
    """The command in a process of its own."""
    line = [sys.executable, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(line, capture_output=True, text=True, env=environment, check=False, **kwargs)
