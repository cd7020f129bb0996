"""results.csv: for every file that was found, what the prediction says of it, or why it was set aside.

The certainty is judged here, from each score and the bands of the manifest's header, so that all rows of a table have
the same rule, also where files were predicted by several starts.
"""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from jaxpneumo.predict.certainty import Bands, Certainty, judge
from jaxpneumo.predict.finding import in_mm2
from jaxpneumo.predict.manifest import RESEARCH_USE, SYNTHETIC_NOTE, read_entries
from jaxpneumo.predict.sorting import sort_rows
from jaxpneumo.process.atomic import write_atomically
from jaxpneumo.process.files import printable

FOUND, NOTHING, SET_ASIDE = "found", "nothing found", "set aside"


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One file. Numbers are None where they are not known: of files set aside, and in part of older predictions.

    Attributes:
      id: image id, as in the submission; "" for a file set aside.
      file: path below the input folder.
      result: FOUND, NOTHING or SET_ASIDE.
      certainty: band of `certainty.Certainty`, or "".
      score: image-level score.
      area, largest: pixels of the mask and of its largest component.
      area_mm2, largest_mm2: the same in square millimetres.
      side: "left", "right", or "".
      why: why it is uncertain or was set aside, or "".
      bands: "calibrated" or "uncalibrated", of the limits that the certainty comes from; or "".
      emptied_by: "gate" or "classifier", which emptied a mask that had pixels, or "".
      picture: number of the manifest whose folder has the picture with outlines of this image, or None.
    """

    id: str = ""
    file: str
    result: str
    certainty: str = ""
    score: float | None = None
    area: int | None = None
    area_mm2: float | None = None
    side: str = ""
    largest: int | None = None
    largest_mm2: float | None = None
    why: str = ""
    bands: str = ""
    emptied_by: str = ""
    picture: int | None = None


COLUMNS = tuple(field.name for field in fields(ResultRow) if field.name != "picture")


def table_rows(manifests: Sequence[Path], second_files: Mapping[str, str]) -> Iterator[ResultRow]:
    """The rows of all files, in the order of the manifests.

    Args:
      manifests: complete manifests of one model.
      second_files: path -> reason, of files whose image is in an earlier file.
    """
    for number, manifest in enumerate(manifests):
        entries = read_entries(manifest)
        header = next(entries)
        bands = Bands(**header["bands"]) if header.get("bands") else None
        removal = header["settings"].get("removal_threshold", 0)
        for entry in entries:
            if "file" in entry:
                yield _row(entry, bands, removal, number, second_files.get(entry["file"], ""))


def _row(entry: Mapping[str, Any], bands: Bands | None, removal: int, number: int, second: str) -> ResultRow:
    file = printable(entry["file"])
    if entry["state"] != "done" or second:
        return ResultRow(file=file, result=SET_ASIDE, why=second or entry.get("reason", ""))
    area, score, largest = entry["area"], entry.get("score"), entry.get("largest")
    spacing = entry.get("spacing")
    certainty, limits = Certainty(""), ""
    if bands is not None and score is not None:
        height, width = entry["size"]
        certainty = judge(bands, score, area, height, width, removal)
        limits = "calibrated" if bands.calibrated else "uncalibrated"
    return ResultRow(
        id=entry["uid"],
        file=file,
        result=FOUND if area else NOTHING,
        certainty=certainty.band,
        score=score,
        area=area,
        area_mm2=in_mm2(area, spacing),
        side=entry.get("side", ""),
        largest=largest,
        largest_mm2=None if largest is None else in_mm2(largest, spacing),
        why=certainty.why,
        bands=limits,
        emptied_by=entry.get("emptied_by", ""),
        picture=number if "overlays" in entry.get("outputs", ["overlays"]) else None,
    )


def write_table(path: Path, rows: Iterable[ResultRow], synthetic: bool, scratch: Path) -> Iterator[ResultRow]:
    """Writes results.csv, sorted by file, and yields its rows in this order. The file is there when all are taken.

    Args:
      path: the csv file; written atomically.
      rows: the result of `table_rows`.
      synthetic: whether the model was trained on synthetic radiographs, which every row then says.
      scratch: folder for sorting.
    """
    note = f"{RESEARCH_USE}. {SYNTHETIC_NOTE}" if synthetic else RESEARCH_USE
    with write_atomically(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*COLUMNS, "note"])
        for _, text in sort_rows(((row.file, json.dumps(astuple(row))) for row in rows), scratch):
            row = ResultRow(**dict(zip(ResultRow.__dataclass_fields__, json.loads(text), strict=True)))
            writer.writerow([*(_cell(name, getattr(row, name)) for name in COLUMNS), note])
            yield row


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    digits = {"score": 4, "area_mm2": 1, "largest_mm2": 1}.get(name)
    return str(value) if digits is None else f"{value:.{digits}f}"
