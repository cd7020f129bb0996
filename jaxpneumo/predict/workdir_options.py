"""The flags --workdir and --weights, which name the runs of an ensemble and their weights."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from jaxpneumo.process import places
from jaxpneumo.process.arguments import Parser
from jaxpneumo.process.errors import InputError
from jaxpneumo.process.ranges import Several, number

WEIGHTS = Several(number(0, 1e6))


def add_arguments(parser: Parser, required: bool = True) -> None:
    """Adds --workdir, which can be repeated for several runs, and --weights."""
    parser.add_argument(
        "--workdir",
        action="append",
        required=required,
        help="folder of a finished run; repeat it, or give A,B, to average the probabilities of several runs",
    )
    parser.add_argument(
        "--weights",
        type=WEIGHTS,
        metavar="W,W",
        help="weights of the runs in the average, such as 0.7,0.3 (default: equal)",
    )


def read_workdirs(values: Sequence[str]) -> list[Path]:
    """The folders of all --workdir flags. One flag may name several folders, separated by commas.

    Raises:
      InputError: a name is empty, or a folder is named twice.
    """
    named = [part for value in values for part in ([value] if Path(value).is_dir() else value.split(","))]
    try:
        workdirs = [places.path(part) for part in named]
    except argparse.ArgumentTypeError:
        text = f"--workdir {','.join(values)} contains an empty name. Give folders of runs: A or A,B."
        raise InputError(text) from None
    real = [workdir.resolve() for workdir in workdirs]
    if twice := [workdir for place, workdir in enumerate(workdirs) if real[place] in real[:place]]:
        raise InputError(f"--workdir {twice[0]} is given twice. Name each run once; --weights gives it more weight.")
    return workdirs


def read_weights(weights: Sequence[float] | None, count: int) -> list[float]:
    """Normalises the weights of the runs, so that they sum to 1.

    Args:
      weights: one weight of 0 or more for each run, not all 0. None means equal weights.
      count: number of runs.

    Raises:
      InputError: all weights are 0, or their number is not `count`.
    """
    if weights is None:
        return [1 / count] * count
    total, given = sum(weights), ",".join(f"{weight:g}" for weight in weights)
    if not total > 0:
        raise InputError(f"--weights {given}: at least one weight must be above 0.")
    if len(weights) != count:
        raise InputError(
            f"--weights {given}: {len(weights)} weights for {count} runs. Give one weight for each --workdir."
        )
    return [weight / total for weight in weights]
