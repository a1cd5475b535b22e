import numpy as np
import pytest

from pixelhdm.inference.showing.grid import (
    GAP,
    HEAD,
    MIN_CELL,
    NO_BREAK,
    labelled_grid,
    short,
    tiled,
)


def noise(num: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (num, height, width, 3), dtype=np.uint8)


def cell(picture: np.ndarray, row: int, column: int, height: int, width: int, columns: int):
    """The pixels of one cell, found from the right and the top."""
    left = picture.shape[1] - (columns - column) * (width + GAP)
    top = GAP + row * (height + GAP)
    return picture[top : top + height, left : left + width]


@pytest.mark.parametrize(
    ("height", "width", "zoom"), [(8, 8, 8), (8, 16, 8), (48, 64, 2), (70, 65, 1)]
)
def test_every_image_stands_in_its_cell_enlarged_without_smoothing(height, width, zoom):
    rows = [("a", [*noise(3, height, width)]), ("b", [*(255 - noise(2, height, width))])]
    picture = np.asarray(labelled_grid(rows))
    for r, (_, images) in enumerate(rows):
        for c, image in enumerate(images):
            large = image.repeat(zoom, axis=0).repeat(zoom, axis=1)
            assert min(large.shape[:2]) >= MIN_CELL
            np.testing.assert_array_equal(cell(picture, r, c, *large.shape[:2], 3), large)
    empty = cell(picture, 1, 2, height * zoom, width * zoom, 3)
    assert (empty == 255).all()


def test_labels_stand_to_the_left_and_have_room():
    rows = [("class 7", [*noise(1, 8, 8)]), ("a very much longer label " * 9, [*noise(1, 8, 8)])]
    picture = np.asarray(labelled_grid(rows))
    margin = picture[:, : picture.shape[1] - 64 - GAP]
    assert (margin[:, -GAP:] == 255).all()  # the text ends before the images
    for row in (0, 1):
        dark = margin[GAP + row * (64 + GAP) :][:64] < 100
        assert dark.any()
    assert picture.shape[1] < 64 + 2 * GAP + 24 * 12  # a long one is broken into lines


def test_labels_are_short():
    assert short("class 7") == "class 7"
    lines = short("a long prompt with many words " * 9).split("\n")
    assert len(lines) == 3
    assert max(map(len, lines)) <= 24
    assert lines[-1].endswith(" …")


def test_images_of_several_sizes_stand_in_the_middle_of_their_cells():
    tall, wide = 0 * noise(1, 80, 64)[0], 0 * noise(1, 64, 96)[0]
    picture = np.asarray(labelled_grid([("a", [tall]), ("b", [wide])]))
    for row, (top, left) in enumerate([(0, 16), (8, 0)]):
        own = cell(picture, row, 0, 80, 96, 1)
        expected = np.full((80, 96, 3), 255)
        expected[top : 80 - top, left : 96 - left] = 0
        np.testing.assert_array_equal(own, expected)


def test_tiles_stand_side_by_side_without_gaps():
    images = [*noise(3, 4, 6)]
    whole = tiled(images, 2)
    assert whole.shape == (8, 12, 3)
    np.testing.assert_array_equal(whole[:4, 6:], images[1])
    np.testing.assert_array_equal(whole[4:, :6], images[2])
    assert (whole[4:, 6:] == 0).all()


def test_headings_stand_above_their_columns_and_have_room():
    rows = [("a", [*noise(2, 64, 64)]), ("b", [*noise(2, 64, 64)])]
    plain, headed = (labelled_grid(rows, given) for given in (None, ["x", "scale 1.25 or so"]))
    assert headed.height == plain.height + HEAD
    picture, wide = np.asarray(headed), (headed.width - plain.width) // 2 + 64
    assert wide > 64  # the longer heading's
    for column, least in ((0, 1), (1, 40)):
        left = headed.width - (2 - column) * (wide + GAP)
        dark = (picture[: HEAD + GAP, left : left + wide] < 100).any(axis=(0, 2)).nonzero()[0]
        assert dark.max() - dark.min() >= least
        assert abs((dark.max() + dark.min()) / 2 - wide / 2) < 4
    np.testing.assert_array_equal(
        picture[HEAD + GAP :, -wide - GAP :][:64, (wide - 64) // 2 :][:, :64], rows[0][1][1]
    )


def test_a_label_is_not_broken_where_it_must_not_be():
    assert short(f"AdamsSampler, order, 10{NO_BREAK}steps") == "AdamsSampler, order,\n10 steps"
