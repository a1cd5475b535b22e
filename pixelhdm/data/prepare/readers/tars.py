"""Existing tars, those of img2dataset and webdataset among them."""

import glob
import json
import os
import shutil
import tarfile
from pathlib import Path

from braceexpand import UnbalancedBracesError, braceexpand

from pixelhdm.data.indexing.members import LABEL, Parts, grouped, image_extensions, part
from pixelhdm.data.indexing.tar import Member, Walk, Window, walk
from pixelhdm.data.prepare.classes import first_folder, sort_items
from pixelhdm.data.prepare.items import (
    IMAGE_ENDINGS,
    TEXT_ENDINGS,
    Item,
    Listing,
    Rejection,
    TarPlace,
)
from pixelhdm.data.reading.storage import ReadError, Storage, expand, is_local
from pixelhdm.errors import UserError, one_line
from pixelhdm.files import replacing

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
ENDINGS = (".tar", *COMPRESSED)
KNOWN = {*(ending[1:] for ending in TEXT_ENDINGS), LABEL}


def tars_of(source: str) -> list[str]:
    """The tars that a source names: one, several by braces or wildcards, or those of a folder.

    Raises:
        UserError: there is none, or one is not there.
    """
    if not is_local(source):
        return expand(source)
    try:
        patterns = list(braceexpand(source)) if "{" in source else [source]
    except UnbalancedBracesError:
        raise UserError(f"source must have its braces in pairs, got {source}.") from None
    found = []
    for pattern in patterns:
        if os.path.isdir(pattern):
            names = sorted(os.listdir(pattern))
            found += [os.path.join(pattern, name) for name in names if name.endswith(ENDINGS)]
        elif os.path.exists(pattern):
            found.append(pattern)
        elif matches := sorted(glob.glob(pattern)):
            found += matches
        else:
            raise UserError(f"source must name tars that are there, got {pattern}, which is not.")
    wrong = next((path for path in found if not path.endswith(ENDINGS)), None)
    if wrong or not found:
        raise UserError(f"source must name tars ({', '.join(ENDINGS)}), got {wrong or source}.")
    return found


def list_tars(paths: list[str], storage: Storage, unpacked: Path) -> Listing:
    """The images in tars.

    Args:
        paths: of the tars; compressed ones are unpacked first.
        storage: reads them.
        unpacked: folder for the unpacked ones.

    Raises:
        UserError: a tar cannot be read at all.
    """
    listing = Listing(f"{len(paths):,} tars", [])
    start = os.path.commonpath([os.path.dirname(path) for path in paths]) if len(paths) > 1 else ""
    start = start if len(paths) > 1 else os.path.dirname(paths[0])
    for path in paths:
        name = path.removeprefix(start).lstrip("/")
        plain = unpack(path, name, unpacked) if path.endswith(COMPRESSED) else path
        try:
            found = walk(Window(storage, plain), lambda *_: {})
        except ReadError as error:
            raise UserError(
                f"{path} must be a readable tar, got: {one_line(error)}. Remove or replace it."
            ) from error
        add_tar(listing, found, TarPlace(storage, plain, 0, 0), name)
    if any(item.metadata and "url" in item.metadata for item in listing.items):
        listing.kind += " of img2dataset"
    listing.classes = classes_beside(start)
    listing.items = sort_items(listing.items)
    return listing


def unpack(path: str, name: str, folder: Path) -> str:
    """The unpacked form of a compressed tar; made where it is not there yet."""
    target = folder / f"{name.replace('/', '_')}.tar"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with replacing(target) as temporary:
                plain_copy(path, temporary)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise UserError(
                f"{path} must be a readable compressed tar, got: {one_line(error)}. "
                "Remove or replace it."
            ) from error
    return str(target)


def plain_copy(path: str, target: Path) -> None:
    """Write the members of a compressed tar as a plain one."""
    if path.endswith(".zst"):
        raise tarfile.ReadError("zstandard needs Python 3.14; unpack it with zstd -d first")
    with tarfile.open(path, "r|*") as source, tarfile.open(target, "w") as copy:
        for member in source:
            if member.isfile():
                copy.addfile(member, source.extractfile(member))


def add_tar(listing: Listing, found: Walk, place: TarPlace, tar: str) -> None:
    """Add the images of one tar to a listing."""
    for name in found.torn:
        if name.lower().endswith(IMAGE_ENDINGS):
            listing.rejected.append(Rejection(f"{tar}/{name}", "unreadable", "cut off"))
    if found.cut_at is not None:
        listing.notes.append(f"{tar} is cut off at byte {found.cut_at:,}")
    listing.notes += [f"{tar} is damaged from byte {a:,} to {b:,}" for a, b in found.gaps]
    samples, doubled = grouped(found.members)
    if doubled:
        listing.notes.append(f"{tar} has {doubled:,} members whose name an earlier one has")
    for parts in samples.values():
        images = image_extensions(parts)
        listing.items += [tar_item(parts, image, place, tar) for image in images]
        rest = parts.keys() - images
        listing.others.update(f".{e}" for e in rest if not images or e not in KNOWN)


def tar_item(parts: Parts, extension: str, place: TarPlace, tar: str) -> Item:
    """One image of a tar."""

    def at(member: Member) -> TarPlace:
        return TarPlace(place.storage, place.path, member.offset, member.length)

    image = parts[extension]
    beside = ((ending, part(parts, extension, ending[1:])) for ending in TEXT_ENDINGS)
    texts = tuple((ending, at(member)) for ending, member in beside if member)
    folder = first_folder(image.name.removeprefix("./"))
    item = Item(f"{tar}/{image.name}", image.length, at(image), folder=folder, texts=texts)
    if label := part(parts, extension, LABEL):
        text = at(label).read().decode("utf-8", "replace").strip()
        if text.isdecimal():
            item.label = int(text)
        elif text:
            item.class_name = text
    return item


def classes_beside(folder: str) -> tuple[str, ...]:
    """Names of the classes, where the tars are those of an earlier preparation."""
    try:
        content = json.loads((Path(folder) / "dataset.json").read_text(encoding="utf-8"))
        return tuple(str(name) for name in content["classes"])
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def remove_unpacked(folder: Path) -> None:
    """Delete the unpacked tars."""
    shutil.rmtree(folder, ignore_errors=True)
