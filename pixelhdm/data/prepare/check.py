"""Whether one image can be trained on, and what is stored of it."""

import io
import json
import re
import warnings
import zlib
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from PIL import Image

from pixelhdm.data.decode import Header, decode, read_header
from pixelhdm.data.indexing.members import MAX_SIDE
from pixelhdm.data.prepare.items import Item, Rejection
from pixelhdm.data.prepare.texts import read_texts
from pixelhdm.errors import one_line

Reencode = Literal["jpeg", "webp"]
ENDING = {
    "JPEG": "jpg",
    "MPO": "jpg",  # a JPEG with more pictures behind the first: what many cameras write
    "PNG": "png",
    "WEBP": "webp",
    "BMP": "bmp",
    "GIF": "gif",
    "TIFF": "tif",
    "AVIF": "avif",
}


@dataclass(frozen=True)
class Rules:
    """What an image must be.

    Args:
        min_side: least length of its shorter side in pixels.
        max_aspect: highest ratio of its longer to its shorter side.
        require_captions: whether it needs a caption.
        reencode: format to store it in; None keeps its bytes.
        quality: of that format, 1 … 100.
    """

    min_side: int
    max_aspect: float
    require_captions: bool
    reencode: Reencode | None
    quality: int


class Checked(NamedTuple):
    """What is stored of an image.

    Attributes:
        data: its bytes.
        ending: of its file, without dot.
        width: upright, in pixels.
        height: upright, in pixels.
        crc32: of its bytes.
        text: the JSON beside it.
        captions: its captions.
        label: its class's number, if it has one.
        tags: what the report counts it under: its format, CMYK, reencoded.
        bad_texts: what is wrong with its texts; empty where all could be read.
    """

    data: bytes
    ending: str
    width: int
    height: int
    crc32: int
    text: bytes
    captions: tuple[str, ...]
    label: int | None
    tags: tuple[str, ...]
    bad_texts: str


class Unfit(Exception):
    """An image is left out; its arguments are reason and detail."""


def check_all(items: list[Item], rules: Rules) -> list[Checked | Rejection]:
    """Check several images."""
    return [check(item, rules) for item in items]


def check(item: Item, rules: Rules) -> Checked | Rejection:
    """Decode an image and gather what is stored of it, or say why it is left out."""
    try:
        data = read_bytes(item)
        header = fitting_header(data, rules)
        pixels = decoded(data)
        texts = read_texts(item)
        if rules.require_captions and not texts.captions:
            raise Unfit("no_caption", "; ".join(texts.problems) or "none is given")
    except Unfit as unfit:
        return Rejection(item.path, *unfit.args)
    tags = [header.kind, *(["CMYK"] if header.mode == "CMYK" else [])]
    width, height, ending = header.width, header.height, ENDING.get(header.kind)
    if rules.reencode and header.kind != rules.reencode.upper():
        data, ending = encoded(pixels, rules), ENDING[rules.reencode.upper()]
        tags.append("reencoded")
    about: dict[str, Any] = {"captions": texts.captions, "path": item.path, "format": header.kind}
    about |= {"width": width, "height": height}
    if item.label is not None:
        about |= {"class": item.class_name, "label": item.label}
    if texts.metadata:
        about["metadata"] = texts.metadata
    text = json.dumps(about, default=str).encode()
    known = text, tuple(texts.captions), item.label, tuple(tags), "; ".join(texts.problems)
    return Checked(data, ending, width, height, zlib.crc32(data), *known)


def read_bytes(item: Item) -> bytes:
    """An image's bytes."""
    try:
        data = item.place.read()
    except FileNotFoundError as error:
        raise Unfit("missing", "it was there when the source was listed") from error
    except OSError as error:
        raise Unfit("unreadable", error.strerror or one_line(error)) from error
    if not data:
        raise Unfit("empty", "0 bytes")
    return data


def fitting_header(data: bytes, rules: Rules) -> Header:
    """The header of an image that the rules allow."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a large image's is judged below, others tell nothing
            header = read_header(data)
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise Unfit("too_large", f"more than {most:,} pixels") from error
    except Exception as error:  # decoders meet broken files with nearly any exception
        raise Unfit("broken", brief(error)) from error
    width, height = header.width, header.height
    short, long = sorted((width, height))
    if header.kind not in ENDING and not rules.reencode:
        raise Unfit("unsupported", f"{header.kind}; --reencode takes it in")
    if header.mode == "F":
        raise Unfit("unsupported", f"{header.kind} of 32-bit floats, whose range is not known")
    if header.num_frames > 1 and header.kind != "MPO":
        raise Unfit("animated", f"{header.kind} of {header.num_frames} frames")
    if long > MAX_SIDE:
        raise Unfit("too_large", f"{width} x {height}, a side above {MAX_SIDE}")
    if short < rules.min_side:
        raise Unfit("too_small", f"{width} x {height}, the least side is {rules.min_side}")
    if long > rules.max_aspect * short:
        raise Unfit("extreme", f"{width} x {height}, the highest ratio is {rules.max_aspect:g}")
    return header


def decoded(data: bytes) -> Any:
    """All pixels of an image: only this shows that it is whole."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return decode(data)
    except Exception as error:  # decoders meet broken files with nearly any exception
        raise Unfit("broken", brief(error)) from error


def encoded(pixels: Any, rules: Rules) -> bytes:
    """Pixels in the format that the rules ask for."""
    stream = io.BytesIO()
    format = rules.reencode.upper()
    options = {"subsampling": 0} if format == "JPEG" and rules.quality >= 90 else {}
    Image.fromarray(pixels).save(stream, format, quality=rules.quality, **options)
    return stream.getvalue()


def brief(error: Exception) -> str:
    """The first words of an error, without a decoder's own files and addresses in memory, which no
    two runs share.
    """
    text = re.sub(r"^.*\.cpp:\d+, |,? <?_io\..*", "", one_line(error)).rstrip(". ")
    text = text or type(error).__name__
    return text[:120]
