"""Small shards for the tests of the index."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from pixelhdm.data.indexing.index import Index
from pixelhdm.data.reading.storage import Storage

STORAGE = Storage(tries=2, wait=0.01)


def image(width: int, height: int, kind: str = "JPEG", orientation: int = 1) -> bytes:
    """A picture of noise."""
    seed = np.random.default_rng(width * 1000 + height)
    picture = Image.fromarray(seed.integers(0, 255, (height, width, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    picture.save(out, kind, **({"exif": exif} if orientation != 1 else {}))
    return out.getvalue()


def tar_bytes(members: list[tuple[str, bytes]], style: int = tarfile.USTAR_FORMAT) -> bytes:
    """A tar of files, as Python's own module writes it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=style) as tar:
        for name, data in members:
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    return out.getvalue()


def sample(number: int) -> list[tuple[str, bytes]]:
    """Parts of one sample: sizes, captions and labels differ by its number."""
    key = f"{number:09d}"
    captions = json.dumps({"captions": [f"caption {number}", "another"]}).encode()
    return [
        (f"{key}.cls", str(number % 10).encode()),
        (f"{key}.jpg", image(20 + number, 30)),
        (f"{key}.json", captions),
        (f"{key}.txt", f"caption {number}".encode()),
    ]


def write_tar(path: Path, members: list[tuple[str, bytes]], style: int = tarfile.USTAR_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(members, style))
    return path


def write_shards(folder: Path, num_shards: int = 2, num_samples: int = 4) -> list[Path]:
    """Shards of samples that are numbered through."""
    return [
        write_tar(
            folder / f"{shard:05d}.tar",
            [part for n in range(num_samples) for part in sample(shard * num_samples + n)],
        )
        for shard in range(num_shards)
    ]


def places(tar: Path) -> dict[str, tuple[int, int]]:
    """Offset and length of each file, by Python's own module."""
    with tarfile.open(tar) as opened:
        return {m.name: (m.offset_data, m.size) for m in opened if m.isreg()}


def texts_of(index: Index) -> list[bytes]:
    """The bytes of each sample's text part."""
    found = []
    for row in range(len(index)):
        start, length = int(index.text_offset[row]), int(index.text_length[row])
        if index.flags[row] & 4:
            found.append(index.texts[start : start + length].tobytes())
        else:
            found.append(STORAGE.read(index.shards[index.shard[row]], start, length))
    return found
