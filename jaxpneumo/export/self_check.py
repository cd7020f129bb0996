"""No export gets its name before it has found, in pictures, what the run itself finds in them.

Pictures are read, predicted and compared one after the other: memory does not grow with their number.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from jaxpneumo.data import dataset, finder
from jaxpneumo.data.resize import resize_to_squares
from jaxpneumo.dicom.frontal import not_frontal
from jaxpneumo.dicom.radiograph import RadiographError
from jaxpneumo.predict.certainty import bands_of
from jaxpneumo.predict.finding import predict_findings
from jaxpneumo.predict.reading import Picture
from jaxpneumo.process.errors import CheckError, InputError
from jaxpneumo.synthetic.radiographs import radiograph

if TYPE_CHECKING:  # this module imports JAX
    from jaxpneumo.predict.infer import Predictor

Read = Callable[[], Iterator[np.ndarray]]  # reads the pictures of a check, uint8 (H, W) each; each call reads them anew
COUNT = 8  # pictures of a check, unless a folder is given
DRAWN_SIZE = 1024


class Predicted(NamedTuple):
    """What a network finds in one picture.

    Attributes:
      mask: (H, W) of 0 and 1 at native size, after thresholds and removal.
      probability: float32 (H, W) at native size.
      score: of the whole image, as `api.Result` has it.
    """

    mask: np.ndarray
    probability: np.ndarray
    score: float


# How far probabilities and scores may be off, and how near to the threshold a pixel's must be whose mask is another.
# Other operations round otherwise; where a native size is no multiple of the network's, grey levels may do so too.
ROUNDED = 0.01
ROUNDED_BFLOAT16 = 0.05
EQUAL = 0.0


@dataclass(frozen=True)
class Comparison:
    """What a check has found.

    Attributes:
      pictures, pixels: how many were compared.
      outlined: pictures in which the run outlines anything.
      different: pixels whose mask is another.
      clear: those of them whose probability is not near the threshold.
      probability, score: the largest differences.
    """

    pictures: int = 0
    pixels: int = 0
    outlined: int = 0
    different: int = 0
    clear: int = 0
    probability: float = 0.0
    score: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.pictures} pictures ({self.outlined} with an outline), {self.different} of {self.pixels} mask "
            f"pixels differ from the run's, probabilities by at most {self.probability:.2g}, scores by {self.score:.2g}"
        )


def pictures(data: Path, folder: Path | None) -> tuple[Read, str]:
    """What reads the pictures of a check, and where they are from in words.

    Args:
      data: the run's prepared data set. COUNT of its images, evenly spread, are taken at their largest size; where it
        is gone, COUNT radiographs are drawn.
      folder: radiographs to take instead, at native size: all that `jaxpneumo predict` takes.

    Raises:
      InputError: none of the folder's files can be used.
    """
    if folder is not None:
        return _of_folder(folder), f"the radiographs of {folder}"
    try:
        images, _ = dataset.open_arrays(data, max(dataset.read_info(data)["sizes"]))
    except InputError:
        drawn = "drawn radiographs, as the run's data are gone"
        return lambda: (radiograph(seed, DRAWN_SIZE)[0] for seed in range(COUNT)), drawn
    rows = np.unique(np.linspace(0, len(images) - 1, COUNT).astype(int))
    return lambda: (np.asarray(images[row]) for row in rows), f"images of {data}"


def _of_folder(folder: Path) -> Read:
    from jaxpneumo.dicom.dicom import read_image

    found = finder.find(folder)

    def read() -> Iterator[np.ndarray]:
        for source in found.sources:
            try:
                image = read_image(found.folder / source)
            except RadiographError:
                continue
            if not not_frontal(image):
                yield image.image

    if next(read(), None) is None:
        raise InputError(f"--check {folder}: none of the {len(found.sources)} files is a radiograph that can be used.")
    return read


def found_by(predictor: "Predictor", images: Iterable[np.ndarray]) -> Iterator[Predicted]:
    """What a run finds in each of some pictures, by the calls of `jaxpneumo predict`."""
    from jaxpneumo.predict.native import to_native_on_host

    size = predictor.settings.size
    seen = (
        Picture("", image=resize_to_squares(image, (size,))[0], height=image.shape[0], width=image.shape[1])
        for image in images
    )
    for picture, describe in predict_findings(predictor, seen, bands_of(predictor), probability=True):
        finding = describe()
        probability = to_native_on_host(cast(np.ndarray, finding.probability), picture.height, picture.width)
        yield Predicted(finding.mask, probability, finding.score)


def compare(own: Iterable[Predicted], theirs: Iterable[Predicted], threshold: float, bound: float) -> Comparison:
    """Compares what an export finds in pictures with what the run finds in them.

    Args:
      own: the run's.
      theirs: the export's, in the same order.
      threshold: of the probability.
      bound: ROUNDED, ROUNDED_BFLOAT16 or EQUAL.

    Raises:
      CheckError: the export is further off.
    """
    found = Comparison()
    for ours, export in zip(own, theirs, strict=True):
        other = ours.mask != export.mask
        clear = np.abs(ours.probability[other] - np.float32(threshold)) >= bound
        found = Comparison(
            pictures=found.pictures + 1,
            pixels=found.pixels + ours.mask.size,
            outlined=found.outlined + bool(ours.mask.any()),
            different=found.different + int(np.count_nonzero(other)),
            clear=found.clear + int(np.count_nonzero(clear)),
            # NumPy's maximum of something that is no number is none either, and so not within the bound.
            probability=float(np.maximum(found.probability, np.abs(ours.probability - export.probability).max())),
            score=float(np.maximum(found.score, abs(ours.score - export.score))),
        )
    if not (found.probability <= bound and found.score <= bound and found.clear == 0):
        raise CheckError(
            f"the export does not find what the run finds, and was removed. {found}; allowed is {bound:g}, and other "
            f"pixels no further than that from the threshold, which {found.clear} are. Report this with the run's "
            "config.json."
        )
    return found
