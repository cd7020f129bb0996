"""Reads uploaded files in processes of their own, so that a damaged one cannot end or stop the server.

A file that crashes or hangs its decoder costs one process, which is replaced. The processes never import JAX. What a
header says about the patient does not leave them.
"""

import hashlib
import signal
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import numpy as np

from jaxpneumo.dicom.radiograph import Radiograph, RadiographError
from jaxpneumo.predict.reading import SECONDS, Picture, Reading, shrink_radiograph
from jaxpneumo.process.errors import InputError
from jaxpneumo.process.files import printable

START_SECONDS = 300.0


@dataclass(frozen=True, eq=False)
class Upload:
    """A radiograph that was read.

    Attributes:
      image: uint8 (H, W), native size.
      picture: the same at the network's size, and what is known of it; `source` is the file's name.
    """

    image: np.ndarray
    picture: Picture


class Decoders:
    """Threads, each with a process that reads the bytes of files.

    Args:
      count: number of processes.
      reading: the network's size, and whether images are accepted that are not frontal chest radiographs.
      seconds: time limit for one file.
    """

    def __init__(self, count: int, reading: Reading, seconds: float = SECONDS):
        self._reading, self._seconds = reading, seconds
        self._own, self._all = threading.local(), list[_Decoder]()
        self._threads = ThreadPoolExecutor(count, "decoder", initializer=self._begin)
        for _ in range(count):  # a thread and its process begin with the first work
            self._threads.submit(lambda: self._own.decoder.wait())

    def read(self, data: bytes, name: str) -> "Future[Upload]":
        """Reads a DICOM, PNG or JPEG file.

        Args:
          data: the whole file.
          name: what messages call it.

        Returns:
          The radiograph, soon; InputError if the file cannot be used.
        """
        return self._threads.submit(lambda: self._own.decoder.read(data, name))

    def close(self) -> None:
        """Ends the processes; a file that one of them is reading is refused."""
        for decoder in self._all:
            decoder.stop()
        self._threads.shutdown(cancel_futures=True)

    def _begin(self) -> None:
        self._own.decoder = _Decoder(self._reading, self._seconds)
        self._all.append(self._own.decoder)


class _Decoder:
    """One process, which the calling thread waits for; another takes its place when it is lost."""

    def __init__(self, reading: Reading, seconds: float):
        self._reading, self._seconds = reading, seconds
        self._start()

    def _start(self) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(target=_work, args=(theirs, self._reading), daemon=True)
        self._process.start()
        theirs.close()
        self._ready = False

    def wait(self) -> None:
        """Waits until the process can read files."""
        if not self._ready:
            self._ready = self._pipe.poll(START_SECONDS) and self._pipe.recv() == "ready"

    def read(self, data: bytes, name: str) -> Upload:
        """See `Decoders.read`."""
        why = "took too long"
        try:
            self.wait()
            self._pipe.send((data, name))
            if self._pipe.poll(self._seconds):
                found = self._pipe.recv()
                if isinstance(found, Upload):
                    return found
                raise InputError(found)
        except (EOFError, OSError):
            why = "crashed"
        self.stop()
        self._start()
        raise InputError(f"{name}: decoding it {why}. Export it again.")

    def stop(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.join()


def _work(pipe: Connection, reading: Reading) -> None:
    """The life of one process: it ends when the one that started it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Now, so that loading them does not count as a file's decoding time
    from jaxpneumo.dicom import dicom
    from jaxpneumo.process.runtime import one_thread_each

    one_thread_each()

    def read(data: bytes, name: str) -> Upload | str:
        try:
            return _upload(dicom.parse_image(data, name), data, name, reading)
        except RadiographError as error:
            return str(error)

    try:
        pipe.send("ready")
        while True:
            pipe.send(read(*pipe.recv()))
    except (EOFError, OSError):
        return


def _upload(radiograph: Radiograph, data: bytes, name: str, reading: Reading) -> Upload | str:
    """What the server gets of a radiograph, or why it cannot be used."""
    file = Picture(name, sha256=hashlib.sha256(data).hexdigest())
    picture = shrink_radiograph(reading, file, radiograph)
    if picture.reason:
        return f"{name}: {picture.reason}. A page that is started with --any-image predicts it all the same."
    return Upload(radiograph.image, replace(picture, uid=printable(radiograph.uid.strip())))
