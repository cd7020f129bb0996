"""Overlays and contact sheets: colours where they belong, all other pixels left alone, whole files."""

import cv2
import numpy as np
import pytest

from jaxpneumo.predict.captions import caption_height, explained, found, title
from jaxpneumo.predict.pictures import COLORS, contact_sheet, overlay
from jaxpneumo.predict.png import write_png
from jaxpneumo.process.errors import InputError

RED, GREEN = (200, 10, 10), (10, 200, 10)


def grey_image(size: int = 512) -> np.ndarray:
    noise = np.random.default_rng(0).integers(40, 200, (size, size), np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 3)


def disc(size: int, row: int, column: int, radius: int) -> np.ndarray:
    rows, columns = np.ogrid[:size, :size]
    return ((rows - row) ** 2 + (columns - column) ** 2 <= radius**2).astype(np.uint8)


def pixels_of(picture: np.ndarray, name: str) -> np.ndarray:
    return np.all(picture == COLORS[name], axis=-1)


def near_edge(mask: np.ndarray, distance: int) -> np.ndarray:
    kernel = np.ones((2 * distance + 1,) * 2, np.uint8)
    return cv2.dilate(mask, kernel) != cv2.erode(mask, kernel)


def test_only_the_outlines_are_drawn_each_in_its_colour():
    image, prediction, truth = grey_image(), disc(512, 150, 150, 60), disc(512, 350, 330, 80)
    picture = overlay(image, prediction, truth)
    assert (picture.dtype, picture.shape) == (np.uint8, (512, 512, 3))

    changed = np.any(picture != image[..., None], axis=-1)
    assert not np.any(changed & ~near_edge(prediction, 3) & ~near_edge(truth, 3))
    assert not np.any(pixels_of(picture, "prediction") & ~near_edge(prediction, 3))
    assert not np.any(pixels_of(picture, "truth") & ~near_edge(truth, 3))
    # the prediction's line is whole, the truth's is dashed: about three fifths of it
    edges = [
        cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0][0][:, 0] for mask in (prediction, truth)
    ]
    drawn = [changed[edge[:, 1], edge[:, 0]].mean() for edge in edges]
    assert drawn[0] == 1.0
    assert 0.5 < drawn[1] < 0.9


def test_both_are_seen_where_they_coincide():
    mask = disc(512, 256, 256, 100)
    picture = overlay(grey_image(), mask, mask)
    assert pixels_of(picture, "prediction").sum() > 100
    assert pixels_of(picture, "truth").sum() > 100


def test_holes_and_single_pixels_are_outlined():
    ring, point = disc(512, 200, 200, 80) - disc(512, 200, 200, 40), np.zeros((512, 512), np.uint8)
    point[450, 100] = 1
    hole = overlay(grey_image(), ring)
    assert np.any(pixels_of(hole, "prediction") & near_edge(disc(512, 200, 200, 40), 3))
    for picture in (
        overlay(grey_image(), point),
        overlay(grey_image(), 0 * point, point),
    ):
        changed = np.any(picture != grey_image()[..., None], axis=-1)
        assert changed[450, 100]
        assert changed.sum() <= 49


def test_empty_masks_leave_the_image_and_the_input_is_never_changed():
    image, nothing = grey_image(), np.zeros((512, 512), bool)
    before = image.copy()
    picture = overlay(image, nothing, nothing)
    np.testing.assert_array_equal(picture, np.repeat(image[..., None], 3, axis=-1))
    overlay(image, disc(512, 256, 256, 90), None)
    np.testing.assert_array_equal(image, before)


def test_text_names_the_outline_where_there_is_one_and_covers_nothing():
    image, nothing, mask = np.full((1024, 1024), 90, np.uint8), np.zeros((1024, 1024)), disc(1024, 500, 500, 90)
    lines = [title("1.2.3"), found(0, None, 0.1, None)]
    without, outlined = explained(image, nothing, lines, "research use"), explained(image, mask, lines, "research use")
    top = caption_height(lines, 1024, 1024)
    np.testing.assert_array_equal(without[top : top + 1024], np.repeat(image[..., None], 3, axis=-1))
    np.testing.assert_array_equal(outlined[top : top + 1024], overlay(image, mask))
    assert not pixels_of(without, "prediction").any()
    assert pixels_of(outlined[top + 1024 :], "prediction").any()
    for picture in (without, outlined):
        assert np.any(picture[top + 1024 :, :200] > 120)  # the note


def test_what_was_found_is_said_in_words():
    assert found(1207, None, 0.9974, "left")[0] == "found: score 0.997, 1,207 pixels, left"
    assert found(1207, 23.2, 0.9974, None)[0] == "found: score 0.997, 23 mm2"
    assert found(0, 0.0, 0.02, None)[0] == "nothing found: score 0.020"


@pytest.mark.parametrize("shape", [(16, 16), (64, 64), (256, 256), (300, 700), (1500, 1100)])
def test_any_size_of_image(shape):
    mask = np.zeros(shape, np.uint8)
    mask[3:9, 3:9] = 1
    picture = overlay(np.full(shape, 100, np.uint8), mask, mask)
    assert picture.shape == (*shape, 3)
    assert np.any(picture != 100)


def test_drawing_at_another_width_keeps_lines_sharp():
    image, mask = grey_image(), disc(512, 150, 150, 60)
    picture = overlay(image, mask, width=128)
    assert picture.shape == (128, 128, 3)
    assert pixels_of(picture, "prediction").sum() > 40
    assert overlay(image[:256], mask[:256], width=128).shape == (64, 128, 3)
    assert overlay(image, mask, width=2000).shape == (512, 512, 3)


def test_the_smallest_finding_stays_in_a_thumbnail():
    point = np.zeros((1024, 1024), np.uint8)
    point[701, 303] = 1
    picture = overlay(np.full((1024, 1024), 90, np.uint8), point, width=256)
    assert np.argwhere(pixels_of(picture, "prediction")).tolist() == [[175, 75]]


def test_a_long_note_is_all_on_the_picture():
    image, mask = np.full((512, 512), 90, np.uint8), disc(512, 256, 256, 100)
    note = "These outlines say nothing about patients. " * 8
    below = explained(image, mask, [], note)[caption_height([], 512, 512) + 512 :]
    rows, columns = np.nonzero((below > 100).any(axis=-1))
    assert rows.max() > 40  # three lines or more
    assert columns.min() > 0
    assert columns.max() < 511


def test_text_beside_a_picture_that_is_all_width_stays_small():
    lines = [title("1.2.3"), found(0, None, 0.1, None)]
    assert caption_height(lines, 100_000, 16) == caption_height(lines, 500, 500)
    assert caption_height(lines, 2048, 1024) == caption_height(lines, 2048, 2048)


def test_what_is_no_image_or_no_mask_of_it_is_refused():
    image, mask = grey_image(64), np.zeros((64, 64), np.uint8)
    with pytest.raises(InputError, match="uint8"):
        overlay(image / 255, mask)
    with pytest.raises(InputError, match="grey"):
        overlay(np.repeat(image[..., None], 3, axis=-1), mask)
    with pytest.raises(InputError, match=r"truth \(32, 32\)"):
        overlay(image, mask, mask[:32, :32])


def test_png_holds_the_picture_and_nothing_else_is_left(tmp_path):
    image, mask = grey_image(), disc(512, 256, 256, 100)
    path = tmp_path / "overlays" / "ID_a.png"
    write_png(path, overlay(image, mask, mask))
    read = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    np.testing.assert_array_equal(read, overlay(image, mask, mask))
    write_png(tmp_path / "overlays" / "grey.png", image)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "overlays" / "grey.png"), cv2.IMREAD_GRAYSCALE), image)
    assert sorted(file.name for file in path.parent.iterdir()) == ["ID_a.png", "grey.png"]


def test_contact_sheet_places_every_picture():
    colors = [RED, GREEN, (10, 10, 200), (200, 200, 10), (10, 200, 200)]
    pictures = [(f"case {number}", np.full((90, 90, 3), color, np.uint8)) for number, color in enumerate(colors)]
    sheet = contact_sheet(pictures, columns=3, width=642)
    cell = (642 - 12) // 3 - 12
    assert (sheet.dtype, sheet.shape[1]) == (np.uint8, 642)
    corners = []
    for color in colors:
        rows, columns = np.nonzero(np.all(sheet == color, axis=-1))
        assert rows.size == cell * cell
        corners.append((rows.min(), columns.min()))
    tops, lefts = zip(*corners, strict=True)
    assert tops[0] == tops[1] == tops[2] < tops[3] == tops[4]
    assert lefts[:2] == lefts[3:]
    assert lefts[0] < lefts[1] < lefts[2]
    assert pixels_of(sheet, "prediction").any()
    assert pixels_of(sheet, "truth").any()


def test_contact_sheet_takes_mixed_shapes_long_titles_and_few_pictures():
    wide, tall = np.full((40, 200, 3), RED, np.uint8), np.full((200, 50, 3), GREEN, np.uint8)
    uid = "1.2.276.0.7230010.3.1.4.8323329.6904.1517875201.850819"
    sheet = contact_sheet([(uid, wide), (uid, tall)], columns=4, width=800)
    assert sheet.shape[1] == 12 + 2 * (185 + 12)
    assert np.sum(np.all(sheet == RED, axis=-1)) == 185 * 37
    assert np.sum(np.all(sheet == GREEN, axis=-1)) == 185 * 740
    titles = sheet[:30]
    assert np.all(titles[:, 197:209] == 24)  # the first title ends before the second picture begins
    assert np.any(titles[:, :197] > 150)
    assert np.any(titles[:, 209:] > 150)


@pytest.mark.parametrize(
    ("count", "columns", "width", "words"),
    [(0, 4, 1600, "at least one"), (3, 0, 1600, "0 columns"), (3, 4, 100, "wider")],
)
def test_contact_sheet_refuses_the_impossible(count, columns, width, words):
    pictures = [("a", np.zeros((8, 8, 3), np.uint8))] * count
    with pytest.raises(InputError, match=words):
        contact_sheet(pictures, columns, width)
