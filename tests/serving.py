"""The shared run behind a page, for tests of the server and of the page."""

from dataclasses import replace
from pathlib import Path

from jaxpneumo.api import LoadedModel
from jaxpneumo.predict.ensemble import load_ensemble

# With these the run outlines something in most of the shared radiographs, and nothing in others.
OUTLINING = {"threshold": 0.3, "removal_threshold": 2048}


def model_of(workdir: Path, batch_size: int = 1) -> LoadedModel:
    """The run on one device, with thresholds that leave outlines."""
    predictor = load_ensemble([workdir], [1.0], 1)
    return LoadedModel(replace(predictor, settings=replace(predictor.settings, **OUTLINING, batch_size=batch_size)))


def options_of(threshold: float = OUTLINING["threshold"]) -> list[str]:
    """The options with which `jaxpneumo predict` uses the same."""
    return [f"--threshold={threshold}", f"--removal-threshold={OUTLINING['removal_threshold']}", "--overlays=0"]
