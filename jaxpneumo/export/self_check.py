"""No export gets its name before it has found, in pictures, what the run itself finds in them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from jaxpneumo.data import dataset, finder
from jaxpneumo.data.resize import resize_to_squares
from jaxpneumo.dicom.radiograph import RadiographError
from jaxpneumo.predict.certainty import bands_of
from jaxpneumo.predict.finding import predict_findings
from jaxpneumo.predict.reading import Picture
from jaxpneumo.process.errors import CheckError, InputError
from jaxpneumo.synthetic.radiographs import radiograph

if TYPE_CHECKING:  # this module imports JAX
    from jaxpneumo.predict.infer import Predictor

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

    pictures: int
    pixels: int
    outlined: int
    different: int
    clear: int
    probability: float
    score: float

    def __str__(self) -> str:
        return (
            f"{self.pictures} pictures ({self.outlined} with an outline), {self.different} of {self.pixels} mask "
            f"pixels differ from the run's, probabilities by at most {self.probability:.2g}, scores by {self.score:.2g}"
        )


def pictures(data: Path, folder: Path | None) -> tuple[list[np.ndarray], str]:
    """The pictures of a check, uint8 (H, W) each, and where they are from in words.

    Args:
      data: the run's prepared data set. COUNT of its images, evenly spread, are taken at their largest size; where it
        is gone, COUNT radiographs are drawn.
      folder: radiographs to take instead, all of them at native size.

    Raises:
      InputError: none of the folder's files can be used.
    """
    if folder is not None:
        return _of_folder(folder), f"the radiographs of {folder}"
    try:
        images, _ = dataset.open_arrays(data, max(dataset.read_info(data)["sizes"]))
    except InputError:
        return [
            radiograph(seed, DRAWN_SIZE)[0] for seed in range(COUNT)
        ], "drawn radiographs, as the run's data are gone"
    rows = np.unique(np.linspace(0, len(images) - 1, COUNT).astype(int))
    return [np.asarray(images[row]) for row in rows], f"images of {data}"


def _of_folder(folder: Path) -> list[np.ndarray]:
    from jaxpneumo.dicom.dicom import read_image

    found = finder.find(folder)
    images = []
    for source in found.sources:
        try:
            images.append(read_image(found.folder / source).image)
        except RadiographError:
            continue
    if not images:
        raise InputError(f"--check {folder}: none of the {len(found.sources)} files is a radiograph that can be used.")
    return images


def found_by(predictor: "Predictor", images: Sequence[np.ndarray]) -> list[Predicted]:
    """What a run finds in pictures, by the calls of `jaxpneumo predict`."""
    from jaxpneumo.predict.native import to_native_on_host

    size = predictor.settings.size
    seen = (
        Picture("", image=resize_to_squares(image, (size,))[0], height=image.shape[0], width=image.shape[1])
        for image in images
    )
    results = []
    for picture, describe in predict_findings(predictor, seen, bands_of(predictor), probability=True):
        finding = describe()
        probability = to_native_on_host(cast(np.ndarray, finding.probability), picture.height, picture.width)
        results.append(Predicted(finding.mask, probability, finding.score))
    return results


def compare(own: Sequence[Predicted], theirs: Iterable[Predicted], threshold: float, bound: float) -> Comparison:
    """Compares what an export finds in pictures with what the run finds in them.

    Args:
      own: the run's.
      theirs: the export's, in the same order.
      threshold: of the probability.
      bound: ROUNDED, ROUNDED_BFLOAT16 or EQUAL.

    Raises:
      CheckError: the export is further off.
    """
    pairs = list(zip(own, theirs, strict=True))
    others = [ours.mask != export.mask for ours, export in pairs]
    found = Comparison(
        pictures=len(pairs),
        pixels=sum(each.mask.size for each in own),
        outlined=sum(bool(each.mask.any()) for each in own),
        different=sum(int(np.count_nonzero(other)) for other in others),
        clear=sum(
            int(np.count_nonzero(np.abs(ours.probability[other] - np.float32(threshold)) >= bound))
            for (ours, _), other in zip(pairs, others, strict=True)
        ),
        # NumPy's maximum of something that is no number is none either, and so not within the bound.
        probability=float(np.max([np.abs(ours.probability - export.probability).max() for ours, export in pairs])),
        score=float(np.max([abs(ours.score - export.score) for ours, export in pairs])),
    )
    if not (found.probability <= bound and found.score <= bound and found.clear == 0):
        raise CheckError(
            f"the export does not find what the run finds, and was removed. {found}; allowed is {bound:g}, and other "
            f"pixels no further than that from the threshold, which {found.clear} are. Report this with the run's "
            "config.json."
        )
    return found
