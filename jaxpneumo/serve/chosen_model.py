"""The options of the verbs of this folder that say which model predicts, and the model that they name."""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from jaxpneumo.predict import gate, saved_thresholds, workdir_options
from jaxpneumo.process.arguments import Parser

if TYPE_CHECKING:  # what needs JAX is imported where it is used
    from jaxpneumo.predict.infer import Predictor


@dataclass(frozen=True)
class ModelOptions:
    """Which model predicts; see the options of the same names.

    Attributes:
      weights: one for each run, with the sum 1.
    """

    workdirs: tuple[Path, ...]
    weights: tuple[float, ...]
    thresholds: str | None = None
    gate: Path | None = None
    gate_thresholds: str | None = None
    any_image: bool = False


def add_arguments(parser: Parser) -> None:
    """Adds the options."""
    workdir_options.add_arguments(parser)
    add = parser.add_argument
    add("--thresholds", metavar="NAME", help="use the thresholds that `jaxpneumo thresholds` saved under this name")
    gate.add_arguments(parser)
    add("--any-image", action="store_true", help="also predict images that are not frontal chest radiographs")


def read_options(options: argparse.Namespace) -> ModelOptions:
    """The options as they were given. Raises InputError for weights that do not fit the runs."""
    workdirs = workdir_options.read_workdirs(options.workdir)
    return ModelOptions(
        tuple(workdirs),
        tuple(workdir_options.read_weights(options.weights, len(workdirs))),
        options.thresholds,
        options.gate,
        options.gate_thresholds,
        options.any_image,
    )


def load(options: ModelOptions, batch_size: int | None = None) -> "Predictor":
    """Loads the model.

    Args:
      options: which one.
      batch_size: replaces the run's.

    Raises:
      InputError: as `ensemble.load_ensemble`, `saved_thresholds.use` and `gate.load_gate`.
    """
    from jaxpneumo.predict.ensemble import load_ensemble

    predictor = load_ensemble(list(options.workdirs), list(options.weights), batch_size)
    settings = predictor.settings
    if options.thresholds:
        settings = saved_thresholds.use(options.workdirs[0], options.thresholds, settings)
    return replace(predictor, settings=settings, gate=gate.load_gate(options.gate, options.gate_thresholds, settings))
