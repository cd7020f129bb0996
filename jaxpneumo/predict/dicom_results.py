"""DICOM results of a radiograph for archives and viewers: which kinds there are, and their files.

A report is written of every radiograph, the other kinds only where something was outlined. Research use only; not a
medical device.
"""

import argparse
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from jaxpneumo.process.atomic import write_atomically
from jaxpneumo.process.errors import InputError

if TYPE_CHECKING:  # pydicom is imported where it is used
    from jaxpneumo.dicom.origin import Origin
    from jaxpneumo.dicom.outcome import Algorithm, ImageOutcome

SEG, SR, PRESENTATION, CAPTURE = KINDS = ("seg", "sr", "presentation", "capture")


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


def write_results(
    source: Path, outcome: "ImageOutcome", kinds: Collection[str], folder: Path, algorithm: "Algorithm"
) -> tuple[dict[str, Path], list[str]]:
    """Writes the DICOM results of one radiograph to `folder`/KIND.dcm, each atomically.

    The same arguments give the same bytes and UIDs. A file of an earlier outcome that this one does not have, such as
    the segmentation of what is negative now, is removed.

    Args:
      source: the radiograph's DICOM file.
      outcome: what was found in it.
      kinds: which results, of KINDS.
      folder: where to; created if it is missing.
      algorithm: what found it.

    Returns:
      The files that were written, by kind, and for each kind that this radiograph cannot have a sentence why.

    Raises:
      NoResultError: there can be no DICOM results of this file: it is not DICOM, or lacks UIDs.
      InputError: it is no longer the radiograph that it was, or highdicom is not installed.
      OSError: it cannot be read, or a result cannot be written.
    """
    from jaxpneumo.dicom.origin import NoResultError, read_origin

    check_installed()
    origin = read_origin(source, source.name, outcome.mask.shape)
    written, remarks = {}, []
    for kind in KINDS:
        if kind not in kinds:
            continue
        path = folder / f"{kind}.dcm"
        try:
            result = _make(kind, source, origin, outcome, kinds, algorithm)
        except NoResultError as error:
            result = None
            remarks.append(f"{source.name} has no {kind}: {error}")
        if result is None:
            path.unlink(missing_ok=True)
            continue
        with write_atomically(path, "wb") as file:
            file.write(result)
        written[kind] = path
    return written, remarks


def _make(
    kind: str, source: Path, origin: "Origin", outcome: "ImageOutcome", kinds: Collection[str], algorithm: "Algorithm"
) -> bytes | None:
    """The file of a result; None where a negative outcome has none of its kind."""
    from jaxpneumo.dicom.capture import capture
    from jaxpneumo.dicom.dicom import read_image
    from jaxpneumo.dicom.outcome import encoded
    from jaxpneumo.dicom.presentation import presentation
    from jaxpneumo.dicom.segmentation import segmentation
    from jaxpneumo.dicom.structured_report import report
    from jaxpneumo.predict.manifest import SYNTHETIC_NOTE
    from jaxpneumo.predict.pictures import overlay

    if kind == SR:
        refers = SEG in kinds and outcome.area > 0
        made = report(origin, outcome, algorithm, segmentation(origin, outcome, algorithm) if refers else None)
    elif not outcome.area:
        return None
    elif kind == SEG:
        made = segmentation(origin, outcome, algorithm)
    elif kind == PRESENTATION:
        made = presentation(origin, outcome, algorithm)
    else:
        warning = SYNTHETIC_NOTE if algorithm.synthetic else ""
        made = capture(origin, overlay(read_image(source).image, outcome.mask, warning=warning), algorithm)
    return encoded(made)
