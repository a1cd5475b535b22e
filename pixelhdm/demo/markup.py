"""The parts of the demo's page that are plain HTML."""

import base64
import io
from html import escape

from PIL import Image

ROOM, ROOMS, LARGE = 400, 580, 256  # pixels: for one picture, for several; smooth from there on


def head_html(model: str) -> str:
    """The head of the page."""
    return f"<h1>PixelHDM</h1><p>{escape(model)}</p>"


def pictures_html(pngs: list[bytes], height: int, width: int) -> str:
    """Pictures of one size side by side; small ones are enlarged by whole numbers, unsmoothed."""
    room = ROOM if len(pngs) == 1 else ROOMS / min(len(pngs), 4)
    zoom = max(1, int(room / max(height, width)))
    kind = "smooth" if max(height, width) >= LARGE else "sharp"
    images = "".join(
        f'<img class="{kind}" alt="drawn picture" style="width: {width * zoom}px" '
        f'src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        for png in pngs
    )
    return f'<div class="pictures">{images}</div>'


def as_png(image: Image.Image) -> bytes:
    """A picture as it goes to the page, fast rather than small."""
    buffer = io.BytesIO()
    image.save(buffer, "png", compress_level=1)
    return buffer.getvalue()


def progress_html(part: float, text: str) -> str:
    """How far a drawing is, 0 … 1."""
    return (
        f'<div class="state"><progress max="1" value="{part:.3f}"></progress>{escape(text)}</div>'
    )


def state_html(text: str) -> str:
    """What has happened."""
    return f'<div class="state" role="status">{escape(text)}</div>'


def mistake_html(text: str) -> str:
    """What was wrong with the input."""
    return f'<div class="state mistake" role="alert">{escape(text)}</div>'


def facts_html(facts: dict[str, str]) -> str:
    """A table of names and values; empty values are left out."""
    rows = "".join(
        f"<tr><th>{escape(name.replace('_', ' '))}</th><td>{escape(value)}</td></tr>"
        for name, value in facts.items()
        if value
    )
    return f'<table class="facts">{rows}</table>'
