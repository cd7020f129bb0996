"""The flags --gate and --gate-thresholds: another run that decides which images show anything."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from jaxpneumo.predict import saved_thresholds
from jaxpneumo.process import places
from jaxpneumo.process.arguments import Parser
from jaxpneumo.process.errors import InputError

if TYPE_CHECKING:  # what needs JAX is imported where it is used
    from jaxpneumo.predict.infer import Predictor
    from jaxpneumo.run.config import Predict


def add_arguments(parser: Parser) -> None:
    """Adds --gate and --gate-thresholds."""
    add = parser.add_argument
    add("--gate", type=places.path, metavar="RUN", help="leave images empty in which this run outlines nothing")
    add("--gate-thresholds", metavar="NAME", help="saved thresholds of that run (default: its config's)")


def load_gate(workdir: Path | None, thresholds: str | None, settings: "Predict") -> "Predictor | None":
    """Loads the gate of predictions with these settings.

    Args:
      workdir: a finished run; None: there is no gate.
      thresholds: name of thresholds that it saved; None: those of its config.
      settings: the predictions' settings.

    Raises:
      InputError: the folder is no finished run or has no such thresholds, there are thresholds without a gate, the
        gate takes larger images than the predictions, or it removes components one by one.
    """
    if workdir is None:
        if thresholds:
            raise InputError("--gate-thresholds needs --gate RUN.")
        return None
    from jaxpneumo.predict.infer import load_predictor

    gate = load_predictor(workdir, settings.batch_size)
    if gate.settings.size > settings.size:
        raise InputError(
            f"--gate {workdir} predicts at size {gate.settings.size}, which is more than the {settings.size} of the "
            "images here. Take a gate of the same size or a smaller one."
        )
    if thresholds:
        gate = replace(gate, settings=saved_thresholds.use(workdir, thresholds, gate.settings))
    # The device decides for a gate, by areas of whole images; components are counted on the host.
    if gate.settings.removal_rule == "component" and gate.settings.removal_threshold:
        raise InputError(
            f'--gate {workdir} removes components one by one (rule "component"), and a gate decides on whole images. '
            f"Choose thresholds for it, `jaxpneumo thresholds --workdir {workdir} --rule image`, and give "
            "--gate-thresholds image."
        )
    return gate


def describe(gate: "Predictor") -> dict[str, Any]:
    """The gate's weights' fingerprint and settings, for records."""
    return {"model": gate.model_id, **_of_settings(gate)}


def mask_settings(predictor: "Predictor") -> dict[str, Any]:
    """All that changes a mask beside the weights, for records; of the gate, too."""
    chosen = _of_settings(predictor) | {"dtype": predictor.config.model.dtype}
    if predictor.runtime:
        chosen["runtime"] = predictor.runtime
    if predictor.weighted_runs:
        chosen["weights"] = [weight for _, weight in predictor.weighted_runs]
    if predictor.gate is not None:
        chosen["gate"] = describe(cast("Predictor", predictor.gate))
    return chosen


def _of_settings(predictor: "Predictor") -> dict[str, Any]:
    names = ("size", "tta", *saved_thresholds.NAMES, *saved_thresholds.NAMES_OF_TRIPLET, saved_thresholds.CLASSIFIER)
    return {name: value for name in names if (value := getattr(predictor.settings, name)) is not None}
