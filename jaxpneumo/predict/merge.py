"""Writes a submission from manifests, and `jaxpneumo merge`, which joins the parts of an archive.

Merged parts give the same files as a single run. A single run uses the same code: it merges one part. Rows are sorted
on the disk, not in memory.
"""

import csv
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from jaxpneumo.data import remarks, rle
from jaxpneumo.data.reconcile import NOT_FRONTAL
from jaxpneumo.predict.manifest import (
    MANIFEST,
    NOTE,
    SYNTHETIC_NOTE,
    listing_digest,
    part_folder,
    part_of,
    read_entries,
)
from jaxpneumo.predict.results_page import write_page
from jaxpneumo.predict.results_table import table_rows, write_table
from jaxpneumo.predict.sorting import scratch_folder, sort_rows
from jaxpneumo.predict.submission import write_submission
from jaxpneumo.process import places, run_report
from jaxpneumo.process.arguments import Parser
from jaxpneumo.process.atomic import write_atomically, write_json
from jaxpneumo.process.errors import DONE, PARTIAL, InputError
from jaxpneumo.process.files import printable

HELP = """\
Joins the parts of `jaxpneumo predict --num-parts N --part-id K`. The result is the same as that of one run over all
files.

It first checks that all parts are there and complete, that they have the same model, settings, limits of the certainty
and list of files, and that every file is in exactly one part. Then it writes to --output, a folder or a .csv file
  submission.csv   ImageId,EncodedPixels of all files; where several files hold one image, the first file counts
  quarantine.csv   the files that were set aside, with the reason, if there are any (exit code 3)
  results.csv      every file with its score, certainty, areas and side, or why it was set aside
  index.html       the same as a page for a browser, with the outlined pictures of the parts
  merged.json      model, settings, software and counts

exit codes: 0 done; 3 done, but files were set aside; 2 a part is missing or does not fit, nothing was written

examples:
  jaxpneumo merge --input predictions --output predictions
  jaxpneumo merge --input predictions --output submission.csv
"""


@dataclass(frozen=True)
class PredictedCounts:
    """The counts of a prediction.

    Attributes:
      images, positive: number of radiographs that were predicted, and of those with a finding.
      emptied: a sentence that counts the images whose outlines the gate or the classifier emptied; "" where there are
        none.
      set_aside: number of files that were not used.
      not_frontal: number of files that were set aside because they are not frontal chest radiographs.
      unwritten: number of files that could not be written, by the name of their output, such as "overlays".
      first: the reason why the first file was set aside.
      note: the warning for readers of the outlines.
      remarks: sentences about header elements that could not be used unchanged.
    """

    images: int
    positive: int
    set_aside: int
    not_frontal: int = 0
    emptied: str = ""
    unwritten: Mapping[str, int] = field(default_factory=dict)
    first: str = ""
    note: str = NOTE
    remarks: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """True if all files were predicted and everything asked for was written."""
        return not self.set_aside and not self.unwritten


def write_results(
    manifests: Sequence[Path], submission: Path, folder: Path | None, asked: Collection[str] | None = None
) -> PredictedCounts:
    """Writes the submission and what says more from manifests. All are sorted and written atomically.

    If several files hold the same image, the first file counts and the others are set aside.

    Args:
      manifests: complete manifests of one model.
      submission: the csv file.
      folder: for results.csv, index.html and quarantine.csv, which is removed if no file was set aside. None writes
        none of them.
      asked: keys of the outputs that this start asks for; what an earlier one could not write of others does not count.
        None counts all.
    """
    header = next(read_entries(manifests[0]))
    counts = {"images": 0, "positive": 0, "set_aside": 0, "not_frontal": 0}
    unwritten: Counter[str] = Counter()
    emptied: Counter[str] = Counter()
    others: list[tuple[str, str]] = []

    def entries(state: str) -> Iterator[dict[str, Any]]:
        return (entry for path in manifests for entry in read_entries(path) if entry.get("state") == state)

    def images(scratch: Path) -> Iterator[tuple[str, str]]:
        last, used, same = None, "", ""
        for uid, source, code in sort_rows(((e["uid"], e["file"], e["code"]) for e in entries("done")), scratch):
            if uid == last:
                differ = "" if code == same else ", whose outlines differ"
                others.append((source, f"a second file of image {uid}; {printable(used)}{differ} was used"))
                continue
            last, used, same = uid, source, code
            counts["images"] += 1
            counts["positive"] += code != rle.EMPTY
            yield uid, code

    def set_aside(scratch: Path) -> Iterator[tuple[str, str]]:
        for row in sort_rows(chain(((e["file"], e["reason"]) for e in entries("set aside")), others), scratch):
            source, reason = printable(row[0]), row[1]
            counts["set_aside"] += 1
            counts["not_frontal"] += reason.startswith(NOT_FRONTAL)
            run_report.set_aside(source, reason)
            yield source, reason

    with scratch_folder(submission.parent) as scratch:
        write_submission(submission, images(scratch))
        rows = set_aside(scratch)
        first = next(rows, None)
        if folder is not None and first is not None:
            with write_atomically(folder / "quarantine.csv") as file:
                csv.writer(file, lineterminator="\n").writerows(chain([("file", "reason"), first], rows))
        elif folder is not None:
            (folder / "quarantine.csv").unlink(missing_ok=True)
        for _ in rows:
            pass  # `set_aside` counts the rows
        second_files = dict(others)
        if folder is not None:
            synthetic = SYNTHETIC_NOTE in header.get("note", "")
            table = write_table(folder / "results.csv", table_rows(manifests, second_files), synthetic, scratch)
            write_page(folder / "index.html", table, header, [manifest.parent for manifest in manifests])
    for entry in entries("done"):
        emptied[entry.get("emptied_by", "")] += entry["file"] not in second_files
        # Older manifests have a reason under "undrawn" where the picture could not be written.
        failed = {"overlays": entry["undrawn"]} if "undrawn" in entry else entry.get("unwritten", {})
        failed = {key: reason for key, reason in failed.items() if asked is None or key in asked}
        unwritten.update(failed.keys())
        for reason in failed.values():
            run_report.set_aside(printable(entry["file"]), reason)
    told = remarks.tell((entry["file"], entry.get("remarks", ())) for entry in entries("done"))
    return PredictedCounts(
        **counts,
        emptied=_emptied(emptied),
        unwritten=dict(unwritten),
        first=first[1] if first else "",
        note=header.get("note", NOTE),
        remarks=tuple(told),
    )


def _emptied(counts: Mapping[str, int]) -> str:
    told = [f"{count} by the {name}" for name, count in sorted(counts.items()) if name and count]
    return f"Outlined, but left empty: {', '.join(told)}." if told else ""


# The command


def find_parts(folder: Path) -> list[Path]:
    """Finds the manifests of all parts below a folder, in order.

    Raises:
      InputError: there are no parts, the parts belong to different numbers of parts, or some parts are missing or
        incomplete. The message names all of them.
    """
    names = sorted(path.name for path in folder.glob("part-*-of-*")) if folder.is_dir() else []
    found = {name: re.fullmatch(r"part-(\d{5,})-of-(\d{5,})", name) for name in names}
    numbers = sorted({int(match[2]) for match in found.values() if match})
    if not numbers:
        raise InputError(
            f"{folder} holds no parts (part-00000-of-00003 ...). Give the --output of `jaxpneumo predict --num-parts`."
        )
    if len(numbers) > 1:
        raise InputError(
            f"{folder} holds parts of {' and of '.join(map(str, numbers))}. Keep only one number of parts in a folder."
        )
    manifests = [part_folder(folder, (part, numbers[0])) / MANIFEST for part in range(numbers[0])]
    problems = []
    for part, manifest in enumerate(manifests):
        state = _state(manifest)
        if state:
            problems.append(f"part {part} of {numbers[0]} {state}")
    if problems:
        raise InputError(
            f"{folder} cannot be merged: {'; '.join(problems)}. Start `jaxpneumo predict` for each of them (again): "
            "it goes on where it stopped."
        )
    return manifests


def _state(manifest: Path) -> str:
    """Why a part cannot be merged; "" if it is complete."""
    if not manifest.is_file():
        return "is missing"
    done, ended = 0, False
    for entry in read_entries(manifest):
        done, ended = done + ("file" in entry), "end" in entry
    return "" if ended else f"is not complete ({done} files are done)"


def check_parts(manifests: Sequence[Path], scratch: Path) -> dict[str, Any]:
    """Checks that complete parts fit together and have every file exactly once. Returns the header of the first part.

    Raises:
      InputError: the parts have different models, settings, limits of the certainty or listings, or a file is missing,
        occurs twice or is in a wrong part.
    """
    headers, ends = [], []
    for manifest in manifests:
        entry = {}
        for number, entry in enumerate(read_entries(manifest)):
            if number == 0:
                headers.append(entry)
        ends.append(entry["end"])
    same = "Predict all parts with the same settings"
    for name, values, way_out in (
        ("models", [header["model"] for header in headers], same),
        ("settings", [header["settings"] for header in headers], same),
        ("listings of the input folder", [(end["listing"], end["listed"]) for end in ends], same),
        (
            "limits of the certainty",
            [header.get("bands") for header in headers],
            "The run was evaluated between them: start `jaxpneumo predict` for each part again, which takes the new "
            "limits and predicts nothing twice",
        ),
    ):
        differ = [part for part, value in enumerate(values) if value != values[0]]
        if differ:
            others = ", ".join(map(str, differ))
            raise InputError(f"part 0 and part {others} are of different {name}. {way_out}.")

    def sources() -> Iterator[tuple[str]]:
        for part, manifest in enumerate(manifests):
            for entry in read_entries(manifest):
                if "file" not in entry:
                    continue
                if part_of(entry["file"], len(manifests)) != part:
                    raise InputError(f"{manifest} has {printable(entry['file'])}, which does not belong to this part.")
                yield (entry["file"],)

    digest, count = listing_digest(source for (source,) in sort_rows(sources(), scratch))
    if (digest, count) != (ends[0]["listing"], ends[0]["listed"]):
        raise InputError(
            f"the parts have {count} files and {ends[0]['listed']} were listed: some are missing or double. "
            "Start `jaxpneumo predict` for each part again."
        )
    return headers[0]


def merge(folder: Path, output: Path) -> PredictedCounts:
    """Merges the parts below a folder; see HELP. Raises the InputErrors of `find_parts` and `check_parts`."""
    manifests = find_parts(folder)
    place = output.parent if output.suffix == ".csv" else output
    if place.resolve() in {manifest.parent.resolve() for manifest in manifests}:
        raise InputError(f"--output {output} is the folder of a part and would replace its results. Choose another.")
    with scratch_folder(place) as scratch:
        header = check_parts(manifests, scratch)
    if output.suffix == ".csv":
        return write_results(manifests, output, None)
    report = write_results(manifests, output / "submission.csv", output)
    write_json(
        output / "merged.json",
        {
            "note": report.note,
            **{name: header[name] for name in ("model", "settings", "parts", "software")},
            "images": report.images,
            "positive": report.positive,
            "set_aside": report.set_aside,
        },
    )
    return report


def _output(text: str) -> Path:
    return (places.file_to_write if text.endswith(".csv") else places.folder_to_fill)(text)


def main(arguments: Sequence[str]) -> int:
    """Runs the command; see HELP. Returns 0, or 3 if files were set aside."""
    parser = Parser(prog="jaxpneumo merge", description=HELP)
    parser.add_argument("--input", type=places.path, required=True, help="folder with the parts")
    parser.add_argument("--output", type=_output, required=True, help="folder to write to, or a .csv file")
    options = parser.parse_args(arguments)
    run_report.place(options.output)
    report = merge(options.input, options.output)
    print(
        f"{report.images} radiographs, pneumothorax outlined in {report.positive}, {report.set_aside} files set aside; "
        f"{options.output}. {report.note}"
    )
    if report.emptied:
        print(report.emptied)
    return DONE if report.complete else PARTIAL
