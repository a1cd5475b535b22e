"""Pictures that show many images at once."""

import numpy as np
from einops import repeat
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

MIN_CELL, GAP, FONT_SIZE = 64, 4, 14


def labelled_grid(rows: dict[str, UInt8[np.ndarray, "n H W 3"]]) -> Image.Image:
    """One row of images per label, the label to its left; small images are enlarged without
    smoothing.
    """
    height = max(images.shape[1] for images in rows.values())
    width = max(images.shape[2] for images in rows.values())
    columns = max(len(images) for images in rows.values())
    zoom = max(1, -(-MIN_CELL // min(height, width)))
    font = ImageFont.load_default(FONT_SIZE)
    margin = int(max(font.getlength(label) for label in rows)) + 3 * GAP
    cell_height, cell_width = height * zoom + GAP, width * zoom + GAP
    canvas = Image.new(
        "RGB", (margin + columns * cell_width, len(rows) * cell_height + GAP), "white"
    )
    pen = ImageDraw.Draw(canvas)
    for row, (label, images) in enumerate(rows.items()):
        top = GAP + row * cell_height
        pen.text((GAP, top + height * zoom / 2), label, fill="black", font=font, anchor="lm")
        for column, image in enumerate(images):
            large = repeat(image, "h w c -> (h p) (w q) c", p=zoom, q=zoom)
            canvas.paste(Image.fromarray(large), (margin + column * cell_width, top))
    return canvas
