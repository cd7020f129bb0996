"""DICOM results of radiographs for archives and viewers: which kinds there are, and their files.

A report is written of every radiograph, the other kinds only where something is outlined. Research use only; not a
medical device.
"""

import argparse
import functools
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jaxpneumo
from jaxpneumo.predict import gate
from jaxpneumo.predict.captions import OUTLINED, captioned, white
from jaxpneumo.predict.finding import Finding
from jaxpneumo.predict.outputs import Output
from jaxpneumo.predict.pictures import overlay
from jaxpneumo.predict.reading import read_again
from jaxpneumo.process.atomic import write_atomically
from jaxpneumo.process.errors import InputError
from jaxpneumo.process.files import printable

if TYPE_CHECKING:  # what needs pydicom or JAX is imported where it is used
    from jaxpneumo.dicom.origin import Origin
    from jaxpneumo.dicom.outcome import Algorithm, ImageOutcome
    from jaxpneumo.predict.infer import Predictor

SEG, SR, PRESENTATION, CAPTURE = KINDS = ("seg", "sr", "presentation", "capture")
FOLDER = "dicom_results"


def kinds(text: str) -> tuple[str, ...]:
    """The kinds of results that a text such as "seg,sr" names, in the order of KINDS.

    Raises ArgumentTypeError, as the `type` of an option has to, for other words.
    """
    named = [word.strip().lower() for word in text.split(",") if word.strip()]
    if unknown := [word for word in named if word not in KINDS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is no kind of DICOM result; there are {', '.join(KINDS)}")
    if not named:
        raise argparse.ArgumentTypeError(f"name kinds of DICOM results: {', '.join(KINDS)}")
    return tuple(kind for kind in KINDS if kind in named)


def check_installed() -> None:
    """Raises InputError with the way out unless the library that makes DICOM results is installed."""
    if find_spec("highdicom") is None:
        raise InputError("DICOM results need highdicom, which is not installed: pip install 'jaxpneumo[dicom]'")


def algorithm_of(predictor: "Predictor") -> "Algorithm":
    """What results say of a predictor."""
    from jaxpneumo.dicom.outcome import Algorithm

    settings = json.dumps(gate.mask_settings(predictor), sort_keys=True)
    return Algorithm(jaxpneumo.__version__, predictor.model_id, settings, predictor.synthetic)


def dicom_outputs(predictor: "Predictor", kinds: Sequence[str]) -> list[Output]:
    """The outputs of `predict` for these kinds. A radiograph's results lie in a folder of its own."""
    if not kinds:
        return []
    check_installed()
    write = functools.partial(_write, algorithm_of(predictor), tuple(kinds))
    return [
        Output(
            FOLDER,
            f"/{kind}.dcm",
            functools.partial(write, kind),
            keeps=False,
            of_negatives=kind == SR,
            plain_python=True,
        )
        for kind in kinds
    ]


def write_dicom_results(
    source: Path,
    finding: "Finding | ImageOutcome",
    kinds: Collection[str],
    folder: Path,
    algorithm: "Algorithm",
    stored: Collection[str] | None = None,
) -> tuple[dict[str, Path], dict[str, str]]:
    """Writes the DICOM results of one radiograph to `folder`/KIND.dcm, each atomically.

    The same arguments give the same UIDs and bytes. A file of an earlier finding that this one does not have, such as
    the segmentation of what is negative now, is removed.

    Args:
      source: the radiograph's file.
      finding: what was found in it.
      kinds: which results to write, of KINDS.
      folder: where to; created if it is missing.
      algorithm: the result of `algorithm_of`.
      stored: all kinds that are stored of the radiograph, so that its report refers to its segmentation; None: `kinds`.

    Returns:
      The files that were written, by kind; and for each kind that this radiograph cannot have, as it is not DICOM, say,
      the reason in a sentence.

    Raises:
      InputError: the file cannot be read, it is no longer the radiograph that was predicted (by its checksum, if the
        finding has one, else by its size), or highdicom is not installed.
      OSError: a result cannot be written.
    """
    from jaxpneumo.dicom.origin import NoResultError, read_origin
    from jaxpneumo.dicom.outcome import ImageOutcome
    from jaxpneumo.dicom.segmentation import segmentation

    check_installed()
    outcome = ImageOutcome(finding.mask, finding.score, finding.side)
    name = printable(source.name)
    try:
        with _nothing_unforeseen(name):
            # All results are of the bytes that were predicted; who replaces the file changes none of them.
            data = read_again(source, finding.picture.sha256 if isinstance(finding, Finding) else "")
            origin = read_origin(data, outcome.mask.shape)
    except NoResultError as error:
        return {}, dict.fromkeys(kinds, f"{name} has no DICOM results: {error}")
    segmented = functools.cache(lambda: segmentation(origin, outcome, algorithm))  # the report refers to it
    written, reasons = {}, {}
    for kind in kinds:
        path = folder / f"{kind}.dcm"
        try:
            with _nothing_unforeseen(name):
                made = _make(kind, data, origin, outcome, kinds if stored is None else stored, algorithm, segmented)
        except NoResultError as error:
            made, reasons[kind] = None, f"{name} has no {kind}: {error}"
        if made is None:
            path.unlink(missing_ok=True)
            continue
        with write_atomically(path, "wb") as file:
            file.write(made)
        written[kind] = path
    return written, reasons


@contextmanager
def _nothing_unforeseen(name: str) -> Iterator[None]:
    """Makes an InputError of what an odd header lets pydicom and highdicom raise, often with its values in the text."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        raise InputError(f"no DICOM results can be made of {name} ({type(error).__name__}).") from None


def _write(
    algorithm: "Algorithm", stored: Sequence[str], kind: str, path: Path, finding: Finding, source: Path
) -> str | None:
    """Writes one kind of an `Output`; processes call it."""
    return write_dicom_results(source, finding, [kind], path.parent, algorithm, stored)[1].get(kind)


def _make(
    kind: str,
    data: bytes,
    origin: "Origin",
    outcome: "ImageOutcome",
    stored: Collection[str],
    algorithm: "Algorithm",
    segmented: Callable[[], Any],
) -> bytes | None:
    """The file of a result; None where a negative outcome has none of its kind."""
    from jaxpneumo.dicom.capture import capture
    from jaxpneumo.dicom.dicom import as_file, parse_image
    from jaxpneumo.dicom.outcome import remarks
    from jaxpneumo.dicom.presentation import presentation
    from jaxpneumo.dicom.structured_report import report

    if kind == SR:
        refers = SEG in stored and outcome.area > 0
        made = report(origin, outcome, algorithm, segmented() if refers else None)
    elif not outcome.area:
        return None
    elif kind == SEG:
        made = segmented()
    elif kind == PRESENTATION:
        made = presentation(origin, outcome, algorithm)
    else:
        picture = overlay(parse_image(data, origin.uid).image, outcome.mask)
        said = [white(sentence) for sentence in remarks(origin, algorithm)]
        made = capture(origin, captioned(picture, said, [OUTLINED]), algorithm)
    return as_file(made)
