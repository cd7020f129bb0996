"""`jaxpneumo split`: divides images into training and validation, and reports what the two sides share.

Beside splits.json it leaves splits.leaks.json: how many validation images have their patient, or a
near-duplicate, in training, and which. A score on such images says less about new patients.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from jaxpneumo.data import csv_tables, dataset, leaks, splits
from jaxpneumo.data.dataset import Index
from jaxpneumo.process import places, run_report
from jaxpneumo.process.arguments import Parser
from jaxpneumo.process.atomic import write_json
from jaxpneumo.process.errors import DONE, InputError
from jaxpneumo.process.progress import progress_bar
from jaxpneumo.process.ranges import FRACTION, SEED, whole

Sides = tuple[np.ndarray, np.ndarray]  # training and validation rows


def leak_report(index: Index, sides: list[Sides], pairs: leaks.Pairs | None) -> dict[str, Any]:
    """What validation shares with training, one entry a fold.

    Args:
      index: of the data set, or of the csv tables.
      sides: training and validation rows; one pair, or one a fold.
      pairs: near-duplicates among the images; None where there are no images to compare.

    Returns:
      near_duplicate_bits (the threshold, None without images) and folds: dictionaries with the numbers
      train_images, train_positive, validation_images, validation_positive, patient_in_training (None where
      patients are unknown), patient_unknown, near_duplicate_in_training (None without images), and the lists
      images_with_patient_in_training (ImageIds) and near_duplicates (validation, training, distance in bits).
    """
    return {
        "near_duplicate_bits": None if pairs is None else leaks.THRESHOLD,
        "folds": [_leaks_of(index, train, validation, pairs) for train, validation in sides],
    }


def _leaks_of(index: Index, train: np.ndarray, validation: np.ndarray, pairs: leaks.Pairs | None) -> dict[str, Any]:
    shared = splits.with_patient_in_training(index.patient, train, validation)
    near = None if pairs is None else leaks.across(pairs, train, validation)
    columns = () if near is None else (index.image_id[near.first], index.image_id[near.second], near.distance)
    return {
        "train_images": len(train),
        "train_positive": int(index.positive[train].sum()),
        "validation_images": len(validation),
        "validation_positive": int(index.positive[validation].sum()),
        "patient_in_training": None if shared is None else len(shared),
        "patient_unknown": int((index.patient[validation] == "").sum()),
        "near_duplicate_in_training": None if near is None else len(near),
        "images_with_patient_in_training": [] if shared is None else index.image_id[shared].tolist(),
        "near_duplicates": [
            dict(zip(("validation", "training", "distance"), values, strict=True))
            for values in zip(*(column.tolist() for column in columns), strict=True)
        ],
    }


def text(report: dict[str, Any]) -> str:
    """The leak report for people."""
    lines = []
    for number, fold in enumerate(report["folds"]):
        name = f"fold {number}: " if len(report["folds"]) > 1 else ""
        total = fold["validation_images"]
        lines.append(
            f"{name}{fold['train_images']} training images ({fold['train_positive']} positive), "
            f"{total} validation images ({fold['validation_positive']} positive)"
        )
        lines.append(f"  patient in training:        {_share(fold['patient_in_training'], total)}")
        if fold["patient_in_training"] is not None and fold["patient_unknown"]:
            lines.append(f"  patient unknown:            {_share(fold['patient_unknown'], total)}")
        lines.append(f"  near-duplicate in training: {_share(fold['near_duplicate_in_training'], total)}")
    folds = report["folds"]
    if any(fold["patient_in_training"] is None and fold["validation_images"] for fold in folds):
        lines.append("Patients are unknown. Give --patients CSV (columns ImageId,patient) to find shared patients.")
    if any(fold["patient_in_training"] for fold in folds):
        lines.append("Scores on training patients are too optimistic; --method patient keeps each patient on one side.")
    if report["near_duplicate_bits"] is None:
        lines.append("Near-duplicates were not searched: a label csv holds no images. Give --data DIR to search them.")
    return "\n".join(lines)


def _share(count: int | None, total: int) -> str:
    if count is None:
        return "not known"
    return f"{count} of {total} validation images" + (f" ({100 * count / total:.1f} %)" if total else "")


# The verb


def main(argv: list[str]) -> int:
    """`jaxpneumo split`; returns the exit code. Raises InputError for wrong use or bad input."""
    args = _parser().parse_args(argv)
    output = _output(args)
    report_file = output.with_suffix(".leaks.json")
    run_report.place(output)
    index = _index(args)
    sides = _make(args, index)
    if output.exists() and not args.overwrite and not _holds(output, index, sides):
        raise InputError(
            f"{output} holds another split, which runs may be trained on. Give another --output, or --overwrite to "
            "replace it."
        )
    report_file.unlink(missing_ok=True)  # it is of the split that is replaced now
    _write(args, index, sides, output)
    pairs = None
    if args.data:
        images, _ = dataset.open_arrays(args.data, min(dataset.read_info(args.data)["sizes"]))
        pairs = leaks.near_duplicates(progress_bar(images, len(images), description="compare"))
    report = leak_report(index, sides, pairs)
    write_json(report_file, report)
    print(text(report))
    print(f"Written: {output} and {report_file}")
    return DONE


def _output(args: argparse.Namespace) -> Path:
    """The file to write. Raises InputError when the options do not go together."""
    if (args.data is None) == (args.labels is None):
        raise InputError("Give either --data DIR, a prepared data set, or --labels CSV, the bare table.")
    if args.output is not None:
        output = args.output
    elif args.data is not None:
        output = args.data / "splits.json"
    else:
        raise InputError(
            "Without --data there is no folder to write to. Give the file to write, such as --output splits.json."
        )
    splits.check_name(args.method, "--method", (*splits.DRAWN, "rounds"))
    if args.method == "rounds" and not args.patients:
        raise InputError("--method rounds needs --patients CSV with a column round1 of train and test.")
    if args.folds is not None and args.method not in splits.DRAWN:
        raise InputError("--folds goes with --method random or patient only.")
    if output.suffix != ".json":
        raise InputError(f"--output {output} must end in .json.")
    places.check_file(output, "--output")
    return output


def _index(args: argparse.Namespace) -> Index:
    if args.data is None:
        return csv_tables.read_tables(args.labels, args.patients)
    index = dataset.read_index(args.data)
    return csv_tables.with_patients(index, args.patients) if args.patients else index


def _make(args: argparse.Namespace, index: Index) -> list[Sides]:
    """Training and validation rows: one pair, or one a fold."""
    method, seed = args.method, args.seed
    if args.folds is not None:
        if method == "patient":
            splits.check_patients(index)
            fold = splits.patient_folds(index.positive, index.patient, args.folds, seed)
        else:
            fold = splits.random_folds(index.positive, args.folds, seed)
        return [(np.flatnonzero(fold != number), np.flatnonzero(fold == number)) for number in range(args.folds)]
    if method == "rounds":
        return [splits.rounds_split(csv_tables.read_column(args.patients, "round1", index.image_id))]
    count = 1 if method in splits.DRAWN else splits.read_splits(method).get("folds", 1)
    return [splits.split_rows(index, method, args.validation_fraction, seed, fold)[:2] for fold in range(count)]


def _holds(file: Path, index: Index, sides: list[Sides]) -> bool:
    """Whether a splits file has these sides already."""
    try:
        if splits.read_splits(file).get("folds", 1) != len(sides):
            return False
        there = [splits.split_rows(index, file, 0.0, 0, fold)[:2] for fold in range(len(sides))]
    except InputError:
        return False
    return all(
        np.array_equal(a, b) for old, new in zip(there, sides, strict=True) for a, b in zip(old, new, strict=True)
    )


def _write(args: argparse.Namespace, index: Index, sides: list[Sides], output: Path) -> None:
    how = {"method": args.method, "validation_fraction": args.validation_fraction, "seed": args.seed}
    if args.method == "rounds":
        how |= {"validation_fraction": None, "seed": None}
    elif args.method not in splits.DRAWN:
        *_, how = splits.split_rows(index, args.method, args.validation_fraction, args.seed)
    if len(sides) > 1:
        splits.write_folds(output, [index.image_id[validation] for _, validation in sides], how["method"], how["seed"])
    else:
        splits.write_splits(output, index.image_id, *sides[0], **splits.origin(how))


def _parser() -> Parser:
    parser = Parser(
        prog="jaxpneumo split",
        description="Divides the images into training and validation, and reports what both share.",
        epilog="""examples:
  jaxpneumo split --data data/siim --method patient --output data/siim-patient.json
  jaxpneumo split --data data/siim --method patient --folds 5 --output data/siim-folds.json
  jaxpneumo split --data data/siim --method rounds --patients patients.csv --overwrite
  jaxpneumo split --data data/siim --method mine.csv --overwrite      (columns ImageId,split: train or validation)
  jaxpneumo split --labels train-rle.csv --patients patients.csv --output splits.json

methods:
  random   the papers' way; the same patient can be in training and validation
  patient  keeps all images of a patient on one side
  rounds   trains on the challenge's first training part and validates on its first test part
  FILE     a splits.json or a csv

With --folds, fold 0 validates unless --config.data.fold names another.

exit codes: 0 done, whatever the report says; 2 wrong use or bad input, nothing written""",
    )
    csv_tables.add_source(parser)
    add = parser.add_argument
    add("--patients", type=places.path, metavar="CSV", help="ImageId,patient[,round1] (default: those of the data set)")
    add("--method", default="random", metavar="HOW", help="random (default), patient, rounds, or a FILE")
    add("--folds", type=whole(2, 1000), metavar="K", help="make K folds instead of one split")
    add("--validation-fraction", type=FRACTION, default=0.1, metavar="F", help="default: 0.1")
    add("--seed", type=SEED, default=0, metavar="N", help="seed of the random choice (default: 0)")
    add("--output", type=places.file_to_write, metavar="FILE", help="file to write (default: DIR/splits.json)")
    add("--overwrite", action="store_true", help="replace another split in this file, such as the one `prepare` made")
    return parser
