"""`prepare --masks`: masks as PNG files give the same data set as their label csv, and nothing is silently negative."""

import cv2
import numpy as np
import pytest
from preparing import three_files

from jaxpneumo.data import dataset
from jaxpneumo.process.errors import DONE, PARTIAL


@pytest.fixture
def files(tmp_path):
    """Three images with a label csv, and their masks as PNG files called by the images' ids."""
    files = three_files(tmp_path)
    for uid, mask in files.masks.items():
        write(tmp_path / "masks" / f"{uid}.png", mask * np.uint8(255))
    return files


def write(path, pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())


def masked(files, *options) -> int:
    """Prepares with the masks instead of the csv."""
    return files.run_with("--masks", files.folder / "masks", *options)


def reasons(files) -> dict[str, tuple[str, str]]:
    return {row["ImageId"]: (row["reason"], row["detail"]) for row in files.quarantine()}


def test_masks_give_the_data_set_of_their_codes(files):
    assert files.run() == DONE
    by_codes, files.output = files.output, files.folder / "by_masks"
    assert masked(files) == DONE
    assert dataset.read_labels(files.output) == dataset.read_labels(by_codes)
    for size in (32, 64):
        for one, other in zip(
            dataset.open_arrays(files.output, size), dataset.open_arrays(by_codes, size), strict=True
        ):
            np.testing.assert_array_equal(one, other)
    index = dataset.read_index(files.output)
    assert index.mask_area.tolist() == [files.masks[uid].sum() for uid in index.image_id]
    assert index.label_rows.tolist() == [1, 1, 0]


def test_inverted_masks_are_told(files, capsys):
    assert masked(files) == DONE
    assert "cover more" not in capsys.readouterr().err
    for uid, mask in files.masks.items():
        write(files.folder / f"masks/{uid}.png", 1 - mask)
    files.output = files.folder / "inverted"
    assert masked(files) == DONE
    assert "3 of 3 masks cover more than half of their image, 1.1 first." in capsys.readouterr().err


def test_the_same_command_again_does_nothing_and_other_masks_are_refused(files, capsys):
    assert masked(files) == DONE
    assert masked(files) == DONE
    assert "is complete" in capsys.readouterr().out
    write(files.folder / "masks/1.3.png", np.full((96, 128), 255, np.uint8))
    assert masked(files) == 2
    assert "was prepared otherwise (masks" in capsys.readouterr().err


@pytest.mark.parametrize(
    "pixels",
    [
        lambda mask: mask,
        lambda mask: mask * np.uint16(65535),
        lambda mask: mask * np.uint8(7),
    ],
)
def test_every_value_but_0_is_the_mask(files, pixels):
    for uid, mask in files.masks.items():
        write(files.folder / f"masks/{uid}.png", pixels(mask))
    assert masked(files) == DONE
    assert dataset.read_index(files.output).mask_area.tolist() == [
        files.masks[uid].sum() for uid in ("1.1", "1.2", "1.3")
    ]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: write(path, np.zeros((96, 127), np.uint8)), "has 96 x 127 pixels, and its image 96 x 128"),
        (lambda path: write(path, np.zeros((96, 128, 3), np.uint8)), "has 3 channels. Export it in grey"),
        (lambda path: write(path, np.zeros((96, 128, 4), np.uint8)), "has 4 channels"),
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), "is truncated or damaged"),
        (lambda path: path.write_bytes(b"not a picture"), "is no PNG file"),
        (lambda path: write(path, np.arange(96 * 128).reshape(96, 128).astype(np.uint8)), "256 grey levels"),
    ],
)
def test_a_mask_that_cannot_be_used_sets_its_image_aside(files, spoil, words):
    spoil(files.folder / "masks/1.1.png")
    assert masked(files) == PARTIAL
    ((reason, detail),) = reasons(files).values()
    assert reason == "unusable mask"
    assert words in detail
    assert "1.1" in detail
    assert dataset.read_index(files.output).image_id.tolist() == ["1.2", "1.3"]


def test_an_image_without_mask_is_not_negative_unless_that_is_said(files, capsys):
    (files.folder / "masks/1.3.png").unlink()
    write(files.folder / "masks/9.9.png", np.zeros((96, 128), np.uint8))
    assert masked(files) == PARTIAL
    assert reasons(files) == {
        "1.3": ("image without labels", "masks has no mask for it. Add one if its label is known."),
        "9.9": ("labels without image", "No file has this id (the mask 9.9.png)."),
    }
    (files.folder / "masks/9.9.png").unlink()
    files.output = files.folder / "negative"
    capsys.readouterr()
    assert masked(files, "--missing-masks", "empty") == DONE
    assert "1 images have no mask file and count as negative" in capsys.readouterr().err
    assert dataset.read_index(files.output).mask_area.tolist()[2] == 0


def test_no_image_becomes_negative_because_its_mask_is_misnamed(files, capsys):
    masks = files.folder / "masks"
    (masks / "1.2.png").rename(masks / "1.2_mask.png")
    assert masked(files, "--missing-masks", "empty") == 2
    assert (
        "1 mask belongs to none of the images (1.2_mask.png): its image would count as negative. Rename it, or take it "
        "away." in capsys.readouterr().err
    )
    (masks / "1.1.png").rename(masks / "1.1_mask.png")
    assert masked(files, "--missing-masks", "empty") == 2
    assert "2 masks belong to none of the images (1.1_mask.png, 1.2_mask.png)" in capsys.readouterr().err
    assert not list(files.folder.glob("prepared*")), "nothing is left that stands in the way of the corrected start"
    for name in ("1.1", "1.2"):
        (masks / f"{name}_mask.png").rename(masks / f"{name}.png")
    write(masks / "9.9.png", np.zeros((96, 128), np.uint8))
    assert masked(files, "--missing-masks", "empty") == PARTIAL, "each image has its mask: none is taken for negative"
    assert list(reasons(files)) == ["9.9"]


def test_masks_may_be_called_as_the_images_files_and_lie_in_folders_below_them(files):
    for path in (files.folder / "masks").iterdir():
        place = next(files.images.rglob(f"{path.stem}.dcm"))
        target = files.images / "masks" / place.relative_to(files.images).with_suffix(".png")
        target.parent.mkdir(parents=True)
        path.rename(target)
    assert files.run_with("--masks", files.images / "masks") == DONE
    assert dataset.read_index(files.output).image_id.tolist() == ["1.1", "1.2", "1.3"]


def test_two_masks_of_an_image_are_not_guessed_from(files):
    write(files.folder / "masks/1.1.PNG", np.zeros((96, 128), np.uint8))
    assert masked(files) == PARTIAL
    assert reasons(files) == {"1.1": ("conflicting labels", "1.1.PNG, 1.1.png in masks are all masks of it. Keep one.")}


def test_a_mask_may_be_called_as_its_file_with_ending_but_not_besides(files):
    masks = files.folder / "masks"
    (masks / "1.2.png").rename(masks / "1.2.dcm.png")
    write(masks / "1.1.dcm.png", np.zeros((96, 128), np.uint8))
    assert masked(files) == PARTIAL
    told = "1.1.dcm.png, 1.1.png in masks are all masks of it. Keep one."
    assert reasons(files) == {"1.1": ("conflicting labels", told)}
    assert dataset.read_labels(files.output).keys() == {"1.2", "1.3"}


def test_what_would_be_negative_by_mistake_is_refused(files, capsys):
    masks = files.folder / "masks"
    for options, words in (
        (("--masks", files.folder / "gone"), "is not a folder. Give the one with the masks as --masks"),
        (("--masks", files.folder), "Keep images and masks in folders of their own"),
        (("--labels", files.labels, "--missing-masks", "empty"), "--missing-masks empty needs --masks"),
        (("--masks", masks, "--labels", files.labels), "not allowed with"),
        ((), "one of the arguments --labels --masks is required"),
    ):
        assert files.run_with(*options) == 2
        assert words in capsys.readouterr().err
    (masks / "1.1.jpg").write_bytes(b"x")
    assert masked(files) == 2
    assert "1.1.jpg is not a PNG file. Masks are read from PNG only" in capsys.readouterr().err
    (masks / "1.1.jpg").unlink()
    for path in list(masks.iterdir()):
        path.rename(path.with_stem(f"{path.stem}_mask"))
    assert masked(files, "--missing-masks", "empty") == 2
    assert "so all would be negative. An image is called 1.1, a mask 1.1_mask" in capsys.readouterr().err
    assert masked(files) == 2
    assert "3 of 3 files have no mask in masks." in capsys.readouterr().err
    for path in list(masks.iterdir()):
        path.unlink()
    assert masked(files) == 2
    assert "holds no PNG files" in capsys.readouterr().err
    assert not files.output.exists()
