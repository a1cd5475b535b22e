"""Pictures that show how images come to be: moving ones, and strips of a few moments."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np
from einops import repeat
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from pixelhdm.errors import UserError
from pixelhdm.files import replacing
from pixelhdm.inference.showing.grid import FONT_SIZE, GAP, MIN_CELL, Pixels, labelled_grid, zoom_to

Moving = Literal["gif", "webp", "mp4"]
Format = Literal["gif", "webp", "mp4", "strip"]
ENDINGS: dict[str, str] = {"gif": ".gif", "webp": ".webp", "mp4": ".mp4", "strip": "_strip.png"}
MIN_SIDE = 128  # pixels
DURATION, HOLD = 3.0, 1.0  # seconds
NUM_COLOURS = 256  # of a GIF's image
CODECS = ("libx264", "libopenh264", "mpeg4")  # the first that PyAV has is taken


def write_animation(
    file: Path,
    frames: list[Pixels],
    format: Moving,
    duration: float = DURATION,
    zoom: int | None = None,
    note: str = "",
) -> None:
    """Write frames of one size as a GIF, WebP or MP4; the last one stands a second longer. GIF and
    WebP begin anew then, without end.

    WebP is without loss. GIF has the best 256 colours of each frame, which is without loss for
    images of up to 16 x 16 pixels. MP4 is H.264 that browsers play.

    Args:
        file: where to.
        frames: the images.
        format: gif, webp or mp4.
        duration: seconds from the first to the last frame.
        zoom: how many times larger they are shown, without smoothing; empty takes the least that
            makes both sides at least 128.
        note: a text that the file carries.

    Raises:
        UserError: mp4 lacks its package.
    """
    height, width, _ = frames[0].shape
    zoom = zoom or zoom_to(MIN_SIDE, min(height, width))
    writers: dict[str, Callable[..., None]] = {"gif": save_gif, "webp": save_webp, "mp4": save_mp4}
    with replacing(file) as temporary:
        writers[format](temporary, frames, duration / max(len(frames) - 1, 1), zoom, note)


def milliseconds(num: int, pause: float) -> list[int]:
    """How long each of `num` frames is seen, in the steps of 10 that a GIF can tell; browsers slow
    down below 20.
    """
    each = max(20, round(pause * 100) * 10)
    return [each] * (num - 1) + [each + round(HOLD * 1000)]


def save_gif(file: Path, frames: list[Pixels], pause: float, zoom: int, note: str) -> None:
    """Write a GIF; each frame has its own palette, made before it is enlarged."""
    first, *rest = (enlarged(with_palette(frame), zoom) for frame in frames)
    times = milliseconds(len(frames), pause)
    settings = {"duration": times, "loop": 0, "comment": note.encode()}
    first.save(file, "gif", save_all=True, append_images=rest, **settings)


def with_palette(frame: Pixels) -> Image.Image:
    """An image of 256 colours; others are mixed of neighbours (Floyd and Steinberg)."""
    image = Image.fromarray(frame)
    palette = image.quantize(NUM_COLOURS)
    if image.getcolors(NUM_COLOURS) is not None:
        return palette
    return image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)


def enlarged(image: Image.Image, zoom: int) -> Image.Image:
    """An image with its pixels as squares."""
    size = image.width * zoom, image.height * zoom
    return image.resize(size, Image.Resampling.NEAREST)


def save_webp(file: Path, frames: list[Pixels], pause: float, zoom: int, note: str) -> None:
    """Write a WebP without loss."""
    first, *rest = (enlarged(Image.fromarray(frame), zoom) for frame in frames)
    times = milliseconds(len(frames), pause)
    settings = {"lossless": True, "duration": times, "loop": 0, "xmp": note.encode()}
    first.save(file, "webp", save_all=True, append_images=rest, **settings)


def save_mp4(file: Path, frames: list[Pixels], pause: float, zoom: int, note: str) -> None:
    """Write an MP4 with even sides, as H.264's halved colours need; odd ones get a pixel more."""
    av = mp4_package()
    codec = next(name for name in CODECS if name in av.codecs_available)
    rate = Fraction(1 / pause).limit_denominator(1000)
    large = [even(repeat(f, "h w c -> (h p) (w q) c", p=zoom, q=zoom)) for f in frames]
    large += [large[-1]] * round(HOLD * rate)
    with av.open(str(file), "w", format="mp4", options={"movflags": "faststart"}) as container:
        container.metadata["comment"] = note
        stream = container.add_stream(codec, rate=rate)
        stream.pix_fmt = "yuv420p"
        stream.height, stream.width = large[0].shape[:2]
        if codec == "libx264":
            stream.options = {"crf": "16", "tune": "animation"}
        for frame in large:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def mp4_package() -> ModuleType:
    """PyAV, which writes MP4.

    Raises:
        UserError: it is not installed.
    """
    try:
        import av
    except ModuleNotFoundError as error:
        raise UserError(
            "mp4 must have the package av to be written, got none. Run pip install av, or choose "
            "gif or webp."
        ) from error
    return av


def even(pixels: Pixels) -> Pixels:
    """The same with even sides."""
    height, width, _ = pixels.shape
    return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def write_strip(
    file: Path, rows: list[tuple[str, list[Pixels]]], times: list[float], note: str = ""
) -> None:
    """Write a PNG with a row a label: images side by side, the time below each column; `times` may
    be empty.
    """
    grid = labelled_grid(rows)
    font = ImageFont.load_default(FONT_SIZE)
    canvas = Image.new("RGB", (grid.width, grid.height + FONT_SIZE + 2 * GAP), "white")
    canvas.paste(grid)
    pen = ImageDraw.Draw(canvas)
    images = [image for _, row in rows for image in row]
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    cell = width * zoom_to(MIN_CELL, min(height, width)) + GAP
    for column, t in enumerate(times):
        middle = grid.width - (len(times) - column) * cell + (cell - GAP) / 2
        pen.text((middle, grid.height), f"t = {t:.2f}", fill="black", font=font, anchor="ma")
    info = PngInfo()
    info.add_text("comment", note)
    with replacing(file) as temporary:
        canvas.save(temporary, "png", pnginfo=info)


def has_note(file: Path, note: str) -> bool:
    """Whether a file is there and carries a note, which all formats hold in plain letters."""
    return file.is_file() and note.encode() in file.read_bytes()
