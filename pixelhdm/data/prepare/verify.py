"""Reading finished shards again."""

import json
import tarfile
import zlib
from functools import partial
from pathlib import Path

from tqdm import tqdm

from pixelhdm.data.decode import decode, read_header
from pixelhdm.data.indexing.formats import read_shard_index
from pixelhdm.data.indexing.tar import Member
from pixelhdm.data.prepare.shards import crc32_of, known_crc32
from pixelhdm.data.prepare.work import in_order
from pixelhdm.errors import UserError, one_line

DATASET = "dataset.json"


def verify_folder(out: Path, num_processes: int) -> str:
    """Check every shard of a folder against its index; returns a sentence when all is well.

    Raises:
        UserError: something is wrong, or there is nothing to check. All of it was printed.
    """
    names, problems = shards_in(out)
    checked = in_order(partial(verify_shard, out), names, min(num_processes, max(1, len(names))))
    num_images = 0
    for found, count in tqdm(checked, total=len(names), unit="shard", disable=None):
        problems += found
        num_images += count
    if problems:
        print("\n".join(problems))
        raise UserError(
            f"{out} must hold what its indexes say, got {len(problems):,} problems in "
            f"{len(names):,} shards, the first: {problems[0]}. Delete the shards that are named, "
            "and run the same prepare again."
        )
    return f"{num_images:,} images in {len(names):,} shards are as their indexes say."


def shards_in(out: Path) -> tuple[list[str], list[str]]:
    """Names of a folder's shards, and what is wrong with the set of them."""
    there = {file.name for file in out.glob("*.tar")}
    file = out / DATASET
    try:
        listed = json.loads(file.read_text(encoding="utf-8"))["shards"] if file.exists() else []
    except (ValueError, KeyError) as error:
        raise UserError(f"{file} must be readable, got: {one_line(error)}.") from error
    if not there and not listed:
        raise UserError(f"out must be a folder of shards for verify, got {out}, which has none.")
    problems = [f"{name}: listed in {DATASET}, not there" for name in sorted({*listed} - there)]
    if listed:
        problems += [f"{name}: not listed in {DATASET}" for name in sorted(there - {*listed})]
    return sorted(there), problems


def verify_shard(out: Path, name: str) -> tuple[list[str], int]:
    """What is wrong with a shard, and its number of images."""
    tar = out / name
    try:
        index = read_shard_index(tar.with_suffix(".json").read_bytes())
        files = {member.name: member for member in index.members} if index else {}
        known = known_crc32(out, tar.stem)
        with tarfile.open(tar) as archive:
            members = {m.name: (m.offset_data, m.size) for m in archive if m.isfile()}
    except (OSError, ValueError, KeyError, tarfile.TarError) as error:
        return [f"{name}: {one_line(error)}"], 0
    problems = []
    if index is None or (index.size is not None and index.size != tar.stat().st_size):
        problems.append(f"{name}: its size is not that of its index")
    for key in sorted(files.keys() ^ members.keys()):
        where = "tar" if key in members else "index"
        problems.append(f"{name}: {key} is in the {where} alone")
    images = [files[key] for key in sorted(files.keys() & members.keys())]
    with open(tar, "rb") as stream:
        for member in images:
            if members[member.name] != (member.offset, member.length):
                problems.append(f"{name}: {member.name} lies elsewhere than its index says")
            elif "width" in member.facts:
                stream.seek(member.offset)
                problem = image_problem(stream.read(member.length), member)
                problems += [f"{name}: {member.name} {problem}"] if problem else []
    if not problems and known is not None and crc32_of(tar) != known:
        problems.append(f"{name}: bytes beside its images are not those that were written (crc32)")
    return problems, sum("width" in member.facts for member in images)


def image_problem(data: bytes, member: Member) -> str:
    """What is wrong with an image's bytes, or nothing."""
    if zlib.crc32(data) != member.facts.get("crc32", zlib.crc32(data)):
        return "has other bytes than its index says (crc32)"
    try:
        header = read_header(data)
        decode(data)
    except Exception as error:  # decoders meet broken files with nearly any exception
        return f"does not decode: {one_line(error)[:120]}"
    if (header.width, header.height) != (member.facts["width"], member.facts["height"]):
        return f"is of {header.width} x {header.height}, not what its index says"
    return ""
