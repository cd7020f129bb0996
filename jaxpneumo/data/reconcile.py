"""Reconciliation of images and labels: what is used, what is set aside, and why.

Every file and every label row ends in exactly one state. Pure functions; `prepare` reads the files.

| reason | what it means |
| --- | --- |
| unreadable image | not DICOM, PNG or JPEG, truncated, damaged, empty, or its decoder crashed or took too long |
| several frames, colour image | readable, and not one grey image |
| wrong size | a size that no radiograph has, or another than --native-size |
| not a frontal chest radiograph | with --require-frontal: by what the header says (`dicom.frontal`) |
| file name and UID differ | the file is one labelled image by its name and another by its SOP instance UID |
| image without labels | the label file has no row for it; that is not the same as a row -1 |
| labels without image | no file has this id |
| invalid run-length code | malformed, or it leaves the image |
| unusable mask | a mask file that is damaged, of another size than its image, or not grey, or has many grey levels |
| conflicting labels | rows -1 and rows with a region for one image, or rows whose id may mean another image |
| duplicate id | a second file of the same id; when their pixels differ, none of them is used |
| duplicate pixels | the pixels of another id; the lowest id is used, or none when their masks differ |
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from jaxpneumo.data.labels import Labels
from jaxpneumo.data.mask_files import MaskFiles
from jaxpneumo.dicom import patients
from jaxpneumo.dicom.radiograph import file_id
from jaxpneumo.process.files import Stamp, printable

NOT_FRONTAL = "not a frontal chest radiograph"
CONTRADICTION = "file name and UID differ"
NO_LABELS = "image without labels"
NO_IMAGE = "labels without image"
BAD_LABEL = "invalid run-length code"
BAD_MASK = "unusable mask"
CONFLICT = "conflicting labels"
DUPLICATE_ID = "duplicate id"
DUPLICATE_PIXELS = "duplicate pixels"
LARGE = 0.5  # share of an image; the largest mask of the challenge's 12,047 images covers 0.154
NO_TWO = "nowhere: no two images share a Patient ID"  # where patients are from


@dataclass(frozen=True)
class Outcome:
    """What became of one file.

    Attributes:
      row: of the arrays.
      source: the file below the images folder.
      image_id: the label file's id; where it has none, the SOP instance UID or the file's name.
      reason, detail: why it cannot be used; "" if its row is filled.
      index: its line of index.csv; None with a reason.
      code: run-length code of all its label rows together.
      synthetic: it says that it was drawn.
      pixels: checksum of its rows' images; equal pixels have equal ones.
      checksum: of all its rows, images and masks.
      stamp: `files.stamp` of the file.
      remarks: of the radiograph.
    """

    row: int
    source: str
    image_id: str
    reason: str = ""
    detail: str = ""
    index: dict[str, Any] | None = None
    code: str = ""
    synthetic: bool = False
    pixels: int = 0
    checksum: int = 0
    stamp: Stamp = (0, 0, 0)
    remarks: tuple[str, ...] = ()

    @property
    def line(self) -> dict[str, Any]:
        """`index` of an image that can be used."""
        assert self.index is not None, self.reason
        return self.index


def match(uid: str, name: str, labelled: Container[str]) -> tuple[str, str]:
    """The id by which a label file knows an image.

    A file is known by its SOP instance UID, or without one by its name. In two cases the right label is unknown: UID
    and name belong to different labelled images; or the name is a labelled UID and the header has another UID.

    Args:
      uid: SOP instance UID of the file, its name where it has none.
      name: the file's name without ending.
      labelled: the ids of the label file.

    Returns:
      The id, and what is wrong with it ("" if nothing): one of the reasons.
    """
    if uid == name:
        return uid, "" if uid in labelled else NO_LABELS
    if name in labelled and (uid in labelled or re.fullmatch(r"\d+(\.\d+)+", name)):
        return name, CONTRADICTION
    found = next((each for each in (uid, name) if each in labelled), None)
    return (uid, NO_LABELS) if found is None else (found, "")


def unlabelled(outcomes: Collection[Outcome], labels: Labels | MaskFiles) -> str:
    """A sentence for the case that most files have no line in the label file; "" in all other cases."""
    without = [outcome for outcome in outcomes if outcome.reason == NO_LABELS]
    if 2 * len(without) <= len(outcomes):
        return ""
    seen = {outcome.image_id for outcome in outcomes}
    unused = next((image_id for image_id in labels.codes if image_id not in seen), None)
    other = "All ids there have a file" if unused is None else f"An id there without a file is {unused}"
    return (
        f"{len(without)} of {len(outcomes)} files have no {labels.entry} in {labels.path.name}. The id of "
        f"{printable(without[0].source)} is {without[0].image_id}. {other}. An id is the SOP instance UID, the file's "
        "name without ending, or its path below --images where several files have that name: write the ids so, or give "
        "the labels of these images."
    )


def alike(outcomes: Iterable[Outcome]) -> list[list[Outcome]]:
    """Groups of usable outcomes whose pixels may be equal: those with the same size and checksum."""
    groups: dict[tuple, list[Outcome]] = {}
    for outcome in outcomes:
        if not outcome.reason:
            key = outcome.pixels, outcome.line["height"], outcome.line["width"]
            groups.setdefault(key, []).append(outcome)
    return [group for group in groups.values() if len(group) > 1]


def reconcile(
    outcomes: Iterable[Outcome],
    labelled: Mapping[str, str],
    digest: Callable[[Outcome], str],
    keep_duplicate_pixels: bool = False,
) -> tuple[list[Outcome], list[dict[str, str]]]:
    """Divides files and labels into what is used and what is set aside.

    Args:
      outcomes: one a file.
      labelled: ids of the labels, each with the words that say where its label is.
      digest: of an outcome's native pixels; asked only for those whose pixels may be equal.
      keep_duplicate_pixels: use images whose pixels occur under several ids.

    Returns:
      The outcomes to use, by ascending id; the entries of quarantine.csv (file, ImageId, reason, detail),
      files in their order, then labels without image.
    """
    outcomes = list(outcomes)
    pixels = {}
    for group in alike(outcomes):
        ids = Counter(outcome.image_id for outcome in group)
        to_compare = [outcome for outcome in group if ids[outcome.image_id] > 1 or not keep_duplicate_pixels]
        pixels |= {outcome.row: digest(outcome) for outcome in to_compare}
    problems = {outcome.row: (outcome.reason, outcome.detail) for outcome in outcomes if outcome.reason}
    problems |= _same_id([outcome for outcome in outcomes if outcome.row not in problems], pixels)
    if not keep_duplicate_pixels:
        problems |= _same_pixels([outcome for outcome in outcomes if outcome.row not in problems], pixels)
    kept = sorted((each for each in outcomes if each.row not in problems), key=lambda each: each.image_id)
    set_aside = [
        _entry(printable(outcome.source), outcome.image_id, *problems[outcome.row])
        for outcome in outcomes
        if outcome.row in problems
    ]
    seen = {outcome.image_id for outcome in outcomes}
    named = {file_id(outcome.source): outcome for outcome in outcomes}
    for image_id, where in labelled.items():
        if image_id not in seen:
            other = named.get(file_id(image_id.replace("\\", "/")))
            but = f"; {printable(other.source)} has the id {other.image_id}" if other else ""
            set_aside.append(_entry("", image_id, NO_IMAGE, f"No file has this id ({where}){but}."))
    return kept, set_aside


def large_masks(kept: Collection[Outcome]) -> str:
    """A sentence where masks cover more than LARGE of their images; else ""."""
    large = [each for each in kept if each.line["mask_area"] > LARGE * each.line["height"] * each.line["width"]]
    if not large:
        return ""
    return (
        f"{len(large)} of {len(kept)} masks cover more than half of their image, {large[0].image_id} first. No "
        "pneumothorax does: is background marked instead of it, or are the codes of another kind?"
    )


def believe_patients(
    kept: list[Outcome], source: str = "header", stored: Callable[[str], str] = str
) -> tuple[list[Outcome], str]:
    """Outcomes with reliable patients only, and the source of these; after ": " the reason why some became unknown.

    Ids that name nobody (`patients.believe`) become unknown. If every header has an id of its own, as in the
    challenge's files, all become unknown: such ids say nothing about patients.

    Args:
      kept: the outcomes to use.
      source: "header" or "file".
      stored: of an id, what `index["patient"]` has: its pseudonym.
    """
    ids, problem = patients.believe([outcome.line["patient"] for outcome in kept], stored)
    known = [each for each in ids if each]
    if source == "header" and len(set(known)) == len(known):
        ids, source = [""] * len(ids), f"nowhere: {problem}" if problem else NO_TWO
    elif problem:
        source = f"{source if known else 'nowhere'}: {problem}"
    pairs = zip(kept, ids, strict=True)
    return [replace(each, index={**each.line, "patient": name}) for each, name in pairs], source


def _same_id(usable: list[Outcome], pixels: dict[int, str]) -> dict[int, tuple[str, str]]:
    """Of files with the same id, uses the file of that name, or else the first; none if their pixels differ."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in usable:
        groups.setdefault(outcome.image_id, []).append(outcome)
    problems = {}
    for image_id, group in groups.items():
        if len(group) == 1:
            continue
        if len({pixels.get(outcome.row, str(outcome.row)) for outcome in group}) > 1:
            detail = (
                f"{len(group)} files with this id differ; none is used. Remove the wrong ones, or tell them apart in "
                "the csv by their paths with endings."
            )
            problems |= {outcome.row: (DUPLICATE_ID, detail) for outcome in group}
            continue
        first = min(group, key=lambda outcome: file_id(outcome.source) != image_id)
        detail = f"A copy of {printable(first.source)}, which is used."
        problems |= {outcome.row: (DUPLICATE_ID, detail) for outcome in group if outcome is not first}
    return problems


def _same_pixels(usable: list[Outcome], pixels: dict[int, str]) -> dict[int, tuple[str, str]]:
    """Of ids with equal pixels, uses the lowest; none if their masks differ."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in usable:
        if outcome.row in pixels:
            groups.setdefault(pixels[outcome.row], []).append(outcome)
    problems = {}
    for group in groups.values():
        first, *others = sorted(group, key=lambda outcome: outcome.image_id)
        if len({outcome.code for outcome in group}) > 1:
            for outcome in group:
                other = others[0] if outcome is first else first
                detail = f"The pixels of {other.image_id} with another mask; none is used. Correct the labels."
                problems[outcome.row] = DUPLICATE_PIXELS, detail
        else:
            detail = f"The pixels of {first.image_id}, which is used."
            problems |= {outcome.row: (DUPLICATE_PIXELS, detail) for outcome in others}
    return problems


def _entry(source: str, image_id: str, reason: str, detail: str) -> dict[str, str]:
    return {"file": source, "ImageId": image_id, "reason": reason, "detail": detail}
