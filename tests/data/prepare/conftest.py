import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixelhdm.data.prepare.prepare import prepare


def picture(number: int, width: int = 40, height: int = 30) -> Image.Image:
    """An image that no other number has."""
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))


def save(path: Path, number: int = 0, width: int = 40, height: int = 30, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(number, width, height).save(path, **options)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    """All of a folder but the compiled index."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and ".pixelhdm-index" not in file.parts
    }


def rejected(out: Path) -> dict[str, str]:
    """Reason by path."""
    lines = (out / "rejected.jsonl").read_text().splitlines()
    return {row["path"]: row["reason"] for row in map(json.loads, lines)}


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture) -> Callable[..., Path]:
    """Prepare into a folder, in this process; returns the folder."""

    def call(source: object, out: str = "out", **settings: object) -> Path:
        prepare(str(source), str(tmp_path / out), **{"num_processes": 1, **settings})
        return tmp_path / out

    return call


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Sixty images, some with captions, some to reject."""
    source = tmp_path / "photos"
    for number in range(56):
        file = save(source / f"d{number % 3}" / f"{number:02d}.jpg", number, 40 + number)
        if number % 2:
            file.with_suffix(".txt").write_text(f"photo {number}")
    (source / "d0/copy.jpg").write_bytes((source / "d1/01.jpg").read_bytes())
    (source / "empty.png").write_bytes(b"")
    (source / "torn.jpg").write_bytes((source / "d1/01.jpg").read_bytes()[:700])
    save(source / "tiny.png", 99, 9, 9)
    return source
