"""What a prediction writes for each image beside the tables: pictures with outlines, and other files.

Threads write while the device predicts the next batch. A file that cannot be written costs that file and nothing else;
a full disk ends the job.
"""

import errno
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from jaxpneumo.data import rle
from jaxpneumo.predict import saved_thresholds
from jaxpneumo.predict.captions import Line, explained, found, grey, title
from jaxpneumo.predict.certainty import Bands
from jaxpneumo.predict.finding import Finding, predict_findings
from jaxpneumo.predict.manifest import RESEARCH_USE, SYNTHETIC_NOTE, output_path, remove_others
from jaxpneumo.predict.png import write_png
from jaxpneumo.predict.reading import Picture, read_again
from jaxpneumo.process import run_report, workers
from jaxpneumo.process.atomic import write_atomically
from jaxpneumo.process.errors import InputError
from jaxpneumo.process.files import printable
from jaxpneumo.process.machine import cores

if TYPE_CHECKING:  # what needs JAX is imported where it is used
    from jaxpneumo.predict.infer import Predictor

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Output:
    """A kind of file that a prediction writes, one for each image.

    Attributes:
      name: of its folder in the output folder; one of `data.finder.OUTPUT_FOLDERS`.
      ending: of the files' names, such as ".png"; "" for a folder for each image, "/seg.dcm" for one file in it.
      write: (path, finding, source) -> reason. It writes `path` atomically, from the finding of the file `source`, or
        says why this image cannot have such a file. Threads call it. It raises OSError or InputError if the file
        cannot be written; the next start then tries again.
      most: largest number of files; None writes one for each image.
      needs_probability: whether `write` needs `Finding.probability`.
      keeps: whether a file that an earlier start has written is kept; else it is written anew.
      of_negatives: whether there is one of an image with nothing outlined.
      plain_python: whether `write` is slow Python code, of which a process runs only one thread at a time. Processes
        call it then where there are many files, and it has to be picklable.
    """

    name: str
    ending: str
    write: Callable[[Path, Finding, Path], str | None]
    most: int | None = None
    needs_probability: bool = False
    keeps: bool = True
    of_negatives: bool = True
    plain_python: bool = False

    @property
    def key(self) -> str:
        """Its name in the manifest: "masks", "probabilities/.npz", "dicom_results/seg.dcm"."""
        return self.name if self.ending == ".png" else f"{self.name}/{self.ending.removeprefix('/')}"

    def path(self, folder: Path, uid: str) -> Path:
        """Where the file of an image lies below the output folder."""
        return output_path(folder, self.key, uid)


def overlays_output(predictor: "Predictor", most: int | None) -> Output:
    """The pictures with outlines."""
    note = note_of(predictor)

    def write(path: Path, finding: Finding, source: Path) -> None:
        from jaxpneumo.dicom.dicom import parse_image

        # Decodes the file again. Keeping all radiographs in memory until their masks are ready would cost more.
        radiograph = parse_image(read_again(source, finding.picture.sha256), printable(source.name))
        picture = explained(radiograph.image, finding.mask, caption(finding, predictor), note)
        # Without an outline all of it is grey, and takes a third of the time and of the disk.
        write_png(path, picture if finding.area else picture[..., 0], note)

    return Output("overlays", ".png", write, most)


def masks_output(predictor: "Predictor") -> Output:
    """The masks as PNG at native size: 0 = background, 255 = pneumothorax."""
    note = f"0 = background, 255 = pneumothorax; {note_of(predictor)}"
    return Output("masks", ".png", lambda path, finding, _: write_png(path, finding.mask * np.uint8(255), note))


def probabilities_output(predictor: "Predictor", form: str) -> Output:
    """The probabilities before thresholds at the network's size, as 16-bit PNG or compressed NumPy file.

    The radiograph was brought to this size by area averaging, without regard to its proportions; resizing the
    probabilities bilinearly to the native size gives what the thresholds are applied to.

    Args:
      predictor: the result of `load_predictor`.
      form: "png16": probability * 65535, rounded. "npz": `probability` float32 (S, S), `height` and `width` of the
        radiograph, and `note`.
    """
    note = note_of(predictor)

    def write_png16(path: Path, finding: Finding, source: Path) -> None:
        values = np.rint(cast(np.ndarray, finding.probability) * 65535.0).astype(np.uint16)
        size = f"of a radiograph of {finding.picture.width} x {finding.picture.height} pixels"
        write_png(path, values, f"probability of pneumothorax * 65535, {size}; {note}")

    def write_npz(path: Path, finding: Finding, source: Path) -> None:
        height, width = finding.picture.height, finding.picture.width
        with write_atomically(path, "wb") as file:
            np.savez_compressed(
                file, probability=cast(np.ndarray, finding.probability), height=height, width=width, note=note
            )

    ending, write = {"png16": (".png", write_png16), "npz": (".npz", write_npz)}[form]
    return Output("probabilities", ending, write, needs_probability=True)


def caption(finding: Finding, predictor: "Predictor") -> list[Line]:
    """The lines above a radiograph: its id, what was found, and with which thresholds and model."""
    model = "+".join(one[:12] for one in predictor.model_id.split("+"))
    made = f"{saved_thresholds.words(vars(predictor.settings))}; model {model}"
    # Without the certainty: a later evaluation of the model may change its limits, and the picture stays.
    words = found(finding.area, finding.area_mm2, finding.score, finding.side)
    return [title(finding.picture.uid), words, grey(made)]


def note_of(predictor: "Predictor") -> str:
    """What every picture says: research use only, and that the model is synthetic where it is."""
    return f"{RESEARCH_USE}. {SYNTHETIC_NOTE}" if predictor.synthetic else RESEARCH_USE


@dataclass(frozen=True)
class Earlier:
    """What holds of a job's images when it starts or goes on.

    Attributes:
      first: by an image's id the first of its files, by path, that is known: outputs are written of that file alone.
        Files that are predicted are added.
      written: keys of the outputs that earlier starts wrote of a file which is to be predicted again, by file.
    """

    first: dict[str, str] = field(default_factory=dict)
    written: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def replaces(self, uid: str, source: str) -> bool:
        """Whether this file comes before the one that was the image's first until now."""
        return source < self.first.get(uid, source)

    def is_first(self, uid: str, source: str) -> bool:
        """Whether no earlier file of this image is known; then this one is the first from now on."""
        first = self.first.get(uid, source) >= source
        if first:
            self.first[uid] = source
        return first


@dataclass(frozen=True, eq=False)
class Written:
    """A finding whose outputs are on the disk.

    Attributes:
      finding: without its probability.
      code: run-length code of the mask.
      outputs: keys of the outputs that are done.
      failed: why an output was not written, by its key. One that the image cannot have is done.
      second: the image has another file that is used, so there are no outputs of this one.
    """

    finding: Finding
    code: str
    outputs: tuple[str, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)
    second: bool = False


def predict_and_write(
    predictor: "Predictor",
    folder: Path,
    pictures: Iterable[Picture],
    bands: Bands,
    to: Path,
    outputs: Sequence[Output],
    earlier: Earlier,
    team: int = 0,
) -> Generator[Written, None, None]:
    """Predicts radiographs and writes their outputs. Left or closed early, it ends with the files under way.

    Args:
      predictor: the result of `load_predictor`.
      folder: folder of the files.
      pictures: results of `reading.read_ahead`, without files that could not be read.
      bands: the result of `certainty.bands_of`.
      to: output folder.
      outputs: what to write for each image.
      earlier: what earlier starts have left; `is_first` is asked of each picture.
      team: number of processes for outputs in plain Python; 0 is for threads of this process.

    Yields:
      One result per picture, in the order of `pictures`. Its outputs are on the disk by then.

    Raises:
      OSError: the disk is full.
    """

    def finish(describe: Callable[[], Finding], missing: Sequence[Output], there: list[str], second: bool) -> Written:
        finding = describe()
        code = rle.encode(finding.mask) if finding.area else rle.EMPTY
        tried = {output.key: _write(output, to, finding, folder, processes) for output in missing}
        failed = {key: reason for key, (reason, _) in tried.items() if reason}
        done = {key for key, (_, done) in tried.items() if done}
        return Written(replace(finding, probability=None), code, tuple(sorted({*there, *done})), failed, second)

    room = {output.key: _room(output, to) for output in outputs}
    needs_probability = any(output.needs_probability for output in outputs)
    slow = team > 0 and any(output.plain_python for output in outputs)
    with (
        workers.pool(team) if slow else nullcontext() as processes,
        ThreadPoolExecutor(cores()) as pool,
        _dropped_on_errors(pool, processes),
    ):
        waiting: deque[Future[Written]] = deque()
        for picture, describe in predict_findings(predictor, pictures, bands, needs_probability):
            if earlier.replaces(picture.uid, picture.source):
                # What is not asked for now would stay as of the other file.
                remove_others(to, picture.uid, [output.path(to, picture.uid) for output in outputs])
            second = not earlier.is_first(picture.uid, picture.source)
            there, missing = [], []
            for output in () if second else outputs:
                exists = output.path(to, picture.uid).exists()
                if exists and output.keeps and output.key in earlier.written.get(picture.source, ()):
                    there.append(output.key)
                elif exists or room[output.key] > 0:
                    room[output.key] -= not exists
                    missing.append(output)
            waiting.append(pool.submit(finish, describe, missing, there, second))
            while len(waiting) > 2 * predictor.settings.batch_size or (waiting and waiting[0].done()):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextmanager
def _dropped_on_errors(*pools: Executor | None) -> Iterator[None]:
    """Drops what pools have not begun if the block is left early, as by Ctrl-C or SIGTERM: nobody would use it."""
    try:
        yield
    except BaseException:
        for pool in filter(None, pools):
            pool.shutdown(wait=False, cancel_futures=True)
        raise


def _room(output: Output, to: Path) -> float:
    """How many more files an output may have."""
    if output.most is None:
        return float("inf")
    folder = to / output.name
    return output.most - (sum(path.suffix == output.ending for path in folder.iterdir()) if folder.is_dir() else 0)


def _write(
    output: Output, to: Path, finding: Finding, folder: Path, processes: ProcessPoolExecutor | None
) -> tuple[str, bool]:
    """Writes an output of a finding. Returns the reason why it is not there, or "", and whether it is done."""
    path, source = output.path(to, finding.picture.uid), folder / finding.picture.source
    try:
        if not (output.of_negatives or finding.area):
            path.unlink(missing_ok=True)  # of an earlier finding
            return "", True
        reason = _call(output, path, finding, source, processes)
    except InputError as error:  # such as a file that was removed or changed in the meantime; its mask is still valid
        return printable(str(error)), False
    except OSError as error:
        if error.errno in FULL:
            raise
        return f"{path.name} cannot be written: {error.strerror}.", False
    return printable(reason or ""), True


def _call(
    output: Output, path: Path, finding: Finding, source: Path, processes: ProcessPoolExecutor | None
) -> str | None:
    if output.plain_python and processes is not None:
        # The system ends processes when memory runs out. Then this one does their work, and the job goes on.
        with suppress(BrokenProcessPool):
            reason = processes.submit(output.write, path, replace(finding, probability=None), source).result()
            if path.is_file():  # that process knows nothing of this one's report
                run_report.wrote(path)
            return reason
    return output.write(path, finding, source)
