"""Reads uploaded files in processes of their own, so that a damaged one cannot end or stop the server.

A file that crashes or hangs its decoder costs one process, which is replaced. The processes never import JAX. What a
header says about the patient does not leave them.
"""

import signal
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from jaxpneumo.data.reconcile import NOT_FRONTAL
from jaxpneumo.dicom import frontal
from jaxpneumo.dicom.radiograph import Radiograph, RadiographError
from jaxpneumo.predict.reading import SECONDS
from jaxpneumo.process.errors import InputError

START_SECONDS = 300.0


class Decoders:
    """Threads, each with a process that reads the bytes of files.

    Args:
      count: number of processes.
      any_image: also accepts images that are not frontal chest radiographs.
      seconds: time limit for one file.
    """

    def __init__(self, count: int, any_image: bool = False, seconds: float = SECONDS):
        self._any_image, self._seconds = any_image, seconds
        self._own, self._all = threading.local(), list[_Decoder]()
        self._threads = ThreadPoolExecutor(count, "decoder", initializer=self._begin)

    def read(self, data: bytes, name: str) -> "Future[Radiograph]":
        """Reads a DICOM, PNG or JPEG file.

        Args:
          data: the whole file.
          name: what messages call it.

        Returns:
          The radiograph, without what its header says about the patient; InputError if the file cannot be used.
        """
        return self._threads.submit(lambda: self._own.decoder.read(data, name))

    def close(self) -> None:
        """Ends the processes; a file that one of them is reading is refused."""
        for decoder in self._all:
            decoder.stop()
        self._threads.shutdown(cancel_futures=True)

    def _begin(self) -> None:
        self._own.decoder = _Decoder(self._any_image, self._seconds)
        self._all.append(self._own.decoder)


class _Decoder:
    """One process, which the calling thread waits for; another takes its place when it is lost."""

    def __init__(self, any_image: bool, seconds: float):
        self._any_image, self._seconds = any_image, seconds
        self._start()

    def _start(self) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(target=_work, args=(theirs, self._any_image), daemon=True)
        self._process.start()
        theirs.close()

    def read(self, data: bytes, name: str) -> Radiograph:
        """See `Decoders.read`."""
        why = "crashed"
        try:
            if self._pipe.poll(START_SECONDS) and self._pipe.recv() == "ready":
                self._pipe.send((data, name))
                if self._pipe.poll(self._seconds):
                    found = self._pipe.recv()
                    if isinstance(found, Radiograph):
                        return found
                    raise InputError(found)
                why = "took too long"
        except (EOFError, OSError):  # it died
            pass
        self.stop()
        self._start()
        raise InputError(f"{name}: decoding it {why}. Export it again.")

    def stop(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.join()


def _work(pipe: Connection, any_image: bool) -> None:
    """The life of one process: it ends when the one that started it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Before the first file, so that loading pydicom does not count as its decoding time
    from jaxpneumo.dicom import dicom
    from jaxpneumo.process.runtime import one_thread_each

    one_thread_each()

    def read(data: bytes, name: str) -> Radiograph | str:
        try:
            return _checked(dicom.parse_image(data, name), name, any_image)
        except RadiographError as error:
            return str(error)

    try:
        while True:
            pipe.send("ready")
            pipe.send(read(*pipe.recv()))
    except (EOFError, OSError):
        return


def _checked(radiograph: Radiograph, name: str, any_image: bool) -> Radiograph | str:
    """The radiograph without its patient, or why it is not used."""
    if not any_image and (wrong := frontal.not_frontal(radiograph)):
        return f"{name}: {NOT_FRONTAL}: {wrong}. A page started with --any-image predicts it all the same."
    return replace(radiograph, patient_id="", sex="", age=None)
