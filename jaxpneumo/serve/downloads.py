"""The files that the page offers of a radiograph, made by those who make them for `jaxpneumo predict`."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxpneumo.predict.captions import explained
from jaxpneumo.predict.dicom_results import SEG, SR, algorithm_of, write_dicom_results
from jaxpneumo.predict.finding import Finding
from jaxpneumo.predict.infer import Predictor
from jaxpneumo.predict.outputs import caption, note_of
from jaxpneumo.predict.png import png
from jaxpneumo.process.errors import InputError
from jaxpneumo.process.files import safe_name
from jaxpneumo.serve.decoding import Upload


@dataclass(frozen=True)
class Download:
    """A kind of file.

    Attributes:
      name: in the route, and the end of the file's name.
      words: on the button.
      media: type.
      make: (the uploaded file, what was read of it, its finding, the predictor at the finding's threshold) -> the file;
        InputError where the radiograph cannot have one.
    """

    name: str
    words: str
    media: str
    make: Callable[[bytes, Upload, Finding, Predictor], bytes]


def _mask(data: bytes, upload: Upload, finding: Finding, predictor: Predictor) -> bytes:
    return png(finding.mask * np.uint8(255))


def _outlined(data: bytes, upload: Upload, finding: Finding, predictor: Predictor) -> bytes:
    return png(explained(upload.image, finding.mask, caption(finding, predictor), note_of(predictor)))


def _dicom(kind: str) -> Callable[[bytes, Upload, Finding, Predictor], bytes]:
    def make(data: bytes, upload: Upload, finding: Finding, predictor: Predictor) -> bytes:
        if kind == SEG and not finding.area:
            raise InputError("nothing is outlined, so there is no segmentation. The report says so.")
        # What makes results takes files: they lie in a folder of this user's alone until the result is made.
        with tempfile.TemporaryDirectory(prefix="jaxpneumo-") as name:
            folder = Path(name)
            source = folder / safe_name(upload.picture.source)
            source.write_bytes(data)
            written, reasons = write_dicom_results(
                source, finding, [kind], folder, algorithm_of(predictor), stored=(SEG, SR)
            )
            if kind not in written:
                raise InputError(reasons[kind])
            return written[kind].read_bytes()

    return make


DOWNLOADS = (
    Download("mask.png", "PNG mask", "image/png", _mask),
    Download("outlined.png", "PNG outline", "image/png", _outlined),
    Download("seg.dcm", "DICOM SEG", "application/dicom", _dicom(SEG)),
    Download("sr.dcm", "DICOM SR", "application/dicom", _dicom(SR)),
)
