"""The short Python way, for notebooks: load a finished run, predict radiographs, score them.

    import jaxpneumo

    model = jaxpneumo.load("runs/exp5")
    result = model.predict("film.dcm")
    result.mask, result.area_mm2, result.score

Research use only; not a medical device.
"""

import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, cast
from warnings import warn

import numpy as np

from jaxpneumo.data import finder, ids
from jaxpneumo.data.reconcile import NOT_FRONTAL
from jaxpneumo.dicom import arrays
from jaxpneumo.dicom.radiograph import Radiograph, check_size
from jaxpneumo.predict import saved_thresholds
from jaxpneumo.predict.captions import explained, found, title
from jaxpneumo.predict.certainty import Bands, bands_of, check_classifier
from jaxpneumo.predict.finding import predict_findings
from jaxpneumo.predict.manifest import RESEARCH_USE as NOTE
from jaxpneumo.predict.manifest import SYNTHETIC_NOTE
from jaxpneumo.predict.png import write_png
from jaxpneumo.predict.reading import Picture, Reading, in_threads, read, shrink_radiograph
from jaxpneumo.process.errors import InputError
from jaxpneumo.process.files import printable
from jaxpneumo.process.runtime import prepare_jax
from jaxpneumo.score import metrics, scores

if TYPE_CHECKING:  # what needs JAX is imported where it is used
    from jaxpneumo.predict.infer import Predictor

__all__ = ["LoadedModel", "Result", "load", "read_radiograph", "write_png"]


PACKAGE = os.path.join(os.path.dirname(__file__), "")
Call = tuple[Callable[[], Picture], int | None]  # what reads a picture; the folder's place in the list, if of one
Image = str | os.PathLike[str] | Radiograph | Any  # what `LoadedModel.predict` takes; Any stands for arrays


@dataclass(frozen=True, eq=False)
class Result:
    """What a model finds in one radiograph. Research use only; not a medical device.

    Attributes:
      id: SOP instance UID, or the file's name without ending, as in `submission.csv`; "array_0" for the first array.
      source: path of the file; "" where the image came from memory.
      probability: float32 (H, W) at native size: the probability of pneumothorax of each pixel, before thresholds.
      mask: bool (H, W), the outlined region after thresholds and removal: what `jaxpneumo predict` writes.
      area: number of pixels in the mask.
      area_mm2: the same in square millimetres by the header's pixel spacing, which may be that of the detector and is
        then a little too large for the patient; None without pixel spacing.
      score: image-level score between 0 and 1: the classifier's probability if the model has one, else the mean of the
        greatest probabilities on an area of 2048 pixels of a 1024x1024 image (`top_mean` in `evaluation/metrics.csv`).
      side: the patient's side, "left" or "right", that 90 % or more of the mask lies on; the sides meet in the middle
        of the image. Patient Orientation says which is which. Where the header does not have it but says that the view
        is AP or PA, the patient's right is taken to be at the image's left, as is the convention; `remarks` says so.
        None without mask, for findings on both sides, where the header says neither, and where the picture lies on its
        side by Patient Orientation.
      remarks: sentences about header elements that could not be used as they are, and about what was converted.
      emptied_by: "classifier" where the mask had pixels and the classifier's threshold emptied it; else "".
      synthetic: the model was trained on synthetic radiographs; its results say nothing about patients.
    """

    id: str
    source: str
    probability: np.ndarray
    mask: np.ndarray
    area: int
    area_mm2: float | None
    score: float
    side: str | None
    remarks: tuple[str, ...] = ()
    emptied_by: str = ""
    synthetic: bool = False

    def outlined(self, image: Radiograph | np.ndarray) -> np.ndarray:
        """Draws the outline of the mask on the radiograph, with the result above and "not a medical device" below.

        Args:
          image: the result of `read_radiograph` for the same file, or its image: uint8 (H, W).

        Returns:
          uint8 (H', W, 3), RGB, with H' > H: the lines of text cover nothing of the radiograph.

        Raises:
          InputError: the image is not uint8 or has another size.
        """
        image = image.image if isinstance(image, Radiograph) else image
        above = [title(self.id), found(self.area, self.area_mm2, self.score, self.side)]
        return explained(image, self.mask, above, f"{NOTE}. {SYNTHETIC_NOTE}" if self.synthetic else NOTE)

    def __repr__(self) -> str:
        height, width = self.mask.shape
        area = f"area={self.area}" + ("" if self.area_mm2 is None else f", area_mm2={self.area_mm2:.1f}")
        end = f"{NOTE}; {SYNTHETIC_NOTE}" if self.synthetic else NOTE
        return f"<Result {self.id}: {height} x {width}, score={self.score:.3f}, {area}, side={self.side}; {end}>"


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A finished run that predicts; `load` makes it. Research use only; not a medical device.

    Attributes:
      predictor: the network with its weights and settings.
      fixed: whether the user chose the batch size. If not, a single image has a batch of its own.
    """

    predictor: "Predictor"
    fixed: bool = False

    def predict(self, images: Image | Sequence[Image], any_image: bool = False) -> Result | Iterator[Result]:
        """Finds pneumothorax in radiographs, with the settings and thresholds of the run.

        The masks equal those of `jaxpneumo predict` for the same file or folder, bit for bit. Several images are
        predicted in full batches. Each result is made when it is asked for, so memory does not grow with the number of
        images.

        Args:
          images: a DICOM, PNG or JPEG file, a folder, which is searched at any depth, the result of `read_radiograph`,
            an array, or a list of these. `dicom.arrays.from_array` has the rules for arrays.
          any_image: also predicts images whose header says that they are not frontal chest radiographs.

        Returns:
          A `Result` for one file or array. For a folder or a list, an iterator of results in the order of the list, in
          a folder by path. A file of a folder that cannot be used, or is a second one of an image, is left out with a
          warning.

        Raises:
          InputError: a file or array that was given itself cannot be used, none of a folder's can, or the list is
            empty. Of a list it may be raised while the results are taken.
        """
        listed: Sequence[Any] = images if isinstance(images, (list, tuple)) else [images]
        if not listed:
            raise InputError("the list of images is empty. Give at least one path or array.")
        several = listed is images or (_is_path(images) and Path(images).expanduser().is_dir())
        calls = [
            call
            for number, image in enumerate(listed)
            for call in _calls(image, number, Reading(Path(), self.predictor.settings.size, any_image=any_image))
        ]
        results = self._predict(self._alone if len(calls) == 1 and not self.fixed else self.predictor, calls)
        return results if several else next(results)

    def evaluate(self, images: Sequence[Image], masks: Sequence[np.ndarray], any_image: bool = False) -> dict[str, Any]:
        """Scores the predictions of radiographs against true masks, in batches, at native size.

        Args:
          images: a list of files, arrays or results of `read_radiograph`, as for `predict`; no folders.
          masks: for each image its true mask, bool or integer (H, W) at native size, 0 = background. `data.rle.decode`
            makes one from a run-length code.
          any_image: see `predict`.

        Returns:
          {"n_images", "n_positive", the scores of `score.scores.ratios` such as "dice", "iou" and "dice_positive",
          "all_empty": the same of predicting nothing (`score.metrics.all_empty`), "note"}. A score is None if no image
          has a share in it.

        Raises:
          InputError: an image cannot be used, there are not as many masks as images, or a mask has another size or is
            no mask.
        """
        for values, name in ((images, "images"), (masks, "masks")):
            if _is_path(values) or isinstance(values, (Mapping, Radiograph)) or not hasattr(values, "__len__"):
                raise InputError(f"evaluate needs a list of {name}, also for a single one.")
        if len(images) != len(masks):
            raise InputError(f"{len(images)} images and {len(masks)} masks: give one mask for each image.")
        truths = [_truth(mask, number) for number, mask in enumerate(masks)]
        for image in images:
            if _is_path(image) and Path(image).expanduser().is_dir():
                raise InputError(f"{image} is a folder. Give a list of files, so that each has its mask.")
        counts: list[tuple[int, int, int]] = []
        results = self.predict(list(images), any_image)
        assert not isinstance(results, Result)
        for number, (result, truth) in enumerate(zip(results, truths, strict=True)):
            if truth.shape != result.mask.shape:
                raise InputError(
                    f"mask {number} has the shape {truth.shape}, and its image {result.id} {result.mask.shape}. "
                    "Give the masks at the images' own size, (height, width)."
                )
            tp, fp, fn = metrics.counts(result.mask, truth)
            counts.append((int(tp), int(fp), int(fn)))
        tp, fp, fn = np.array(counts).T
        found = scores.values(scores.ratios({"tp": tp, "fp": fp, "fn": fn}))
        numbers = {"n_images": len(counts), "n_positive": int(np.count_nonzero(tp + fn))}
        return {**numbers, **found, "all_empty": metrics.all_empty(tp + fn), "note": NOTE}

    @functools.cached_property
    def _bands(self) -> Bands:
        return bands_of(self.predictor)

    @functools.cached_property
    def _alone(self) -> "Predictor":
        """The same for batches of one image, as `jaxpneumo predict` predicts a single file."""
        from jaxpneumo.predict.infer import load_predictor

        settings = replace(self.predictor.settings, batch_size=1)
        if self.predictor.mesh.size == 1:
            return replace(self.predictor, settings=settings)
        return replace(load_predictor(self.predictor.workdir, 1), settings=settings)

    def _predict(self, predictor: "Predictor", calls: Sequence["Call"]) -> Iterator[Result]:
        """The results of what is read in calls."""
        from jaxpneumo.predict.native import to_native_on_host

        left_out: list[str] = []
        first: dict[tuple[int, str], str] = {}  # by a folder and an image's id, its first file

        def why_not(picture: Picture, folder: int | None) -> str:
            if picture.image is None:
                return _refusal(picture)
            used = picture.source if folder is None else first.setdefault((folder, picture.uid), picture.source)
            if used == picture.source:
                return ""
            return f"{printable(picture.source)} is a second file of image {picture.uid}; {printable(used)} is used."

        def usable() -> Iterator[Picture]:
            for picture, (_, folder) in zip(in_threads(call for call, _ in calls), calls, strict=True):
                if reason := why_not(picture, folder):
                    left_out.append(reason)
                    _warn(f"Left out: {reason}")
                else:
                    yield picture
            if len(left_out) == len(calls):
                raise InputError(f"none of the {len(calls)} files could be used. The first: {left_out[0]}")

        for picture, describe in predict_findings(predictor, usable(), self._bands, probability=True):
            finding = describe()
            probability = cast(np.ndarray, finding.probability)
            yield Result(
                id=picture.uid,
                source=picture.source,
                probability=_fixed(to_native_on_host(probability, picture.height, picture.width)),
                mask=_fixed(finding.mask.astype(bool)),
                area=finding.area,
                area_mm2=finding.area_mm2,
                score=finding.score,
                side=finding.side,
                remarks=finding.remarks,
                emptied_by=finding.emptied_by,
                synthetic=predictor.synthetic,
            )

    def __repr__(self) -> str:
        one = self.predictor
        thresholds = saved_thresholds.words(vars(one.settings))
        end = f"{NOTE}; {SYNTHETIC_NOTE}" if one.synthetic else NOTE
        return f"<LoadedModel {one.workdir}, {one.model_id[:12]}: {one.settings.size} pixels, {thresholds}; {end}>"


def load(workdir: str | os.PathLike[str], batch_size: int | None = None, thresholds: str | None = None) -> LoadedModel:
    """Loads a finished run. Research use only; not a medical device.

    If JAX has not computed anything in this process yet, it gets the flags of the `jaxpneumo` command, with which the
    results are the command's bit for bit.

    Args:
      workdir: folder of the run, or one to share that `jaxpneumo export --format folder` wrote.
      batch_size: number of images per call of the network; None uses the run's, and 1 for a single image.
      thresholds: use the thresholds that `jaxpneumo thresholds` saved under this name; None uses the run's own.

    Raises:
      InputError: the folder is no finished run, a file of a shared folder was changed, there are no such thresholds or
        they need a classifier that the run has not, or the batch size does not fit.
    """
    prepare_jax()
    from jaxpneumo.predict.infer import load_predictor

    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size {batch_size} is below 1.")
    folder = Path(workdir).expanduser()
    predictor = load_predictor(folder, batch_size)
    if thresholds is not None:
        predictor = replace(predictor, settings=saved_thresholds.use(folder, thresholds, predictor.settings))
    check_classifier(predictor)
    return LoadedModel(predictor, fixed=batch_size is not None)


def read_radiograph(path: str | os.PathLike[str]) -> Radiograph:
    """Reads a DICOM, PNG or JPEG radiograph as the network sees it, without what its header says about the patient.

    Returns:
      The grey image, uint8 (H, W) at native size with white bones, with id (`uid`), `pixel_spacing` in mm, `view` and
      `remarks`. `patient_id`, `sex` and `age` are empty.

    Raises:
      InputError: the file cannot be read or is no usable radiograph.
    """
    from jaxpneumo.dicom.dicom import read_image

    return replace(read_image(Path(path).expanduser()), patient_id="", sex="", age=None)


def _is_path(value: Any) -> TypeGuard[str | os.PathLike[str]]:
    return isinstance(value, (str, os.PathLike))


def _calls(image: Image, number: int, reading: Reading) -> list[Call]:
    """What reads an image or the files of a folder; `reading` has the settings."""
    if _is_path(image):
        where = Path(image).expanduser()
        found = finder.find(where)
        reading = replace(reading, folder=found.folder, repeated=ids.repeated_names(found.sources))
        folder = number if where.is_dir() else None
        return [(functools.partial(_read, reading, source, where.is_dir()), folder) for source in found.sources]
    if isinstance(image, Radiograph) or arrays.is_array(image):
        return [(functools.partial(_shrink, reading, image, f"array_{number}"), None)]
    raise InputError(
        f"image {number} is of type {type(image).__name__}. Give a path, a folder, an array (numpy.asarray makes one "
        "of a grey picture), or a list of these."
    )


def _read(reading: Reading, source: str, of_folder: bool) -> Picture:
    """Reads a file; of a folder, one that cannot be used has a reason and no image."""
    picture = replace(read(reading, source), source=str(reading.folder / source))
    return picture if of_folder else _used(picture)


def _shrink(reading: Reading, image: Any, name: str) -> Picture:
    """The picture of a radiograph or an array."""
    radiograph = _checked(image) if isinstance(image, Radiograph) else arrays.from_array(image, name)
    return replace(_used(shrink_radiograph(reading, Picture(radiograph.uid), radiograph)), source="")


def _checked(radiograph: Radiograph) -> Radiograph:
    """A radiograph that the user may have made; InputError where its image is none."""
    image = np.asarray(radiograph.image)
    if image.dtype != np.uint8 or image.ndim != 2:
        raise InputError(
            f"the image of radiograph {radiograph.uid} is {image.dtype} {image.shape}, not uint8 (height, width). Give "
            "the array itself, which is converted, or the result of read_radiograph."
        )
    height, width = image.shape
    check_size(height, width, radiograph.uid)
    return radiograph


def _used(picture: Picture) -> Picture:
    """The picture; InputError if it is not used."""
    if picture.reason:
        raise InputError(_refusal(picture))
    return picture


def _refusal(picture: Picture) -> str:
    """Why a picture is not used, and the way out, in words."""
    if not picture.reason.startswith(NOT_FRONTAL):
        return picture.reason
    return f"{printable(picture.source)}: {picture.reason}. any_image=True predicts it all the same."


def _warn(text: str) -> None:
    """Warns at the line outside of this package that asked for a result, through whatever the result is made by."""
    frame, level = sys._getframe(1), 2
    while frame is not None and frame.f_code.co_filename.startswith(PACKAGE):
        frame, level = frame.f_back, level + 1
    warn(text, stacklevel=level)


def _truth(mask: Any, number: int) -> np.ndarray:
    """A true mask, bool (H, W)."""
    truth = np.asarray(mask)
    if truth.ndim != 2 or truth.dtype.kind not in "bui":
        raise InputError(
            f"mask {number} is {truth.dtype} {truth.shape}. Give a mask (height, width), bool or integer, where 0 is "
            "background."
        )
    return truth != 0


def _fixed(array: np.ndarray) -> np.ndarray:
    """The array, which nothing may change any more."""
    array.setflags(write=False)
    return array
