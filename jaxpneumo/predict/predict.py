"""`jaxpneumo predict`: a folder of radiographs in, a submission csv and outlined pictures out.

Reading (`pipeline.py`), the device, and coding with writing run beside each other: while the device has a batch,
processes decode the next pictures and threads code the masks before.
"""

import argparse
import csv
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from jaxpneumo.data import rle
from jaxpneumo.data.dicom import read_image
from jaxpneumo.data.workers import cores
from jaxpneumo.errors import DONE, PARTIAL, InputError
from jaxpneumo.files import write_atomically
from jaxpneumo.predict import members, thresholds
from jaxpneumo.predict.pictures import write_overlay
from jaxpneumo.predict.pipeline import Picture, find_radiographs, read_ahead
from jaxpneumo.predict.postprocess import remove_small
from jaxpneumo.predict.submission import write_submission
from jaxpneumo.progress import progress

# What needs JAX is imported where it is used: --help, wrong flags and the reading processes do without.
if TYPE_CHECKING:
    from jaxpneumo.predict.infer import Predictor
    from jaxpneumo.predict.native import NativeMask

HELP = """\
Outlines pneumothorax in every DICOM, PNG or JPEG radiograph below a folder, or in one file. Not a medical device.

It writes to --output
  submission.csv   ImageId,EncodedPixels at each radiograph's own size; -1 where nothing was found
  overlays/        one PNG a radiograph with the outline (none with --overlays 0)
  quarantine.csv   files that could not be read, with the reason, when there are any (exit code 3)

examples:
  jaxpneumo predict --workdir runs/quickstart --input data/quickstart-test --output predictions
  jaxpneumo predict --workdir runs/exp5 --input stage_2_images --output out --overlays 0 --removal-threshold 0
  jaxpneumo predict --workdir runs/exp5 --input stage_2_images --output out --thresholds triplet
  jaxpneumo predict --workdir runs/exp5 --input film.dcm --output out --batch-size 1
  jaxpneumo predict --workdir runs/exp5_fold0 --workdir runs/exp5_fold1 --input images --output out

With several runs their probabilities are averaged, --weights 0.7,0.3 unequally; all else is the first run's.
"""


@dataclass(frozen=True)
class Report:
    """What a prediction did: radiographs read, with a finding, and files set aside."""

    images: int
    positive: int
    set_aside: int


def predict_folder(
    predictor: "Predictor",
    where: Path,
    output: Path,
    overlays: int | None = None,
    quiet: bool = False,
    workers: int | None = None,
) -> Report:
    """Predicts every radiograph below a folder; the settings are `predictor.config.predict`.

    Args:
      predictor: of `load_predictor`.
      where: a folder, searched at any depth for DICOM, PNG and JPEG files, or one such file.
      output: see HELP.
      overlays: how many pictures to write at most; None is one for every radiograph.
      quiet: no progress bar.
      workers: as `team` of `pipeline.read_ahead`.

    Raises:
      InputError: there are no such files, or not one could be read.
    """
    folder, files = find_radiographs(where, output)
    codes: dict[str, str] = {}
    set_aside: list[tuple[str, str]] = []

    def usable() -> Iterator[Picture]:
        seen: set[str] = set()
        for picture in read_ahead(folder, files, predictor.config.predict.size, workers):
            if picture.reason or picture.uid in seen:
                again = f"a second file of image {picture.uid}; the first one was used"
                set_aside.append((picture.source, picture.reason or again))
                bar.update()
            else:
                seen.add(picture.uid)
                yield picture

    with progress(None, total=len(files), description="predict", quiet=quiet) as bar:
        for picture, code in predict_codes(predictor, folder, usable(), output / "overlays", overlays):
            codes[picture.uid] = code
            bar.update()

    if not codes:
        raise InputError(f"none of the {len(files)} files below {folder} could be read; the first: {set_aside[0][1]}")
    write_submission(output / "submission.csv", sorted(codes.items()))
    if set_aside:
        with write_atomically(output / "quarantine.csv") as file:
            csv.writer(file, lineterminator="\n").writerows([("file", "reason"), *set_aside])
    else:
        (output / "quarantine.csv").unlink(missing_ok=True)
    return Report(len(codes), sum(code != rle.EMPTY for code in codes.values()), len(set_aside))


def predict_codes(
    predictor: "Predictor", folder: Path, pictures: Iterable[Picture], draw_to: Path, overlays: int | None
) -> Iterator[tuple[Picture, str]]:
    """Run-length codes of pictures' masks, and outlined pictures of the first ones.

    Args:
      predictor: of `load_predictor`.
      folder: that the pictures' files lie in.
      pictures: of `pipeline.read_ahead`; none that could not be read.
      draw_to: folder for the outlined pictures.
      overlays: how many of them to write; None is all.

    Yields:
      (picture, without its image; code) in the order of the pictures. What is to be drawn of it is on the disk.
    """
    from jaxpneumo.predict.infer import predict_masks

    settings = predictor.config.predict
    view = int(settings.tta)
    stream = ((replace(picture, image=None), picture.image, (picture.height, picture.width)) for picture in pictures)

    def finish(picture: Picture, mask: "NativeMask", draw: bool) -> tuple[Picture, str]:
        if mask.area == 0 and not draw:
            return picture, rle.EMPTY
        kept = remove_small(mask.unpack(), settings.removal_threshold, settings.removal_rule)
        if draw:
            # Read anew: keeping every radiograph until its mask is there would cost more than decoding a few twice.
            write_overlay(draw_to / f"{picture.uid}.png", read_image(folder / picture.source).image, kept)
        return picture, rle.encode(kept)

    with ThreadPoolExecutor(cores()) as pool:
        waiting: deque = deque()
        for number, (picture, masks) in enumerate(predict_masks(predictor, stream, [view])):
            waiting.append(pool.submit(finish, picture, masks[view], overlays is None or number < overlays))
            while len(waiting) > 2 * settings.batch_size or (waiting and waiting[0].done()):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def main(arguments: Sequence[str]) -> int:
    """The verb: see HELP. Returns 0, or 3 when files were set aside."""
    parser = argparse.ArgumentParser(
        prog="jaxpneumo predict", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    members.add_arguments(parser)
    parser.add_argument("--input", type=Path, required=True, help="a folder, searched at any depth, or a file")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--overlays", type=int, help="write at most this many pictures (default: all)")
    parser.add_argument(
        "--thresholds", metavar="NAME", help="thresholds that `jaxpneumo thresholds` saved by this name"
    )
    parser.add_argument("--threshold", type=float, help="probability threshold (default: the run's)")
    parser.add_argument(
        "--removal-threshold",
        type=int,
        help="smallest area in pixels of a 1024x1024 image (default: the run's; 0 = keep all)",
    )
    parser.add_argument("--removal-rule", choices=("image", "component"), help="default: the run's")
    parser.add_argument("--no-tta", action="store_true", help="predict without the mirror image")
    parser.add_argument("--batch-size", type=int, help="radiographs in one call of the network (default: the run's)")
    parser.add_argument("--workers", type=int, metavar="N", help="reading processes (default: one a core; 0: threads)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(arguments)

    single = ("threshold", "removal_threshold", "removal_rule")
    if options.thresholds and any(getattr(options, name) is not None for name in single):
        raise InputError(
            "--thresholds sets the probability and removal thresholds: leave out --threshold, --removal-threshold "
            "and --removal-rule."
        )
    if options.workers is not None and options.workers < 0:
        raise InputError(f"{options.workers} workers cannot read; give --workers 0 or more.")
    workdirs = members.read_workdirs(options.workdir)
    weights = members.read_weights(options.weights, len(workdirs))
    find_radiographs(options.input, options.output)
    from jaxpneumo.predict.ensemble import load_ensemble

    predictor = load_ensemble(workdirs, weights, options.batch_size)
    settings = predictor.config.predict
    for name in single:
        if getattr(options, name) is not None:
            settings[name] = getattr(options, name)
    settings.tta = settings.tta and not options.no_tta
    if options.thresholds:
        thresholds.use(workdirs[0], options.thresholds, settings)
    report = predict_folder(predictor, options.input, options.output, options.overlays, options.quiet, options.workers)
    print(
        f"{report.images} radiographs, pneumothorax outlined in {report.positive}, {report.set_aside} files set "
        f"aside; {options.output / 'submission.csv'}. Not a medical device."
    )
    if report.set_aside:
        print(f"What was set aside and why: {options.output / 'quarantine.csv'}")
    return PARTIAL if report.set_aside else DONE
