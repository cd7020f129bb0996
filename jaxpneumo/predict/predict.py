"""`jaxpneumo predict`: reads a folder of radiographs, writes a submission csv and pictures with outlines.

Three steps run at the same time. While the device predicts a batch, processes decode the next pictures (`reading.py`),
and threads encode and write the previous masks (`outputs.py`). The result of each file goes to the manifest
(`manifest.py`) at once, when all that is written of it is on the disk.
The submission is written from the manifest.
"""

import logging
import os
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxpneumo.data import finder, ids
from jaxpneumo.dicom.radiograph import file_id
from jaxpneumo.predict import dicom_results, gate, model_options, saved_thresholds, workdir_options
from jaxpneumo.predict.certainty import Bands, bands_of
from jaxpneumo.predict.manifest import (
    MANIFEST,
    choose_part,
    discard_other,
    end_entry,
    make_header,
    open_manifest,
    outputs_of,
    part_folder,
    part_of,
)
from jaxpneumo.predict.merge import PredictedCounts, write_results
from jaxpneumo.predict.outputs import (
    Earlier,
    Output,
    Written,
    masks_output,
    overlays_output,
    predict_and_write,
    probabilities_output,
)
from jaxpneumo.predict.postprocess import RULES as REMOVAL_RULES
from jaxpneumo.predict.reading import Picture, Reading, read_ahead, team_for
from jaxpneumo.process import places, run_report
from jaxpneumo.process.arguments import Parser
from jaxpneumo.process.errors import DONE, PARTIAL, InputError
from jaxpneumo.process.files import printable
from jaxpneumo.process.progress import COMPILING, progress_bar
from jaxpneumo.process.ranges import BATCH, WORKERS, whole
from jaxpneumo.run.config_values import VALUES
from jaxpneumo.run.tta import TTA

# Modules that need JAX or pydicom are imported where they are used. So --help and error messages for wrong flags are
# fast, and the reading processes do not load JAX.
if TYPE_CHECKING:
    from jaxpneumo.predict.infer import Predictor

logger = logging.getLogger(__name__)

HELP = """\
Outlines pneumothorax in every DICOM, PNG or JPEG radiograph below a folder, or in one file. Not a medical device.

It writes to --output
  submission.csv   ImageId,EncodedPixels at each radiograph's own size; -1 where nothing was found
  results.csv      every file with its score, certainty, areas and side, or why it was set aside
  index.html       the same as a page for a browser; needs no network
  overlays/        for each radiograph one PNG with the outline (none with --overlays 0)
  masks/           with --masks, for each radiograph its mask as a PNG at the radiograph's own size: 0 is background,
                   255 is pneumothorax
  probabilities/   with --probabilities png16 or npz, for each radiograph the probability of each pixel at the network's
                   size: as a PNG of 16 bits (probability * 65535), or as a NumPy file with `probability` float32
  dicom_results/   with --dicom, a folder for each radiograph with results for archives and viewers: sr.dcm, its report,
                   and where something is outlined seg.dcm, presentation.dcm and capture.dcm
  quarantine.csv   the files that were not used, with the reason (exit code 3): damaged files, and images whose header
                   says that they are not frontal chest radiographs (--any-image predicts those too)
  manifest.jsonl   model, settings and software, then every file's checksum and result

After a stop or a kill, give the same command again: it continues where it stopped.

--num-parts N --part-id K predicts part K of N and writes to OUTPUT/part-K-of-N. K is 0 to N-1, or auto: the number of
the task in a Slurm array or an indexed Kubernetes job. `jaxpneumo merge` joins all parts into one submission.

examples:
  jaxpneumo predict --workdir runs/quickstart --input data/quickstart-test --output predictions
  jaxpneumo predict --workdir runs/exp5 --input stage_2_images --output out --overlays 0 --removal-threshold 0
  jaxpneumo predict --workdir runs/exp5 --input stage_2_images --output out --thresholds triplet
  jaxpneumo predict --workdir runs/exp5 --input film.dcm --output out
  jaxpneumo predict --workdir runs/exp5 --input stage_2_images --output out --overlays 0 --dicom sr,seg
  jaxpneumo predict --workdir runs/exp5 --input archive --output out --overlays 0 --num-parts 32 --part-id auto
  jaxpneumo predict --workdir runs/exp5_fold0 --workdir runs/exp5_fold1 --input images --output out
  jaxpneumo predict --workdir runs/positives --gate runs/exp5 --input images --output out
  jaxpneumo predict --model exp5.onnx --runtime openvino --input archive --output out

With several runs, the mean of their probabilities is used; --weights 0.7,0.3 makes it a weighted mean. The
images have the largest of the runs' sizes. All other settings are those of the first run, also the thresholds:
`jaxpneumo thresholds --evaluation` chooses the ensemble's.

With --gate RUN, another run decides whether there is a pneumothorax: an image stays empty where that run, with its own
thresholds, outlines nothing.

--model FILE predicts with a file of `jaxpneumo export --format onnx` on the CPU, without JAX and faster. All else is
the same. Masks may differ from the run's in pixels whose probability is within rounding of the threshold.
"""


def predict_folder(
    predictor: "Predictor", where: Path, output: Path, overlays: int | None = None, **options: Any
) -> PredictedCounts:
    """Predicts all radiographs that `finder.find` finds in `where`. For other arguments see `predict_files`."""
    found = finder.find(where, output)
    return predict_files(predictor, found.folder, found.sources, output, overlays, **options)


def predict_files(
    predictor: "Predictor",
    root: Path,
    listed: list[str],
    output: Path,
    overlays: int | None = None,
    quiet: bool = False,
    workers: int | None = None,
    part: tuple[int, int] | None = None,
    anew: bool = False,
    any_image: bool = False,
    outputs: Sequence[Output] = (),
) -> PredictedCounts:
    """Predicts radiographs with the settings `predictor.settings`.

    Memory holds the paths of all files and the ids of all images. Where files are predicted again for outputs that they
    lack, it also holds the names of those that they have. Nothing else in memory grows with the number of files.

    Args:
      predictor: the result of `load_predictor`.
      root, listed: the folder and all its sources, from `finder.find`.
      output: see HELP.
      overlays: largest number of pictures to write; None writes one for every radiograph.
      quiet: shows no progress bar.
      workers: number of processes that read files and, where asked for, of others that make DICOM results; see
        `reading.team_for`.
      part: (K, N) predicts only part K of N; None predicts all files.
      anew: removes predictions of another model or other settings from `output`. If False, they cause an InputError.
      any_image: also predicts images whose header says that they are not frontal chest radiographs.
      outputs: what else to write for each image. Files that an earlier start predicted without some of these outputs
        are predicted again.

    Raises:
      InputError: none of the files could be used, or `output` holds predictions of another model or other settings.
    """
    sources = listed if part is None else [source for source in listed if part_of(source, part[1]) == part[0]]
    folder = part_folder(output, part)
    bands = bands_of(predictor)
    header = _header(predictor, part, any_image, bands)
    reading = Reading(root, predictor.settings.size, ids.repeated_names(listed), any_image)
    if anew:
        discard_other(folder, header)
    asked = [*([] if overlays == 0 else [overlays_output(predictor, overlays)]), *outputs]
    lacking: Counter[str] = Counter()
    told: set[str] = set()
    earlier = Earlier()

    def is_complete(entry: dict[str, Any]) -> bool:
        missing = _missing(entry, asked, folder)
        lacking.update(missing)
        if missing:
            earlier.written[entry["file"]] = outputs_of(entry)
        elif "uid" in entry and not entry.get("second"):
            earlier.is_first(entry["uid"], entry["file"])
        return not missing

    def is_called_so(entry: dict[str, Any]) -> bool:
        return not _is_named(entry) or entry["uid"] == reading.name_of(entry["file"])

    with open_manifest(folder, header, root, sources, is_complete, is_called_so) as (left, append):
        for name, count in lacking.items():
            logger.info("%d files were predicted without %s before; they are predicted again.", count, name)

        def usable() -> Iterator[Picture]:
            for picture in read_ahead(reading, left, workers):
                if picture.reason:
                    append({**_entry(picture), "state": "set aside", "reason": picture.reason})
                    bar.update()
                else:
                    yield picture

        team = team_for(len(left), workers)
        with (
            progress_bar(None, total=len(sources), description="predict", quiet=quiet) as bar,
            closing(predict_and_write(predictor, root, usable(), bands, folder, asked, earlier, team)) as results,
        ):
            bar.update(len(sources) - len(left))
            bar.set_postfix_str(COMPILING if left else "")
            for written in results:
                bar.set_postfix_str("", refresh=False)
                for key, reason in written.failed.items():
                    if key not in written.outputs:
                        source = printable(written.finding.picture.source)
                        logger.warning("%s was predicted, but a file could not be written: %s", source, reason)
                    elif (why := reason.partition(": ")[2]) not in told:
                        told.add(why)
                        logger.warning("%s Files like it are counted at the end.", reason)
                picture = written.finding.picture
                append(_done(written, named=picture.uid == reading.name_of(picture.source)))
                bar.update()
        append(end_entry(listed, len(sources)))
        run_report.read(root, len(left))
        run_report.skipped("files predicted by an earlier start", len(sources) - len(left))
    report = write_results([folder / MANIFEST], folder / "submission.csv", folder, [output.key for output in asked])
    if part is None and not report.images:
        (folder / "submission.csv").unlink()
        way_out = (
            ". --any-image also predicts images that are not frontal chest radiographs." if report.not_frontal else ""
        )
        alone = f"{root / sources[0]} cannot be used: {report.first}"
        several = f"none of the {len(sources)} files below {root} could be used. The first: {report.first}"
        raise InputError(f"{alone if len(sources) == 1 else several}{way_out}")
    return report


def _missing(entry: dict[str, Any], asked: Sequence[Output], folder: Path) -> list[str]:
    """The outputs that a predicted file lacks.

    They were not written, or are gone. Those of a limited number are not missed, nor those that the image cannot have.
    A second file of an image has none.
    """
    if entry.get("state") != "done" or entry.get("second"):
        return []
    there = outputs_of(entry)

    def is_there(output: Output) -> bool:
        if output.key not in there:
            return False
        has_none = output.key in entry.get("unwritten", ()) or not (output.of_negatives or entry["positive"])
        return has_none or output.path(folder, entry["uid"]).exists()

    return [output.key for output in asked if output.most is None and not is_there(output)]


def _is_named(entry: dict[str, Any]) -> bool:
    """Whether an entry's id came from the name of its file, which other files may change (`ids.name_of`)."""
    # Older manifests do not say it: then an id that the name can give came from it.
    source = entry["file"]
    possible = (printable(ids.name_of(source, own)) for own in ((), (file_id(source),)))
    return "uid" in entry and entry.get("named", entry["uid"] in possible)


def _header(predictor: "Predictor", part: tuple[int, int] | None, any_image: bool, bands: Bands) -> dict[str, Any]:
    from jaxpneumo.process.software import software

    settings = gate.mask_settings(predictor) | {"any_image": any_image}
    return make_header(predictor.model_id, settings, software(), part, predictor.synthetic, asdict(bands))


def _entry(picture: Picture) -> dict[str, Any]:
    return {"file": picture.source, "stamp": list(picture.stamp), "sha256": picture.sha256}


def _done(written: Written, named: bool) -> dict[str, Any]:
    """The manifest's entry of a predicted file; `named`: its id is the one that its name gives."""
    finding, picture = written.finding, written.finding.picture
    facts = {
        "score": round(finding.score, 6),
        "finding": None if finding.classifier is None else round(finding.classifier, 6),
        "spacing": picture.pixel_spacing,
        "emptied_by": finding.emptied_by or None,
        "side": finding.side,
        "largest": finding.largest,
        "unwritten": written.failed or None,
        "remarks": picture.remarks or None,
        "second": written.second or None,
    }
    return {
        **_entry(picture),
        "uid": picture.uid,
        "named": named,
        "state": "done",
        "size": [picture.height, picture.width],
        "positive": finding.area > 0,
        "area": finding.area,
        **{name: value for name, value in facts.items() if value is not None},
        "outputs": written.outputs,
        "code": written.code,
    }


def _outputs(options: Namespace, predictor: "Predictor") -> list[Output]:
    """The outputs that options ask for, beside the pictures with outlines."""
    return [
        *([masks_output(predictor)] if options.masks else []),
        *([probabilities_output(predictor, options.probabilities)] if options.probabilities else []),
        *dicom_results.dicom_outputs(predictor, options.dicom),
    ]


def main(arguments: Sequence[str]) -> int:
    """Runs the command; see HELP. Returns 0, or 3 if files were set aside."""
    parser = Parser(prog="jaxpneumo predict", description=HELP)
    workdir_options.add_arguments(parser, required=False)
    model_options.add_arguments(parser)
    add = parser.add_argument
    add("--input", type=places.path, required=True, help="folder of radiographs, searched at any depth, or one file")
    add("--output", type=places.folder_to_fill, required=True, help="folder to write to")
    add(
        "--overlays",
        type=VALUES["predict.overlays"],
        help="write at most this many pictures with outlines (default: all)",
    )
    add("--masks", action="store_true", help="also write the masks as PNG files")
    add("--probabilities", choices=("png16", "npz"), help="also write the probabilities before thresholds")
    add(
        "--dicom",
        type=dicom_results.kinds,
        default=(),
        metavar="KINDS",
        help=f"also write DICOM results: {', '.join(dicom_results.KINDS)}, several with commas between them",
    )
    add("--thresholds", metavar="NAME", help="use the thresholds that `jaxpneumo thresholds` saved under this name")
    add("--threshold", type=VALUES["predict.threshold"], help="probability threshold (default: the run's)")
    add(
        "--removal-threshold",
        type=VALUES["predict.removal_threshold"],
        help="remove predictions of a smaller area, in pixels of a 1024x1024 image (default: the run's; 0: none)",
    )
    add("--removal-rule", choices=REMOVAL_RULES, help="remove whole images or single components (default: the run's)")
    views = parser.add_mutually_exclusive_group().add_argument
    views("--tta", type=TTA, metavar="NAMES", help=f"test-time augmentation: {TTA} (default: the run's)")
    views("--no-tta", action="store_const", const=False, dest="tta", help="the same as --tta False")
    gate.add_arguments(parser)
    add(
        "--batch-size",
        type=BATCH,
        help="radiographs per call of the network (default: the run's; 1 for a single file)",
    )
    add(
        "--workers",
        type=WORKERS,
        metavar="N",
        help="processes that read files, and as many that make DICOM results (default: one per core; 0: threads)",
    )
    add("--any-image", action="store_true", help="also predict images that are not frontal chest radiographs")
    add("--num-parts", type=whole(1, 99_999, word="auto"), metavar="N", help="predict one of N parts of the files")
    add("--part-id", type=whole(0, 99_998, word="auto"), metavar="K", help="which part to predict")
    options = parser.parse_args(arguments)

    single = ("threshold", "removal_threshold", "removal_rule")
    if options.thresholds and any(getattr(options, name) is not None for name in single):
        raise InputError(
            "--thresholds sets the probability and removal thresholds: leave out --threshold, --removal-threshold "
            "and --removal-rule."
        )
    model_options.check(options)
    if options.dicom:
        dicom_results.check_installed()
    part = choose_part(options.num_parts, options.part_id, os.environ)
    run_report.place(part_folder(options.output, part))
    workdirs = [options.model] if options.model else workdir_options.read_workdirs(options.workdir)
    weights = workdir_options.read_weights(options.weights, len(workdirs))
    found = finder.find(options.input, options.output)
    batch_size = 1 if options.batch_size is None and len(found.sources) == 1 else options.batch_size
    if options.model:
        predictor = model_options.load(options.model, options.runtime, batch_size)
    else:
        from jaxpneumo.predict.ensemble import load_ensemble

        predictor = load_ensemble(workdirs, weights, batch_size)
    given = {name: value for name in single if (value := getattr(options, name)) is not None}
    settings = replace(predictor.settings, tta=predictor.settings.tta if options.tta is None else options.tta, **given)
    if options.thresholds:
        settings = saved_thresholds.use(workdirs[0], options.thresholds, settings)
    predictor = replace(
        predictor, settings=settings, gate=gate.load_gate(options.gate, options.gate_thresholds, settings)
    )
    report = predict_files(
        predictor,
        found.folder,
        found.sources,
        options.output,
        options.overlays,
        workers=options.workers,
        part=part,
        any_image=options.any_image,
        outputs=_outputs(options, predictor),
    )
    folder = part_folder(options.output, part)
    print(saved_thresholds.origin(settings, workdirs, options.thresholds, predictor.model_id, weights, [*given]))
    if predictor.gate is not None:
        used = saved_thresholds.words(vars(predictor.gate.settings))
        print(f"Gate: {options.gate} ({used}); images stay empty where it outlines nothing.")
    print(
        f"{report.images} radiographs, pneumothorax outlined in {report.positive}, {report.set_aside} files set "
        f"aside; {folder / 'submission.csv'}. {report.note}"
    )
    if report.emptied:
        print(report.emptied)
    if report.set_aside:
        print(f"{folder / 'quarantine.csv'} lists the files that were set aside, with the reasons.")
    if report.not_frontal:
        one = report.not_frontal == 1
        what = "is not a frontal chest radiograph" if one else "are not frontal chest radiographs"
        print(f"{report.not_frontal} of them {what}; --any-image predicts {'it' if one else 'them'} too.")
    for line in report.remarks:
        print(line)
    unwritten: dict[str, list[str]] = {}
    for key, count in report.unwritten.items():
        name, _, file = key.partition("/")
        unwritten.setdefault(name, []).append(f"{count} {file or 'files'}")
    for name, counts in unwritten.items():
        what = f"{', '.join(counts)} of {folder / name}"
        print(f'{what} could not be written. {folder / MANIFEST} says why under "unwritten".')
    return DONE if report.complete else PARTIAL
