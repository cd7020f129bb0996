"""Matches labels and patients to the image files: a label csv, or mask files, and a patients file."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from jaxpneumo.data import ids, mask_files
from jaxpneumo.data.labels import Labels, Patient, read_labels, read_patients
from jaxpneumo.data.mask_files import MaskFiles
from jaxpneumo.process.errors import InputError


@dataclass(frozen=True)
class Tables:
    """What is known of images beside their files.

    Attributes:
      labels: the labels by the ids of images.
      patients: the patients by the ids of images; None = ask the headers.
      names: source -> the id that a file has by its name.
    """

    labels: Labels | MaskFiles
    patients: dict[str, Patient] | None
    names: dict[str, str]


def read_matched(
    labels: Path | str | None,
    patients: Path | str | None,
    sources: Collection[str],
    masks: tuple[Path, Collection[Path]] | None = None,
    missing_are_empty: bool = False,
) -> Tables:
    """Reads labels and patients and matches their ids to the image files by name and path (`ids`).

    Args:
      labels: the label csv; None with `masks`.
      patients: the patients csv, or None.
      sources: the images' files below their folder.
      masks: a folder of mask files and the files, instead of `labels`.
      missing_are_empty: whether an image without mask file is negative.

    Raises:
      InputError: as `read_labels` and `read_patients`, or they have no image in common.
    """
    table: Labels | MaskFiles
    if masks is not None:
        table = mask_files.read_masks(*masks, sources, missing_are_empty)
    else:
        assert labels is not None
        table = read_labels(labels)
        plain = ids.plain_ids(table.codes, sources)
        table = replace(table, codes={plain[each]: rows for each, rows in table.codes.items()})
    people = read_patients(patients) if patients else None
    if people is not None:
        plain = ids.plain_ids(people, sources)
        people = {plain[each]: person for each, person in people.items()}
        # A mask file that is not there may say "negative", so the images need not be among the masks.
        if not people.keys() & table.codes.keys() and not missing_are_empty:
            raise InputError(f"{patients} lists none of the images in {table.path}. Give the one for them.")
    return Tables(table, people, ids.file_names(sources, table.codes))
