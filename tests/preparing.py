"""Folders of radiographs with their label csv, to be prepared, for the tests of `prepare`."""

import csv

import cv2
import numpy as np
import pytest

from jaxpneumo.data import prepare, rle
from jaxpneumo.dicom import dicom
from jaxpneumo.process import progress


class Files:
    """A folder of radiographs 96 x 128 and its label csv, to be spoilt by the tests."""

    def __init__(self, folder):
        self.folder, self.images, self.labels = folder, folder / "images", folder / "labels.csv"
        self.output, self.rows = folder / "prepared", []
        self.masks = {}

    def add(self, uid: str, codes=("-1",), seed=0, patient="", **fields):
        image = np.random.default_rng(seed).integers(0, 256, (12, 16), np.uint8)
        image = cv2.resize(image, (128, 96), interpolation=cv2.INTER_CUBIC)
        path = self.images / f"study{len(self.rows)}" / f"{uid}.dcm"
        dicom.write(path, image, uid, patient or f"P{uid}", **fields)
        self.rows += [f"{uid}, {code}" for code in codes]
        return path

    def run(self, *options: str) -> int:
        self.labels.write_text("\n".join(["ImageId, EncodedPixels", *self.rows]) + "\n")
        return self.run_with("--labels", self.labels, *options)

    def run_with(self, *options) -> int:
        """Prepares; the options say where the labels are."""
        arguments = ["--images", self.images, "--output", self.output, "--workers", "1", "--sizes", "32,64", *options]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(progress, "silent", True)  # as --quiet does: the tests compare what is told
            return prepare.main([*map(str, arguments)])

    def quarantine(self) -> list[dict[str, str]]:
        with open(self.output / "quarantine.csv", newline="") as file:
            return list(csv.DictReader(file))


def three_files(folder) -> Files:
    """Three images: 1.3 negative, 1.1 with one region, 1.2 with two overlapping ones."""
    files = Files(folder)
    square = np.zeros((96, 128), np.uint8)
    square[10:50, 20:60] = 1
    files.masks = {"1.1": square, "1.2": square | np.roll(square, (20, 30), (0, 1)), "1.3": square * 0}
    files.add("1.3", seed=3, view="PA")
    files.add("1.1", [rle.encode(square)], seed=1, sex="F", age=50, view="AP")
    files.add("1.2", [rle.encode(square), rle.encode(np.roll(square, (20, 30), (0, 1)))], seed=2)
    return files


def refused(files, capsys, words: str, *options) -> None:
    assert files.run(*options) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith("jaxpneumo prepare: ")
    assert not list(files.folder.glob("prepared.*"))
