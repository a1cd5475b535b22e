"""Writing shards: tars with an index and a record beside each."""

import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from webdataset.writer import TarWriter

from pixelhdm.data.indexing.formats import write_shard_index
from pixelhdm.data.indexing.members import HAS_CAPTIONS
from pixelhdm.data.prepare.check import Checked
from pixelhdm.data.prepare.items import Rejection
from pixelhdm.data.prepare.tally import Tally
from pixelhdm.files import TEMPORARY, replacing

RECORDS, DATASET = ".prepare", "dataset.json"
HEADER = 512
CHUNK = 4 << 20  # bytes
Result = Checked | Rejection


def write_shard(out: Path, name: str, results: Iterable[tuple[str, str, Result]]) -> None:
    """Write a shard, its index, and last its record, which says that the shard is finished.

    A shard that all images were left out of has a record alone.

    Args:
        out: the folder of shards; the records lie in its .prepare.
        name: of the shard, without ending.
        results: key and path in the source of each image, and what was made of it.
    """
    remove_leftovers(out, name)
    tar, tally, files = out / f"{name}.tar", Tally(), {}
    with (
        replacing(tar) as temporary,
        open(temporary, "wb") as stream,
        TarWriter(stream, mtime=0, encoder=False) as writer,
    ):
        for key, path, result in results:
            tally.add(result, path)
            if isinstance(result, Checked):
                files |= write_sample(writer, key, result)
    filesize = crc32 = 0
    if files:
        write_shard_index(tar, files)
        filesize, crc32 = tar.stat().st_size, crc32_of(tar)
    else:
        tar.unlink()
    about = {"filesize": filesize, "crc32": crc32}
    write_json(record_file(out, name), about | tally.as_json())


def write_sample(writer: TarWriter, key: str, image: Checked) -> dict[str, dict[str, Any]]:
    """Write a sample; returns the index's entries of its members."""
    sample = {image.ending: image.data, "json": image.text}
    if image.label is not None:
        sample["cls"] = str(image.label).encode()
    if image.captions:
        sample["txt"] = image.captions[0].encode()
    at, files = writer.tarstream.offset, {}
    writer.write({"__key__": key, **sample})
    for ending in sorted(sample):  # the order in which TarWriter writes them
        length = len(sample[ending])
        files[f"{key}.{ending}"] = {"offset": at + HEADER, "length": length}
        at += HEADER + -(-length // HEADER) * HEADER
    known = {"width": image.width, "height": image.height, "crc32": image.crc32}
    if image.label is not None:
        known["label"] = image.label
    text = files[f"{key}.json"]
    text[HAS_CAPTIONS] = bool(image.captions)
    if image.captions:
        known |= {"json_path": f"{key}.json", "json_offset": text["offset"]}
        known["json_length"] = text["length"]
    files[f"{key}.{image.ending}"] |= known
    return files


def record_file(out: Path, name: str) -> Path:
    """Where a shard's record lies."""
    return out / RECORDS / f"{name}.json"


def read_record(out: Path, name: str) -> Tally | None:
    """What a finished shard's record counts; None where the shard has to be written (again)."""
    try:
        content = json.loads(record_file(out, name).read_text(encoding="utf-8"))
        filesize, _ = content.pop("filesize"), content.pop("crc32")
        tally = Tally.of_json(content)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    tar = out / f"{name}.tar"
    if filesize and not (tar.with_suffix(".json").exists() and size_of(tar) == filesize):
        return None
    return tally


def known_crc32(out: Path, name: str) -> int | None:
    """The CRC-32 of a whole shard by its record, if it has one."""
    file = record_file(out, name)
    return json.loads(file.read_text(encoding="utf-8"))["crc32"] if file.exists() else None


def crc32_of(file: Path) -> int:
    """The CRC-32 of a file."""
    crc32 = 0
    with open(file, "rb") as stream:
        while data := stream.read(CHUNK):
            crc32 = zlib.crc32(data, crc32)
    return crc32


def size_of(file: Path) -> int:
    """Size of a file in bytes; -1 where it is not there."""
    return file.stat().st_size if file.exists() else -1


def leftovers(out: Path, name: str = "*") -> Iterator[Path]:
    """Temporary files of a killed process."""
    for folder in (out, out / RECORDS):
        yield from folder.glob(f".{name}.*{TEMPORARY}")


def remove_leftovers(out: Path, name: str = "*") -> None:
    """Delete the temporary files of a killed process."""
    for file in leftovers(out, name):
        file.unlink(missing_ok=True)


def write_json(file: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(file, json.dumps(content, default=str) + "\n")


def write_text(file: Path, text: str) -> None:
    """Write a text file, whole or not at all; one that holds the text already stays as it is."""
    if file.exists() and file.read_bytes() == text.encode():
        return
    with replacing(file) as temporary:
        temporary.write_bytes(text.encode())
