"""Reads files ahead of the prediction and shrinks them to the network's size, in separate processes.

Decoding is the slowest work of the host, and damaged files can crash or hang a decoder. The processes never import
JAX. They return pictures through shared memory of a fixed size. A pipe carries only the other attributes.
"""

import functools
import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np

from jaxpneumo.data import ids, ingest
from jaxpneumo.data.reconcile import NOT_FRONTAL
from jaxpneumo.data.resize import resize_to_squares
from jaxpneumo.dicom import frontal
from jaxpneumo.dicom.radiograph import Radiograph, RadiographError, read_file
from jaxpneumo.process import workers
from jaxpneumo.process.errors import InputError
from jaxpneumo.process.files import Stamp, printable, stamp_if_there
from jaxpneumo.process.machine import cores
from jaxpneumo.process.runtime import one_thread_each

SECONDS = 60.0  # time limit for decoding one file
FEW = 16  # up to this number of files, threads of this process read them: starting processes would take longer
WINDOW_BYTES = 32 << 20  # largest amount of shared memory; containers often have only 64 MiB
WINDOW = 128  # largest number of pictures that are read ahead


@dataclass(frozen=True)
class Picture:
    """A file that was read, or the reason why it is not used.

    Attributes:
      source: path of the file below the folder, with slashes.
      reason: why the file is not used; "" for a radiograph. Then all following attributes are known.
      stamp: `files.stamp` of the file. (0, 0, 0) if reading failed, so that it is tried again the next time.
      sha256: hexadecimal SHA-256 of the file; "" if it could not be read.
      uid: SOP instance UID; the name from `ids.name_of` for files without one.
      image: uint8 (S, S), resized by area averaging.
      height, width: native size, in pixels.
      remarks: remarks about the radiograph's header.
      pixel_spacing, view, leads_to, orientation: of the `Radiograph`.
    """

    source: str
    reason: str = ""
    stamp: Stamp = (0, 0, 0)
    sha256: str = ""
    uid: str = ""
    image: np.ndarray | None = None
    height: int = 0
    width: int = 0
    remarks: tuple[str, ...] = ()
    pixel_spacing: tuple[float, float] | None = None
    view: str = ""
    leads_to: str = ""
    orientation: str = ""


@dataclass(frozen=True)
class Reading:
    """Settings for reading files.

    Attributes:
      folder: folder of the files.
      size: S, side of the pictures.
      repeated: the result of `ids.repeated_names` for all listed files.
      any_image: also accepts images that are not frontal chest radiographs.
    """

    folder: Path
    size: int
    repeated: frozenset[str] = frozenset()
    any_image: bool = False

    def name_of(self, source: str) -> str:
        """What an image is called whose header does not say it."""
        return printable(ids.name_of(source, self.repeated))


def read_ahead(
    reading: Reading, sources: Sequence[str], team: int | None = None, seconds: float = SECONDS
) -> Iterator[Picture]:
    """Reads files ahead of the consumer. Memory does not grow with the number of files.

    Args:
      reading: folder and settings.
      sources: paths of the files below the folder, with slashes.
      team: see `team_for`.
      seconds: time limit for one file in a process.

    Yields:
      One picture per file, in the order of `sources`.

    Raises:
      RuntimeError: a process cannot start.
    """
    team = team_for(len(sources), team)
    if team == 0:
        yield from in_threads(functools.partial(read, reading, source) for source in sources)
        return
    team, size = min(team, len(sources)), reading.size
    window = max(min(WINDOW, WINDOW_BYTES // size**2), 2 * team)
    with _shared_memory(window * size**2) as memory:
        slots = np.ndarray((window, size, size), np.uint8, memory.buf)
        arrived: dict[int, Picture] = {}
        number = 0
        results = workers.run(
            _read_to_slot, enumerate(sources), team, _start, (reading, memory.name, window), seconds, window=window
        )
        for (place, source), result in results:
            if isinstance(result, workers.Lost):
                result = Picture(
                    source, f"decoding it {result.why}. Export it again.", stamp_if_there(reading.folder / source)
                )
            arrived[place] = result
            while (picture := arrived.pop(number, None)) is not None:
                # Copies the image: a later file can overwrite the slot as soon as the next result is requested.
                image = None if picture.reason else slots[number % window].copy()
                number += 1
                yield replace(picture, image=image)


def team_for(files: int, asked: int | None) -> int:
    """The number of processes for work on so many files; 0 is for threads of this process.

    `asked` is what the user asks for. None is one process per core, or threads for at most FEW files.
    """
    if asked is not None:
        return asked
    return cores() if files > FEW else 0


def read(reading: Reading, source: str) -> Picture:
    """Reads one file in this thread."""
    from jaxpneumo.dicom import dicom

    path, shown = reading.folder / source, printable(source)
    try:
        data, stamped = read_file(path, shown)
    except RadiographError as error:
        return Picture(source, str(error), stamp_if_there(path))
    except OSError as error:
        return Picture(source, f"{shown} cannot be read: {error.strerror}.")
    file = Picture(source, stamp=stamped, sha256=hashlib.sha256(data).hexdigest())
    try:
        radiograph = dicom.parse_image(data, shown)
    except RadiographError as error:
        return replace(file, reason=str(error))
    picture = shrink_radiograph(reading, file, radiograph)
    if picture.reason:
        return picture
    uid = ingest.own_id(radiograph, data, source, reading.name_of(source))
    return replace(picture, uid=uid)


def read_again(path: Path, sha256: str) -> bytes:
    """The bytes of a radiograph's file that was read before.

    Args:
      path: of the file.
      sha256: of its bytes at that time; "" where it is not known, and nothing is compared.

    Raises:
      InputError: it cannot be read any more, or it holds other bytes now.
    """
    name = printable(path.name)
    try:
        data, _ = read_file(path, name)
    except OSError as error:
        raise InputError(f"the radiograph {name} cannot be read any more: {error.strerror}.") from error
    if sha256 and hashlib.sha256(data).hexdigest() != sha256:
        raise InputError(f"{name} is no longer the radiograph that was predicted: its file was changed. Predict again.")
    return data


def shrink_radiograph(reading: Reading, file: Picture, radiograph: Radiograph) -> Picture:
    """Adds to a file what is known of its radiograph, and its image at the network's size; or why it is not used."""
    if not reading.any_image and (wrong := frontal.not_frontal(radiograph)):
        return replace(file, reason=f"{NOT_FRONTAL}: {wrong}")
    height, width = radiograph.image.shape
    return replace(
        file,
        uid=radiograph.uid,
        image=resize_to_squares(radiograph.image, (reading.size,))[0],
        height=height,
        width=width,
        remarks=(*radiograph.remarks, *frontal.doubts(radiograph)),
        pixel_spacing=radiograph.pixel_spacing,
        view=radiograph.view,
        leads_to=radiograph.leads_to,
        orientation=radiograph.orientation,
    )


def in_threads(calls: Iterable[Callable[[], Picture]]) -> Iterator[Picture]:
    """The results of calls in their order. Threads of this process do some of them ahead of the consumer."""
    threads = min(8, cores())
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque = deque()
        for call in calls:
            waiting.append(pool.submit(call))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        for picture in waiting:
            yield picture.result()


@contextmanager
def _shared_memory(length: int) -> Iterator[SharedMemory]:
    memory = SharedMemory(create=True, size=length)
    try:
        yield memory
    finally:
        memory.unlink()
        with suppress(BufferError):  # an array still uses the memory; it is freed when the process ends
            memory.close()


# Functions for the reading processes

_reading: Reading
_memory: SharedMemory
_slots: np.ndarray


def _start(reading: Reading, name: str, window: int) -> None:
    import jaxpneumo.dicom.dicom  # noqa: F401  loads pydicom now, so that it does not count as a file's decoding time

    global _reading, _memory, _slots
    one_thread_each()
    workers.keep_memory()
    _reading = reading
    _memory = SharedMemory(name)
    _slots = np.ndarray((window, reading.size, reading.size), np.uint8, _memory.buf)


def _read_to_slot(task: tuple[int, str]) -> Picture:
    number, source = task
    picture = read(_reading, source)
    if picture.image is None:
        return picture
    _slots[number % len(_slots)] = picture.image
    return replace(picture, image=None)
