"""Reading finished shards again."""

import json
import tarfile
import zlib
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from pixelhdm.data.coverage import counted
from pixelhdm.data.decode import decode, read_header
from pixelhdm.data.indexing.formats import Listing, read_shard_index
from pixelhdm.data.indexing.tar import Member
from pixelhdm.data.prepare.check import brief
from pixelhdm.data.prepare.settings import is_prepared
from pixelhdm.data.prepare.shards import DATASET, crc32_of, known_crc32
from pixelhdm.data.prepare.work import in_order
from pixelhdm.errors import UserError, one_line

SHOWN = 1000  # problems that are printed


class Problem(NamedTuple):
    """What is wrong with a shard, and whether a new index would help, as its tar is whole."""

    text: str
    is_of_index: bool


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
    shards = counted(len(names), "shard")
    if not problems:
        are = "image is" if num_images == 1 else "images are"
        return f"{num_images:,} {are} in {shards} as the indexes say."
    print("\n".join(problem.text for problem in problems[:SHOWN]))
    raise UserError(
        f"{out} must hold what its indexes say, got {counted(len(problems), 'problem')} in "
        f"{shards}, the first: {problems[0].text}. {remedy(out, problems)}"
    )


def remedy(out: Path, problems: list[Problem]) -> str:
    """What to do. Shards that prepare did not write are perhaps all that there is of the images:
    nobody is told to delete them.
    """
    if is_prepared(out):
        return "Delete the shards that are named, and run the same prepare again."
    anew = f"prepare --source {out} --index_only makes the indexes anew"
    if all(problem.is_of_index for problem in problems):
        return f"{anew}, once files of another kind in their place are moved away."
    return f"Get the tars that are named again from where they came from; {anew}."


def shards_in(out: Path) -> tuple[list[str], list[Problem]]:
    """Names of a folder's shards, and what is wrong with the set of them."""
    there = {file.name for file in out.glob("*.tar")}
    file = out / DATASET
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        listed = [str(name) for name in content.get("shards", [])]
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file} must be readable, got: {one_line(error)}.") from error
    if not there and not listed:
        raise UserError(f"out must be a folder of shards for verify, got {out}, which has none.")
    absent, extra = sorted({*listed} - there), sorted(there - {*listed})
    problems = [Problem(f"{name}: listed in {DATASET}, not there", False) for name in absent]
    if listed:
        problems += [Problem(f"{name}: not listed in {DATASET}", True) for name in extra]
    return sorted(there), problems


def verify_shard(out: Path, name: str) -> tuple[list[Problem], int]:
    """What is wrong with a shard, and its number of images."""
    tar = out / name
    index = index_of(tar)
    if isinstance(index, str):
        return [Problem(f"{name}: {index}", True)], 0
    try:
        known = known_crc32(out, tar.stem)
        with tarfile.open(tar) as archive:
            members = {m.name: (m.offset_data, m.size) for m in archive if m.isfile()}
    except (OSError, ValueError, KeyError, tarfile.TarError) as error:
        return [Problem(f"{name}: is no readable tar: {one_line(error).rstrip('.')}", False)], 0
    problems = misplaced(index, tar, members)
    files = [m for m in index.members if members.get(m.name) == (m.offset, m.length)]
    images = [member for member in files if "width" in member.facts]
    with open(tar, "rb") as stream:
        for member in images:
            stream.seek(member.offset)
            if problem := image_problem(stream.read(member.length), member):
                problems.append(f"{member.name} {problem}")
    if not problems and known is not None and crc32_of(tar) != known:
        problems.append("bytes beside its images are not those that were written (crc32)")
    return [Problem(f"{name}: {problem}", False) for problem in problems], len(images)


def index_of(tar: Path) -> Listing | str:
    """The index beside a tar, or what is wrong with it."""
    file = tar.with_suffix(".json")
    try:
        index = read_shard_index(file.read_bytes())
    except FileNotFoundError:
        return f"its index {file.name} is not there"
    except (OSError, ValueError) as error:
        return f"its index {file.name} cannot be read: {one_line(error)}"
    if index is None or not index.members:
        return f"its index {file.name} lists no files"
    return index


def misplaced(index: Listing, tar: Path, members: dict[str, tuple[int, int]]) -> list[str]:
    """Where an index and its tar do not agree, a line a kind."""
    problems = []
    if index.size is not None and index.size != tar.stat().st_size:
        problems.append("its size is not that of its index")
    listed = {member.name: (member.offset, member.length) for member in index.members}
    both = listed.keys() & members.keys()
    problems += noted(members.keys() - both, "in the tar alone")
    problems += noted(listed.keys() - both, "in the index alone")
    moved = (name for name in both if listed[name] != members[name])
    return problems + noted(moved, "elsewhere than the index says")


def noted(names: Iterable[str], where: str) -> list[str]:
    """One line on members that all have the same fault."""
    found = sorted(names)
    if len(found) < 2:
        return [f"{name} is {where}" for name in found]
    return [f"{len(found):,} members are {where}, the first {found[0]}"]


def image_problem(data: bytes, member: Member) -> str:
    """What is wrong with an image's bytes, or nothing."""
    if zlib.crc32(data) != member.facts.get("crc32", zlib.crc32(data)):
        return "has other bytes than its index says (crc32)"
    try:
        header = read_header(data)
        decode(data)
    except Exception as error:  # decoders meet broken files with nearly any exception
        return f"does not decode: {brief(error)}"
    if (header.width, header.height) != (member.facts["width"], member.facts.get("height")):
        return f"is of {header.width} x {header.height}, not what its index says"
    return ""
