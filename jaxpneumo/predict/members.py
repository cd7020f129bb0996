"""Several runs on one command line: the flags --workdir and --weights of an ensemble."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from jaxpneumo.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --workdir, as often as there are runs, and --weights."""
    parser.add_argument(
        "--workdir",
        action="append",
        required=True,
        help="a finished training run; given several times, or A,B, the mean of the runs' probabilities",
    )
    parser.add_argument("--weights", help="of the runs in that mean, such as 0.7,0.3 (default: equal ones)")


def read_workdirs(values: Sequence[str]) -> list[Path]:
    """The folders of --workdir flags, each of which may hold several between commas."""
    folders = [Path(part) for value in values for part in ([value] if Path(value).is_dir() else value.split(","))]
    if not all(folder.name for folder in folders):
        raise InputError(f"--workdir {','.join(values)} has an empty name in it. Give folders of runs: A or A,B.")
    return folders


def read_weights(value: str | None, count: int) -> list[float]:
    """`count` weights that sum up to 1.

    Args:
      value: numbers between commas, 0 or more and not all 0; None for equal ones.
      count: of the runs.

    Raises:
      InputError: they are no such numbers, or not as many.
    """
    if value is None:
        return [1 / count] * count
    try:
        weights = [float(part) for part in value.split(",")]
    except ValueError as error:
        raise InputError(f"--weights {value} are not numbers between commas. Give for example 0.7,0.3.") from error
    total = sum(weights)
    if not (all(weight >= 0 for weight in weights) and 0 < total < math.inf):
        raise InputError(f"--weights {value}: give numbers of 0 or more, not all of them 0.")
    if len(weights) != count:
        raise InputError(f"--weights {value} are {len(weights)} for {count} runs. Give one for each --workdir.")
    return [weight / total for weight in weights]
