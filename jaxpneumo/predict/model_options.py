"""The flags --model and --runtime: an exported model predicts in the place of a run."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, cast

from jaxpneumo.predict.onnx_session import RUNTIMES
from jaxpneumo.process import places
from jaxpneumo.process.arguments import Parser
from jaxpneumo.process.errors import InputError

if TYPE_CHECKING:  # this module imports JAX
    from jaxpneumo.predict.infer import Predictor

# What a model file has decided or cannot do, and why.
REFUSED = {
    "workdir": "the model has a run's weights",
    "weights": "a model is a single run's",
    "thresholds": "the thresholds that it was exported with are in the file; --threshold and the like change them",
    "tta": "its views are in the file; export it with another --tta",
    "gate": "a gate is a run; give both as --workdir and --gate",
    "gate_thresholds": "a gate is a run; give both as --workdir and --gate",
}


def add_arguments(parser: Parser) -> None:
    """Adds --model and --runtime."""
    add = parser.add_argument
    add(
        "--model", type=places.path, metavar="FILE", help="predict with this ONNX file of `jaxpneumo export`, not a run"
    )
    add("--runtime", choices=RUNTIMES, help=f"what computes --model, on the CPU (default: {RUNTIMES[0]})")


def check(options: argparse.Namespace) -> None:
    """Sees to it that there is either a run or a model, and nothing that does not go with it. Raises InputError."""
    if options.model is None:
        if options.workdir is None:
            raise InputError("--workdir RUN or --model FILE is missing: give what shall predict.")
        if options.runtime:
            raise InputError(f"--runtime {options.runtime} needs --model FILE.")
        return
    for name, why in REFUSED.items():
        if getattr(options, name) is not None:
            raise InputError(f"--{name.replace('_', '-')} does not go with --model: {why}.")


def load(path: Path, runtime: str | None, batch_size: int | None) -> "Predictor":
    """What predicts with a model. Raises InputError as `onnx_predictor.load_onnx`."""
    from jaxpneumo.predict.onnx_predictor import load_onnx

    # It has all that the pipeline asks of a run's predictor.
    return cast("Predictor", load_onnx(path, runtime or RUNTIMES[0], batch_size))
