"""`jaxpneumo predict`: a folder of radiographs in, a submission csv and outlined pictures out."""

import argparse
import csv
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxpneumo.data import rle
from jaxpneumo.data.dicom import Radiograph, read_image
from jaxpneumo.errors import DONE, PARTIAL, InputError
from jaxpneumo.files import write_atomically
from jaxpneumo.predict import thresholds
from jaxpneumo.predict.infer import Predictor, load_predictor, predict_masks, shrink
from jaxpneumo.predict.pictures import write_overlay
from jaxpneumo.predict.postprocess import remove_small
from jaxpneumo.predict.submission import write_submission
from jaxpneumo.progress import progress

ENDINGS = {".dcm", ".dicom", ".png", ".jpg", ".jpeg", ""}

HELP = """\
Outlines pneumothorax in every DICOM, PNG or JPEG radiograph below a folder. Not a medical device.

It writes to --output
  submission.csv   ImageId,EncodedPixels at each radiograph's own size; -1 where nothing was found
  overlays/        one PNG a radiograph with the outline (none with --overlays 0)
  quarantine.csv   files that could not be read, with the reason, when there are any (exit code 3)

examples:
  jaxpneumo predict --workdir runs/quickstart --input data/quickstart-test --output predictions
  jaxpneumo predict --workdir runs/exp5 --input stage_2_images --output out --overlays 0 --removal-threshold 0
  jaxpneumo predict --workdir runs/exp5 --input stage_2_images --output out --thresholds triplet
"""


@dataclass(frozen=True)
class Report:
    """What a prediction did: radiographs read, with a finding, and files set aside."""

    images: int
    positive: int
    set_aside: int


def predict_folder(
    predictor: Predictor, folder: Path, output: Path, overlays: int | None = None, quiet: bool = False
) -> Report:
    """Predicts every radiograph below a folder; the settings are `predictor.config.predict`.

    Args:
      predictor: of `load_predictor`.
      folder: searched at any depth for DICOM, PNG and JPEG files.
      output: see HELP.
      overlays: how many pictures to write at most; None is one for every radiograph.
      quiet: no progress bar.

    Raises:
      InputError: there are no such files, or not one could be read.
    """
    settings = predictor.config.predict
    files = find_radiographs(folder)
    codes: dict[str, str] = {}
    set_aside: list[tuple[str, str]] = []
    natives: dict[str, np.ndarray] = {}

    def images() -> Iterator[tuple[str, np.ndarray, tuple[int, int]]]:
        for path, radiograph in _read_ahead(files):
            name = str(path.relative_to(folder))
            if isinstance(radiograph, InputError):
                set_aside.append((name, str(radiograph)))
                bar.update()
            elif radiograph.uid in codes:
                set_aside.append((name, f"a second file of image {radiograph.uid}; the first one was used"))
                bar.update()
            else:
                codes[radiograph.uid] = rle.EMPTY
                natives[radiograph.uid] = radiograph.image
                yield radiograph.uid, shrink(radiograph.image, settings.size), radiograph.image.shape

    view = int(settings.tta)
    drawn = 0
    with progress(None, total=len(files), description="predict", quiet=quiet) as bar:
        for uid, masks in predict_masks(predictor, images(), [view]):
            mask = remove_small(masks[view], settings.removal_threshold, settings.removal_rule)
            codes[uid] = rle.encode(mask)
            native = natives.pop(uid)
            if overlays is None or drawn < overlays:
                write_overlay(output / "overlays" / f"{uid}.png", native, mask)
                drawn += 1
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


def find_radiographs(folder: Path) -> list[Path]:
    """DICOM, PNG and JPEG files below a folder, sorted. Raises InputError when there are none."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder. Give the folder with the radiographs as --input.")
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in ENDINGS and p.is_file())
    if not files:
        raise InputError(f"{folder} holds no .dcm, .png or .jpg files, and none without an ending.")
    return files


def _read_ahead(files: Sequence[Path]) -> Iterator[tuple[Path, Radiograph | InputError]]:
    """Reads files in threads, in order, a few ahead of what is asked for: memory does not grow with them."""
    threads = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        ahead = deque()
        remaining = iter(files)
        for path in remaining:
            ahead.append((path, pool.submit(_read, path)))
            if len(ahead) > 2 * threads:
                first, result = ahead.popleft()
                yield first, result.result()
        for path, result in ahead:
            yield path, result.result()


def _read(path: Path) -> Radiograph | InputError:
    try:
        return read_image(path)
    except InputError as error:
        return error


def main(arguments: Sequence[str]) -> int:
    """The verb: see HELP. Returns 0, or 3 when files were set aside."""
    parser = argparse.ArgumentParser(
        prog="jaxpneumo predict", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True, help="a finished training run")
    parser.add_argument("--input", type=Path, required=True, help="folder with radiographs, searched at any depth")
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
    parser.add_argument("--batch-size", type=int, help="default: the run's")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(arguments)

    single = ("threshold", "removal_threshold", "removal_rule")
    if options.thresholds and any(getattr(options, name) is not None for name in single):
        raise InputError(
            "--thresholds sets the probability and removal thresholds: leave out --threshold, --removal-threshold "
            "and --removal-rule."
        )
    find_radiographs(options.input)
    predictor = load_predictor(options.workdir)
    settings = predictor.config.predict
    for name in (*single, "batch_size"):
        if getattr(options, name) is not None:
            settings[name] = getattr(options, name)
    settings.tta = settings.tta and not options.no_tta
    if options.thresholds:
        thresholds.use(options.workdir, options.thresholds, settings)
    report = predict_folder(predictor, options.input, options.output, options.overlays, options.quiet)
    print(
        f"{report.images} radiographs, pneumothorax outlined in {report.positive}, {report.set_aside} files set "
        f"aside; {options.output / 'submission.csv'}. Not a medical device."
    )
    if report.set_aside:
        print(f"What was set aside and why: {options.output / 'quarantine.csv'}")
    return PARTIAL if report.set_aside else DONE
