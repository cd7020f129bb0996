"""`jaxpneumo describe`: counts the contents of a data set and prints text or JSON, or draws a picture.

It reads a prepared data set. Without images, it reads only the label and patients csv files.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from jaxpneumo.data import csv_tables, dataset, leaks, rle, splits
from jaxpneumo.data import labels as label_files
from jaxpneumo.data.dataset import Index
from jaxpneumo.predict.png import write_png
from jaxpneumo.predict.postprocess import NATIVE_AREA
from jaxpneumo.process import places
from jaxpneumo.process.arguments import Parser
from jaxpneumo.process.errors import DONE, InputError
from jaxpneumo.process.progress import progress_bar
from jaxpneumo.process.ranges import AREA
from jaxpneumo.score import metrics

THRESHOLD = 2048  # R-TH of the papers, in pixels of a 1024x1024 image
QUANTILES = {"min": 0, "5 %": 0.05, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95, "max": 1}
PAIRS = 1000  # largest number of near-duplicate pairs in the list


def describe_data(directory: Path | str, threshold: int = THRESHOLD, quiet: bool = False) -> dict[str, Any]:
    """Describes a prepared data set.

    Args:
      directory: folder written by `jaxpneumo prepare`.
      threshold: removal threshold in pixels of a 1024x1024 image.
      quiet: shows no progress bar.

    Returns:
      data (name of the folder), synthetic, sizes, parts, duplicates and set_aside.
      parts: "all" and, if there is a splits.json, "training" and "validation"; see `summarise`.
      duplicates: same_file and near (number of images whose file is repeated, or that have a near-duplicate),
      near_bits (the threshold), near_pairs (number of pairs) and nearest (up to 1,000 of the pairs).
      set_aside: number of quarantine entries by reason.

    Raises:
      InputError: the folder is not a prepared data set, or it is damaged.
    """
    directory = Path(directory)
    info, index = dataset.read_info(directory), dataset.read_index(directory)
    parts = {"all": index}
    if (directory / "splits.json").is_file():
        train, validation, _ = splits.split_rows(index, directory / "splits.json", 0.0, 0)
        parts |= {"training": _select(index, train), "validation": _select(index, validation)}
    images, _ = dataset.open_arrays(directory, min(info["sizes"]))
    pairs = leaks.near_duplicates(progress_bar(images, len(images), description="compare", quiet=quiet))
    nearest = np.argsort(pairs.distance, kind="stable")[:PAIRS]
    same_file = Counter(index.sha256.tolist())
    rows = label_files.read_rows(directory / "quarantine.csv", ("reason",))
    return {
        "data": directory.resolve().name,
        "synthetic": info["synthetic"],
        "sizes": info["sizes"],
        "parts": {name: summarise(part, threshold) for name, part in parts.items()},
        "duplicates": {
            "same_file": sum(count for count in same_file.values() if count > 1),
            "near": len(np.union1d(pairs.first, pairs.second)),
            "near_bits": leaks.THRESHOLD,
            "near_pairs": len(pairs),
            "nearest": [
                {"first": first, "second": second, "distance": distance}
                for first, second, distance in zip(
                    index.image_id[pairs.first[nearest]].tolist(),
                    index.image_id[pairs.second[nearest]].tolist(),
                    pairs.distance[nearest].tolist(),
                    strict=True,
                )
            ],
        },
        "set_aside": dict(Counter(row["reason"] for _, row in rows)),
    }


def describe_tables(labels: Path | str, patients: Path | str | None, threshold: int = THRESHOLD) -> dict[str, Any]:
    """Describes the csv tables of a data set without its images.

    Args:
      labels: csv with ImageId,EncodedPixels of 1024x1024 images.
      patients: csv with ImageId,patient and optionally sex,age,view,round1; or None.
      threshold: removal threshold in pixels of a 1024x1024 image.

    Returns:
      data (name of the label file), parts and duplicates.
      parts: "round 1" and "round 2", the challenge's training images of each round, if the patients file has a column
      round1; else "all"; see `summarise`.
      duplicates: number of images with overlapping regions, with a repeated row, with both -1 and a region, and with
      the same mask as another image.

    Raises:
      InputError: a file cannot be read or has wrong content.
    """
    index = csv_tables.read_tables(labels, patients)
    codes = [[code for _, code in rows] for rows in csv_tables.read_labels(labels).codes.values()]
    parts = {"all": index}
    if patients and csv_tables.has_column(patients, "round1"):
        train, _ = splits.rounds_split(csv_tables.read_column(patients, "round1", index.image_id))
        parts = {"round 1": _select(index, train), "round 2": index}
    added = [sum(rle.area(code, csv_tables.NATIVE, csv_tables.NATIVE) for code in rows) for rows in codes]
    masks = Counter(tuple(sorted(rows)) for rows in codes if rows != [rle.EMPTY])
    return {
        "data": Path(labels).name,
        "parts": {name: summarise(part, threshold) for name, part in parts.items()},
        "duplicates": {
            "overlapping_regions": int((np.array(added) > index.mask_area).sum()),
            "repeated_rows": sum(len(set(rows)) < len(rows) for rows in codes),
            "contradicting_rows": sum(rle.EMPTY in rows and len(set(rows)) > 1 for rows in codes),
            "same_mask": sum(count for count in masks.values() if count > 1),
        },
    }


def summarise(index: Index, threshold: int = THRESHOLD) -> dict[str, Any]:
    """Counts the contents of one part of a data set.

    Args:
      index: index of N images.
      threshold: removal threshold (R-TH) in pixels of a 1024x1024 image.

    Returns:
      images, label_rows, positive, negative, positive_with_one_row, positive_with_several_rows, most_rows: counts.
      sex, view: {value: {images, positive}}.
      patients: {patients, positive_patients, most_images}; None if patients are unknown.
      age, area: quantiles of the ages, and of the mask areas of positives in native pixels; None without values.
      foreground: share of mask pixels among all pixels.
      removal: {threshold, below, ceiling: {side: mean Dice}}. The ceiling is the score of a perfect model after all
      masks below the threshold are emptied, at side 1024, and if the same threshold counts pixels at side 512 or 256.
      all_empty: scores of empty predictions. Without images, the ceiling and all_empty are None.
    """
    positive, patient = index.positive, index.patient[index.patient != ""]
    area = index.mask_area * (NATIVE_AREA / (index.height * index.width))
    known = patient.size > 0
    return {
        "images": len(index),
        "label_rows": int(np.maximum(index.label_rows, 1).sum()),
        "positive": int(positive.sum()),
        "negative": int((~positive).sum()),
        "positive_with_one_row": int((index.label_rows == 1).sum()),
        "positive_with_several_rows": int((index.label_rows > 1).sum()),
        "most_rows": int(index.label_rows.max(initial=0)),
        "sex": _by_value(index.sex, positive),
        "view": _by_value(index.view, positive),
        "patients": {
            "patients": len(set(patient.tolist())),
            "positive_patients": len(set(index.patient[positive].tolist()) - {""}),
            "most_images": int(np.unique(patient, return_counts=True)[1].max()),
        }
        if known
        else None,
        "age": _quantiles(index.age[~np.isnan(index.age)]),
        "area": _quantiles(index.mask_area[positive]),
        "foreground": float(index.mask_area.sum() / max(1, (index.height * index.width).sum())),
        "removal": {
            "threshold": threshold,
            "below": int((positive & (area < threshold)).sum()),
            "ceiling": {str(side): _ceiling(area * (side / 1024) ** 2, threshold) for side in (1024, 512, 256)},
        },
        "all_empty": metrics.all_empty(index.mask_area) if len(index) else None,
    }


def _select(index: Index, rows: np.ndarray) -> Index:
    return Index(**{field.name: getattr(index, field.name)[rows] for field in fields(Index)})


def _by_value(column: np.ndarray, positive: np.ndarray) -> dict[str, dict[str, int]]:
    return {
        value: {"images": int((column == value).sum()), "positive": int((positive & (column == value)).sum())}
        for value in sorted(set(column.tolist()))
    }


def _quantiles(values: np.ndarray) -> dict[str, float] | None:
    if not values.size:
        return None
    return {name: round(float(np.quantile(values, at)), 1) for name, at in QUANTILES.items()}


def _ceiling(area: np.ndarray, threshold: int) -> float | None:
    """Mean Dice of the true masks after removal of small ones; None without images."""
    if not area.size:
        return None
    kept = np.where(area < threshold, 0, area).round()
    return metrics.summarise(kept, np.zeros_like(kept), area.round() - kept)["dice"]


# Text output


def text(description: dict[str, Any]) -> str:
    """Formats the description as a table with one column per part, followed by remarks."""
    parts = list(description["parts"].values())
    rows: list[tuple[str, list[str]]] = [("", list(description["parts"]))]

    def add(name: str, value: Callable[[dict[str, Any]], str]) -> None:
        rows.append((name, [value(part) for part in parts]))

    add("images", lambda part: f"{part['images']:,}")
    add("label rows", lambda part: f"{part['label_rows']:,}")
    add("positive", lambda part: f"{part['positive']:,}")
    add("negative", lambda part: f"{part['negative']:,}")
    add("positives with one row", lambda part: f"{part['positive_with_one_row']:,}")
    add("positives with several rows", lambda part: f"{part['positive_with_several_rows']:,}")
    for kind in ("sex", "view"):
        for value in sorted({value for part in parts for value in part[kind]}):
            add(f"{kind} {value or 'unknown'} (positive)", lambda part, k=kind, v=value: _both(part[k].get(v)))
    add("patients (positive)", lambda part: _patients(part["patients"]))
    add("age in years, median", lambda part: _quantile(part["age"], "median"))
    for name in QUANTILES:
        add(f"mask area of positives, {name}", lambda part, n=name: _quantile(part["area"], n))
    add("foreground of all pixels", lambda part: f"{100 * part['foreground']:.2f} %")
    threshold = f"{parts[0]['removal']['threshold']:,} px"
    add(f"positives below {threshold} of 1024x1024", lambda part: f"{part['removal']['below']:,}")
    add("best possible mean Dice if masks below", lambda _: "")
    for side in parts[0]["removal"]["ceiling"]:
        removed = f"  {threshold} of {side}x{side} are removed"
        add(removed, lambda part, s=side: _score(part["removal"]["ceiling"][s]))
    add("mean Dice of predicting nothing", lambda part: _score(part["all_empty"] and part["all_empty"]["dice"]))

    widths = max(len(name) for name, _ in rows), max(len(value) for _, values in rows for value in values)
    table = [name.ljust(widths[0]) + "".join(f"  {value:>{widths[1]}}" for value in values) for name, values in rows]
    return "\n".join([_title(description), "", *(line.rstrip() for line in table), "", *_remarks(description)])


def _both(counts: dict[str, int] | None) -> str:
    return f"{counts['images']:,} ({counts['positive']:,})" if counts else "0 (0)"


def _patients(patients: dict[str, int] | None) -> str:
    return f"{patients['patients']:,} ({patients['positive_patients']:,})" if patients else "unknown"


def _quantile(values: dict[str, float] | None, name: str) -> str:
    return f"{values[name]:,.0f}" if values else "-"


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _title(description: dict[str, Any]) -> str:
    if "sizes" not in description:
        return f"{description['data']}: tables without images"
    synthetic = "SYNTHETIC " if description["synthetic"] else ""
    return f"{description['data']}: {synthetic}images at {', '.join(map(str, description['sizes']))} pixels"


def _remarks(description: dict[str, Any]) -> list[str]:
    found = description["duplicates"]
    if "sizes" not in description:
        return [
            f"Images with overlapping regions: {found['overlapping_regions']}, with a row twice: "
            f"{found['repeated_rows']}, with both -1 and a region: {found['contradicting_rows']}, "
            f"with the mask of another image: {found['same_mask']}."
        ]
    aside = ", ".join(f"{count} {reason}" for reason, count in description["set_aside"].items())
    return [
        f"Images with the file of another one: {found['same_file']}, with a near-duplicate: {found['near']} "
        f"({found['near_pairs']} pairs that differ in {found['near_bits']} bits of 255 or fewer).",
        f"Set aside in quarantine.csv: {aside or 'nothing'}.",
    ]


# The command


def main(argv: list[str]) -> int:
    """Runs `jaxpneumo describe` and returns the exit code. Raises InputError for wrong use or bad input."""
    args = _parser().parse_args(argv)
    if (args.data is None) == (args.labels is None):
        raise InputError("Give either --data DIR, a prepared data set, or --labels CSV, the bare table.")
    if args.data is not None and args.patients is not None:
        raise InputError("Use --patients only with --labels: a prepared data set has its own patients.")
    if args.picture is not None and args.picture.suffix.lower() != ".png":
        raise InputError(f"--picture {args.picture} must end in .png.")
    if args.data is not None:
        description = describe_data(args.data, args.removal)
    else:
        description = describe_tables(args.labels, args.patients, args.removal)
    if args.picture is not None:
        from jaxpneumo.evaluate.data_figure import data_picture

        index = dataset.read_index(args.data) if args.data else csv_tables.read_tables(args.labels, args.patients)
        write_png(args.picture, data_picture(index, args.removal, args.data))
    print(json.dumps(description, indent=2) if args.json else text(description))
    return DONE


def _parser() -> Parser:
    parser = Parser(
        prog="jaxpneumo describe",
        description="Counts what a data set holds: patients, sex, view, positives, mask areas, duplicates, baselines.",
        epilog="""examples:
  jaxpneumo describe --data data/siim --picture siim.png
  jaxpneumo describe --data data/siim --json > siim.json
  jaxpneumo describe --labels train-rle.csv.gz --patients patients.csv.gz

With the challenge's column round1 in the patients file, the table has a column for each round.

exit codes: 0 done; 2 wrong use or bad input""",
    )
    csv_tables.add_source(parser)
    add = parser.add_argument
    add(
        "--patients",
        type=places.path,
        metavar="CSV",
        help="patients of --labels: ImageId,patient[,sex,age,view,round1]",
    )
    add("--removal", type=AREA, default=THRESHOLD, metavar="N", help=f"removal threshold (default: {THRESHOLD})")
    add("--json", action="store_true", help="print JSON instead of a table")
    add(
        "--picture",
        type=places.file_to_write,
        metavar="PNG",
        help="draw histograms and, with --data, masks over images",
    )
    return parser
