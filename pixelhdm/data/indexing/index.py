"""The index of a set of shards: where each sample lies and how large its image is."""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pixelhdm.errors import UserError

VERSION = 1
COLUMNS = {
    "shard": np.uint32,
    "offset": np.uint64,
    "length": np.uint32,
    "text_offset": np.uint64,
    "text_length": np.uint32,
    "width": np.uint16,
    "height": np.uint16,
    "crc32": np.uint32,
    "label": np.int32,
    "flags": np.uint8,
}
CRC_KNOWN, TEXT_IS_JSON, TEXT_IN_INDEX = 1, 2, 4
NO_LABEL = -1


@dataclass
class Index:
    """One row a sample, 41 bytes each, in columns that lie on disk and are mapped into memory.

    Attributes:
        columns: arrays of equal length by name. `shard` is a number into `shards`; `offset` and
            `length` are the image's bytes in it; `text_offset` and `text_length` its captions'
            (length 0: none), in the shard or, with the flag TEXT_IN_INDEX, in `texts`; `width` and
            `height` are upright (after EXIF orientation), 0 where the image's header cannot be
            read; `crc32` is of the image's bytes, where the flag CRC_KNOWN says so; `label` is -1
            for none.
        shards: path or URL of each shard.
        classes: names of the classes in the order of their numbers; empty where unlabelled.
        texts: captions that no shard holds, one after another (bytes).
        problems: what was wrong with the shards, one sentence each.
        digest: a short text that differs when samples, labels or names of shards differ.
        folder: where it was loaded from, if it was.
    """

    columns: dict[str, np.ndarray]
    shards: tuple[str, ...]
    classes: tuple[str, ...] = ()
    texts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))
    problems: tuple[str, ...] = ()
    digest: str = ""
    folder: Path | None = None

    def __post_init__(self) -> None:
        self.digest = self.digest or self.computed_digest()

    def __len__(self) -> int:
        return len(self.columns["shard"])

    def __getattr__(self, name: str) -> np.ndarray:
        """A column by its name."""
        try:
            return self.__dict__["columns"][name]
        except KeyError:
            raise AttributeError(name) from None

    def __reduce__(self) -> tuple:
        """Another process maps the same files, instead of getting a copy of them."""
        if self.folder is None:
            parts = self.columns, self.shards, self.classes, self.texts, self.problems, self.digest
            return type(self), parts
        return reopened, (self.folder, self.shards)

    def computed_digest(self) -> str:
        """Digest of all columns, texts and the shards' file names."""
        digest = hashlib.sha256()
        names = [shard.rstrip("/").rsplit("/", 1)[-1] for shard in self.shards]
        digest.update(json.dumps([VERSION, names, list(self.classes)]).encode())
        for name, kind in COLUMNS.items():
            digest.update(np.ascontiguousarray(self.columns[name], dtype=kind).data)
        digest.update(np.ascontiguousarray(self.texts).data)
        return digest.hexdigest()[:16]

    def save(self, folder: str | Path, stamp: object = None) -> None:
        """Write it to a new folder, whole or not at all.

        Args:
            folder: where to; one that is there already is replaced.
            stamp: what `load` gives back beside the index, for the caller to tell whether the
                shards have changed since; anything that JSON holds.
        """
        folder = Path(folder)
        temporary = folder.with_name(f".{folder.name}.{os.getpid()}.part")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            for name, kind in COLUMNS.items():
                np.save(temporary / f"{name}.npy", self.columns[name].astype(kind, copy=False))
            np.save(temporary / "texts.npy", self.texts)
            about = {
                "version": VERSION,
                "shards": self.shards,
                "classes": self.classes,
                "problems": self.problems,
                "digest": self.digest,
                "stamp": stamp,
            }
            (temporary / "about.json").write_text(json.dumps(about), encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            try:
                os.replace(temporary, folder)
            except OSError:
                if not (folder / "about.json").exists():  # else another process was faster
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    @classmethod
    def load(cls, folder: str | Path) -> tuple["Index", object]:
        """The index in a folder that `save` has written, and its stamp.

        Raises:
            UserError: it is damaged or of another version; it may be deleted.
        """
        folder = Path(folder)
        try:
            about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
            if about["version"] != VERSION:
                raise ValueError(f"version {about['version']}")
            arrays = {
                name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in [*COLUMNS, "texts"]
            }
            text = {name: tuple(about[name]) for name in ("shards", "classes", "problems")}
            digest, stamp = about["digest"], about["stamp"]
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise UserError(
                f"{folder} must be a compiled index of version {VERSION}, got: {error}. "
                "Delete it to build it anew."
            ) from error
        texts = arrays.pop("texts")
        return cls(arrays, texts=texts, digest=digest, folder=folder, **text), stamp


def reopened(folder: Path, shards: tuple[str, ...]) -> Index:
    """The index in a folder, of shards that may have moved since it was made."""
    index, _ = Index.load(folder)
    index.shards = shards
    return index
