"""Predicts radiographs that come one by one, in batches of those that wait. One thread computes, with one model."""

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue

import numpy as np

from jaxpneumo.api import LoadedModel, Result
from jaxpneumo.dicom.radiograph import Radiograph

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Job:
    """A radiograph that waits, with the probability threshold of its mask; None: the run's own."""

    radiograph: Radiograph
    threshold: float | None
    result: "Future[Result]" = field(default_factory=Future)


class Engine:
    """A thread that predicts what is handed to it.

    Radiographs that wait are predicted in a batch, if there are at least half as many as a batch has. Otherwise each
    has a batch of its own, as for `jaxpneumo predict` with a single file.

    Args:
      model: the model; its settings have the batch size.
    """

    def __init__(self, model: LoadedModel):
        self.model = model
        self.ready = threading.Event()  # set when the network is compiled for a single image
        self._waiting: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="predict", daemon=True)
        self._thread.start()

    def predict(self, radiograph: Radiograph, threshold: float | None = None) -> "Future[Result]":
        """Finds pneumothorax in one radiograph, of whatever view.

        Args:
          radiograph: as the reader gives it.
          threshold: probability threshold of the mask; None uses the run's.
        """
        job = _Job(radiograph, threshold)
        self._waiting.put(job)
        return job.result

    def close(self) -> None:
        """Ends the thread after the batch that it computes."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        side = self.model.predictor.settings.size
        ramp = np.linspace(0, 255, side * side).reshape(side, side).astype(np.uint8)
        with suppress(Exception):  # the first radiograph then says what is wrong
            self.model.predict(ramp)
        self.ready.set()
        most, job = self.model.predictor.settings.batch_size, self._waiting.get()
        while job is not None:
            jobs = [job]
            with suppress(Empty):
                while len(jobs) < most and (job := self._waiting.get_nowait()) is not None:
                    jobs.append(job)
            self._answer([job for job in jobs if job.result.set_running_or_notify_cancel()])
            job = self._waiting.get() if job is not None else None

    def _answer(self, jobs: Sequence[_Job]) -> None:
        """Predicts jobs and hands out the results. A failure of a batch leaves those without one to be tried alone."""
        for threshold in {job.threshold for job in jobs}:
            alike = [job for job in jobs if job.threshold == threshold]
            model = self._model(threshold)
            if len(alike) > 1 and 2 * len(alike) >= self.model.predictor.settings.batch_size:
                with suppress(Exception):
                    results = model.predict([job.radiograph for job in alike], any_image=True)
                    for job, result in zip(alike, results, strict=True):
                        job.result.set_result(result)
            for job in alike:
                if not job.result.done():
                    try:
                        job.result.set_result(model.predict(job.radiograph, any_image=True))
                    except Exception as error:
                        job.result.set_exception(error)

    def _model(self, threshold: float | None) -> LoadedModel:
        if threshold is None:
            return self.model
        predictor = self.model.predictor
        return replace(self.model, predictor=replace(predictor, settings=replace(predictor.settings, threshold=threshold)))
