"""An exported ONNX model in the place of a run: the pipeline of `jaxpneumo predict`, without JAX.

Files are read, shrunk, removed and written as ever. ONNX Runtime or OpenVINO computes the network, in float32, from
pictures that `reading` has shrunk to the network's size; of those the model's own output is the probability at that
size. NumPy makes the masks at native size. So masks differ from the run's where rounding decides, and nowhere else.
"""

import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxpneumo.predict.certainty import Bands
from jaxpneumo.predict.native import CLASSIFIER, NativeMask, no_numbers, pixels_at_least, to_native_on_host
from jaxpneumo.predict.onnx_session import Session, open_session, threshold_inputs
from jaxpneumo.process.errors import InputError
from jaxpneumo.run.config import Config, Predict, typed


@dataclass(frozen=True, kw_only=True)
class OnnxPredictor:
    """What the pipeline asks of `infer.Predictor`, of a model file.

    Attributes:
      session: the model, compiled for batches of `settings.batch_size` pictures at the network's size.
      settings: of the prediction. The views are those that the model was exported with.
      config: the run's.
      workdir: the file.
      model_id: fingerprint of the run's weights.
      synthetic: True if the run was trained on synthetic radiographs.
      runtime: what computes the network.
      bands: limits of the certainty from the run's evaluation; None without an evaluation.
      weighted_runs, gate: empty and None, as a model is a single run's.
    """

    session: Session
    settings: Predict
    config: Config
    workdir: Path
    model_id: str
    synthetic: bool
    runtime: str
    bands: Bands | None
    weighted_runs: tuple[tuple[Path, float], ...] = ()
    gate: None = None

    def find(
        self, images: Iterable[tuple[Any, np.ndarray, tuple[int, int]]], probability: bool
    ) -> Iterator[tuple[Any, NativeMask, float, np.ndarray | None]]:
        """As `infer.Predictor.find`, errors too."""
        settings, classifier, images = self.settings, self.config.model.classifier, iter(images)
        # The model's own masks are not used: the pipeline takes other thresholds and removes components too.
        given = threshold_inputs(settings, classifier)
        while group := list(itertools.islice(images, settings.batch_size)):
            pictures = np.zeros((settings.batch_size, settings.size, settings.size), np.uint8)
            pictures[: len(group)] = [picture for _, picture, _ in group]
            pixels, scores = self.session.run({"image": pictures, **given}, ["probability", "score"])
            for (key, _, size), of_one, score in zip(group, pixels, scores.tolist(), strict=False):
                if not (np.isfinite(of_one).all() and np.isfinite(score)):
                    raise no_numbers("network")
                finding = score if classifier else None
                yield key, native_mask(of_one, size, settings, finding), score, of_one if probability else None


def native_mask(
    probability: np.ndarray, size: tuple[int, int], settings: Predict, finding: float | None = None
) -> NativeMask:
    """The mask of one image at native size, by the rules of `infer.predict_masks`, in NumPy.

    Args:
      probability: float32 (S, S) at the network's size.
      size: native height and width.
      settings: of the prediction.
      finding: the classifier's probability; None without a classifier.
    """
    native = to_native_on_host(probability, *size)
    mask = native >= np.float32(settings.threshold)
    area = int(np.count_nonzero(mask))
    kept, emptied_by = area >= pixels_at_least(settings.removal_threshold, *size), ""
    if settings.top_threshold is not None and settings.top_area is not None:
        top = np.count_nonzero(native >= np.float32(settings.top_threshold))
        kept = kept and top >= pixels_at_least(settings.top_area, *size)
    own = settings.classifier_threshold
    if kept and area and own is not None and finding is not None and finding < own:
        kept, emptied_by = False, CLASSIFIER
    if not kept:
        mask, area = np.zeros_like(mask), 0
    return NativeMask(np.packbits(mask, axis=-1), *size, area, finding, emptied_by)


def load_onnx(path: Path, runtime: str, batch_size: int | None = None) -> OnnxPredictor:
    """Loads a model that `jaxpneumo export --format onnx` wrote.

    Args:
      path: the file.
      runtime: one of `onnx_session.RUNTIMES`.
      batch_size: number of images per call; None: 1, which is as fast and takes the least memory.

    Raises:
      InputError: the file is no such model, or the runtime is not installed.
    """
    session = open_session(path, runtime, batch_size or 1)
    told = session.metadata
    try:
        config = typed(json.loads(told["config"]))
        bands = json.loads(told["bands"])
        return OnnxPredictor(
            session=session,
            settings=replace(config.predict, batch_size=batch_size or 1),
            config=config,
            workdir=path,
            model_id=told["model"],
            synthetic=json.loads(told["synthetic"]),
            runtime=runtime,
            bands=bands and Bands(**bands),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is no model of `jaxpneumo export --format onnx`. Export the run again.") from error
