"""Pictures that show many images at once."""

import textwrap

import numpy as np
from einops import repeat
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

MIN_CELL, GAP, FONT_SIZE, HEAD = 64, 4, 14, 22
LABEL_WIDTH, LABEL_LINES = 24, 3
NO_BREAK = "\N{NO-BREAK SPACE}"

Pixels = UInt8[np.ndarray, "_ _ 3"]


def labelled_grid(
    rows: list[tuple[str, list[Pixels]]], headings: list[str] | None = None
) -> Image.Image:
    """One row of images per label, the label to its left; above the columns their headings, if
    there are any.

    Small images are enlarged without smoothing; those smaller than others stand in the middle of
    their cells.
    """
    images = [image for _, row in rows for image in row]
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    columns = max(len(row) for _, row in rows)
    zoom = zoom_to(MIN_CELL, min(height, width))
    font = ImageFont.load_default(FONT_SIZE)
    labels = [short(label) for label, _ in rows]
    margin = int(max(font.getlength(line) for text in labels for line in text.split("\n")))
    margin += 3 * GAP
    height, width = height * zoom, width * zoom
    head = GAP
    if headings:
        width = max(width, *(int(font.getlength(text)) + GAP for text in headings))
        head += HEAD
    size = margin + columns * (width + GAP), len(rows) * (height + GAP) + head
    canvas = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(canvas)
    for column, text in enumerate(headings or []):
        middle = margin + column * (width + GAP) + width / 2
        pen.text((middle, head / 2), text, fill="black", font=font, anchor="mm")
    for number, (label, (_, row)) in enumerate(zip(labels, rows, strict=True)):
        top = head + number * (height + GAP)
        pen.text((GAP, top + height / 2), label, fill="black", font=font, anchor="lm")
        for column, image in enumerate(row):
            large = Image.fromarray(repeat(image, "h w c -> (h p) (w q) c", p=zoom, q=zoom))
            left = margin + column * (width + GAP) + (width - large.width) // 2
            canvas.paste(large, (left, top + (height - large.height) // 2))
    return canvas


def zoom_to(least: int, side: int) -> int:
    """The smallest factor that makes a side at least so long."""
    return -(-least // side)


def short(label: str) -> str:
    """A label in at most three short lines, none of which ends at a NO_BREAK."""
    lines = textwrap.wrap(label, LABEL_WIDTH, max_lines=LABEL_LINES, placeholder=" …")
    return "\n".join(lines).replace(NO_BREAK, " ")  # the font lacks it


def tiled(images: list[Pixels], columns: int) -> Pixels:
    """Images of one size side by side, row after row; empty places are black."""
    height, width, _ = images[0].shape
    rows = -(-len(images) // columns)
    whole = np.zeros((rows * height, columns * width, 3), dtype=np.uint8)
    for number, image in enumerate(images):
        top, left = number // columns * height, number % columns * width
        whole[top : top + height, left : left + width] = image
    return whole
