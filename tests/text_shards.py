"""Shards with captions of many lengths, and what encodes them."""

import json
from pathlib import Path

from pixelhdm.cache_text import cache_text
from pixelhdm.data.prepare.prepare import prepare
from pixelhdm.data.reading.storage import Storage
from pixelhdm.data.shards import Shards
from pixelhdm.models.encoders.text_encoder import TextEncoder
from tests.data.prepare.conftest import save

NUM, PER_SHARD = 20, 7


def captions(number: int) -> list[str]:
    """One to three captions of a picture, none like another's, of other lengths."""
    texts = [f"photo {number} " + "of a red cat " * (number % 5), f"{number}", f"the {number}. é"]
    return texts[: 1 + number % 3]


def save_shards(folder: Path, num: int = NUM) -> Path:
    """Write three shards of captioned pictures into `folder`; gives it back."""
    for number in range(num):
        picture = save(folder.parent / "pictures" / f"{number}.png", number, 8, 8)
        picture.with_suffix(".json").write_text(json.dumps({"captions": captions(number)}))
    pictures = str(folder.parent / "pictures")
    prepare(pictures, str(folder), images_per_shard=PER_SHARD, min_side=8, num_processes=1)
    return folder


def shards(folder: object, **options: object) -> Shards:
    """They as a source, not opened."""
    return Shards(str(folder), "caption", storage=Storage(tries=2, wait=0.001), **options)


def opened(folder: object, **options: object) -> Shards:
    source = shards(folder, **options)
    source.open()
    return source


def cache(
    folder: object,
    qwen: Path,
    encoder: TextEncoder | None = None,
    batch_size: int = 4,
    device: str = "cpu",
    part: str | None = None,
) -> None:
    """Run cache-text on them in this process."""
    encoder = encoder or TextEncoder(str(qwen))
    cache_text(encoder, [shards(folder)], ["a cat"], None, batch_size, device, part)
