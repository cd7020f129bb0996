"""Matches labels and patients to the image files: a label csv, or mask files, and a patients file."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from jaxpneumo.data import ids, mask_files
from jaxpneumo.data.labels import Labels, Patient, distinct, read_labels, read_patients
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
      InputError: as `read_labels` and `read_patients`, they have no image in common, or several ids of one image have
        different patients.
    """
    table: Labels | MaskFiles
    if masks is not None:
        table = mask_files.read_masks(*masks, sources, missing_are_empty)
    else:
        assert labels is not None
        table = read_labels(labels)
        plain = ids.plain_ids(table.codes, sources)
        groups = {image: group for image, group in ids.spellings(plain).items() if ids.unclear(image, group)}
        table = distinct(replace(table, codes=ids.merged(table.codes, plain), unclear=groups))
    names = ids.file_names(sources, table.codes)
    people = None
    if patients:
        listed = read_patients(patients)
        # A file that is called with its ending here may go by its bare name among the labels.
        plain = {each: names.get(name, name) for each, name in ids.plain_ids(listed, sources).items()}
        people = ids.one_each(listed, plain, patients)
        # A mask file that is not there may say "negative", so the images need not be among the masks.
        if not people.keys() & table.codes.keys() and not missing_are_empty:
            raise InputError(f"{patients} lists none of the images in {table.path}. Give the one for them.")
    return Tables(table, people, names)
