"""Damaged files: each is used or set aside, in words, within seconds; nothing crashes, nothing hangs."""

import csv
import time
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from helpers import mutate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from jaxpneumo.data import dataset, prepare
from jaxpneumo.dicom import dicom
from jaxpneumo.process.errors import InputError

SECONDS = 5.0


def originals(folder: Path) -> list[bytes]:
    """One radiograph in several encodings."""
    rows, columns = np.mgrid[:160, :160]
    image = np.rint(60 + 50 * np.sin(rows / 9) * np.cos(columns / 13) + columns / 2).astype(np.uint8)
    image += np.random.default_rng(0).integers(0, 9, image.shape, np.uint8)
    files = [as_jpeg(folder, image)] * 2
    for syntax in (ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless, JPEGLSLossless):
        made = uncompressed(files[0], image.tobytes())
        made.WindowCenter, made.WindowWidth = 128, 256
        if syntax != ExplicitVRLittleEndian:
            made.compress(syntax, generate_instance_uid=False)
        files.append(saved(made))
    return files


def as_jpeg(folder: Path, image: np.ndarray) -> bytes:
    dicom.write(folder / "original.dcm", image, "1.2.3", "SECRET", "F", 40, "PA")
    return (folder / "original.dcm").read_bytes()


def uncompressed(data: bytes, pixels: bytes) -> pydicom.Dataset:
    made = pydicom.dcmread(BytesIO(data))
    made["PixelData"].is_undefined_length = False
    made.PixelData = pixels
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return made


def saved(made: pydicom.Dataset) -> bytes:
    buffer = BytesIO()
    made.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def prepare_mutated(folder, files: list[bytes]) -> dict[str, str]:
    """Prepares files named by their numbers; returns the state of each."""
    (folder / "images").mkdir()
    for number, data in enumerate(files):
        (folder / f"images/{number:04d}.dcm").write_bytes(data)
    table = "".join(f"{number:04d},-1\n" for number in range(len(files)))
    (folder / "labels.csv").write_text("ImageId,EncodedPixels\n" + table)
    begin = time.monotonic()
    prepare.prepare(
        folder / "images",
        folder / "labels.csv",
        folder / "data",
        (32,),
        workers=2,
        quiet=True,
        duplicate_pixels="keep",
        time_limit=SECONDS,
    )
    assert time.monotonic() - begin < 20 + 0.2 * len(files)
    states = dict.fromkeys(dataset.read_index(folder / "data").source.tolist(), "used")
    with open(folder / "data/quarantine.csv", newline="") as file:
        for row in csv.DictReader(file):
            if row["file"]:
                assert row["file"] not in states
                assert row["detail"]
                assert "SECRET" not in row["detail"]
                assert "took too long" not in row["detail"]
                states[row["file"]] = row["reason"]
    return states


def check(folder: Path, files: list[bytes], count: int, seed: int) -> dict[str, str]:
    """Mutates each in turn and prepares them; the first keeps its bytes, so that there is something to use."""
    rng = np.random.default_rng(seed)
    mutated = [files[0], *(mutate(files[number % len(files)], rng) for number in range(count))]
    states = prepare_mutated(folder, mutated)
    assert sorted(states) == [f"{number:04d}.dcm" for number in range(count + 1)]
    return states


def test_five_hundred_mutated_files_of_the_sample(tmp_path, shared):
    paths = sorted((shared / "data/siim-sample").rglob("*.dcm"))
    states = check(tmp_path, [path.read_bytes() for path in paths], 500, seed=1)
    assert states["0000.dcm"] == "used"
    assert set(states.values()) >= {"used", "unreadable image"}


def test_five_hundred_mutated_files_of_all_encodings(tmp_path):
    states = check(tmp_path, originals(tmp_path), 500, seed=2)
    assert states["0000.dcm"] == "used"
    assert set(states.values()) >= {"used", "unreadable image"}


@pytest.mark.parametrize("place", [0.3, 0.6, 0.9])
def test_a_jpeg_damaged_in_the_middle_is_not_half_used(tmp_path, place):
    """Decoders that go on would show grey below the damage; the end marker is there."""
    data = as_jpeg(tmp_path, np.random.default_rng(0).integers(0, 256, (160, 160), np.uint8))
    spot = data.index(b"\xff\xda") + int(place * (len(data) - data.index(b"\xff\xda")))
    damaged = data[:spot] + b"\xff\xd9\xff\xd9" + data[spot + 4 :]
    with pytest.raises(InputError):
        dicom.parse(damaged, "damaged.dcm")


def test_a_small_file_cannot_ask_for_much_memory(tmp_path):
    """What a header claims and what the compressed data claim are both checked before anything is decoded."""
    image = np.zeros((64, 64), np.uint8)
    data = as_jpeg(tmp_path, image)
    start = data.index(b"\xff\xc0")
    bomb = data[: start + 5] + b"\xff\xdc\xff\xdc" + data[start + 9 :]
    with pytest.raises(dicom.RadiographError, match="another size than its header's 64 x 64"):
        dicom.parse(bomb, "bomb.dcm")
    made = uncompressed(data, bytes(dicom.MAX_BYTES + 2))
    made.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    deflated = saved(made)
    assert len(deflated) < dicom.MAX_BYTES / 500
    with pytest.raises(dicom.RadiographError, match="unpacks to more than 256 MiB"):
        dicom.parse(deflated, "deflated.dcm")
    png = cv2.imencode(".png", image)[1].tobytes()
    huge = png[:16] + b"\0\1\0\0\0\1\0\0" + png[24:]
    with pytest.raises(dicom.RadiographError, match="has 65536 x 65536 pixels"):
        dicom.parse_image(huge, "huge.png")
    jpeg = bytearray(cv2.imencode(".jpg", image)[1].tobytes())
    start = jpeg.index(b"\xff\xc0")
    jpeg[start + 5 : start + 9] = b"\xff\xdc\xff\xdc"
    with pytest.raises(dicom.RadiographError, match="has 65500 x 65500 pixels"):
        dicom.parse_image(bytes(jpeg), "huge.jpg")
