"""Predicts pictures that come one by one, in batches of those that wait. One thread computes, with one model."""

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

import numpy as np

from jaxpneumo.predict.certainty import bands_of
from jaxpneumo.predict.finding import Finding, predict_findings
from jaxpneumo.predict.reading import Picture

if TYPE_CHECKING:  # what needs JAX is imported where it is used
    from jaxpneumo.predict.infer import Predictor

Describe = Callable[[], Finding]  # of `predict_findings`


@dataclass(frozen=True, eq=False)
class _Job:
    """A picture that waits, with the probability threshold of its mask; None: the run's own."""

    picture: Picture
    threshold: float | None
    result: "Future[Describe]" = field(default_factory=Future)


class Engine:
    """A thread that predicts what is handed to it.

    Pictures that wait are predicted in one batch, if there are at least half as many as a batch has. Otherwise each has
    a batch of its own, as for `jaxpneumo predict` with a single file.

    Args:
      predictor: on one device; its settings have the batch size.
    """

    def __init__(self, predictor: "Predictor"):
        self.predictor = predictor
        self.bands = bands_of(predictor)
        self.ready = threading.Event()  # set when the network is compiled for a single picture
        self._waiting: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="predict", daemon=True)
        self._thread.start()

    def predict(self, picture: Picture, threshold: float | None = None) -> "Future[Describe]":
        """Finds pneumothorax in one picture.

        Args:
          picture: with its image at the network's size.
          threshold: probability threshold of the mask; None uses the run's.

        Returns:
          Soon, what makes the finding with its probability: for another thread than the one that computes.
        """
        job = _Job(picture, threshold)
        self._waiting.put(job)
        return job.result

    def at(self, threshold: float | None) -> "Predictor":
        """The predictor with another probability threshold; None: the run's."""
        if threshold is None:
            return self.predictor
        return replace(self.predictor, settings=replace(self.predictor.settings, threshold=threshold))

    def close(self) -> None:
        """Ends the thread after the batch that it computes."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        side = self.predictor.settings.size
        with suppress(Exception):  # the first picture then says what is wrong
            self._describe([Picture("", image=np.zeros((side, side), np.uint8), height=side, width=side)], 1, None)
        self.ready.set()
        most, job = self.predictor.settings.batch_size, self._waiting.get()
        while job is not None:
            jobs = [job]
            with suppress(Empty):
                while len(jobs) < most and (job := self._waiting.get_nowait()) is not None:
                    jobs.append(job)
            self._answer([one for one in jobs if one.result.set_running_or_notify_cancel()])
            job = self._waiting.get() if job is not None else None

    def _answer(self, jobs: Sequence[_Job]) -> None:
        """Hands out the results of jobs. If a batch fails, each of its pictures is tried alone."""
        most = self.predictor.settings.batch_size
        for threshold in {job.threshold for job in jobs}:
            alike = [job for job in jobs if job.threshold == threshold]
            if 1 < most <= 2 * len(alike):
                with suppress(Exception):
                    found = self._describe([job.picture for job in alike], most, threshold)
                    for job, describe in zip(alike, found, strict=True):
                        job.result.set_result(describe)
            for job in alike:
                if not job.result.done():
                    try:
                        job.result.set_result(self._describe([job.picture], 1, threshold)[0])
                    except Exception as error:
                        job.result.set_exception(error)

    def _describe(self, pictures: Iterable[Picture], batch_size: int, threshold: float | None) -> list[Describe]:
        predictor = self.at(threshold)
        predictor = replace(predictor, settings=replace(predictor.settings, batch_size=batch_size))
        return [describe for _, describe in predict_findings(predictor, pictures, self.bands, probability=True)]
