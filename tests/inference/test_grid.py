import numpy as np
import pytest

from pixelhdm.inference.grid import GAP, MIN_CELL, labelled_grid


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
    rows = {"a": noise(3, height, width), "b": 255 - noise(2, height, width)}
    picture = np.asarray(labelled_grid(rows))
    for r, images in enumerate(rows.values()):
        for c, image in enumerate(images):
            large = image.repeat(zoom, axis=0).repeat(zoom, axis=1)
            assert min(large.shape[:2]) >= MIN_CELL
            np.testing.assert_array_equal(cell(picture, r, c, *large.shape[:2], 3), large)
    empty = cell(picture, 1, 2, height * zoom, width * zoom, 3)
    assert (empty == 255).all()


def test_labels_stand_to_the_left_and_have_room():
    rows = {"class 7": noise(1, 8, 8), "a very much longer label": noise(1, 8, 8)}
    picture = np.asarray(labelled_grid(rows))
    margin = picture[:, : picture.shape[1] - 64 - GAP]
    assert (margin[:, -GAP:] == 255).all()  # the text ends before the images
    for row in (0, 1):
        dark = margin[GAP + row * (64 + GAP) :][:64] < 100
        assert dark.any()
