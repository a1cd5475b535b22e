"""Existing tars, those of img2dataset and webdataset among them."""

import json
import os
from pathlib import Path
from typing import Any

from pixelhdm.data.captions import CAPTION_KEYS, captions_of
from pixelhdm.data.coverage import counted
from pixelhdm.data.indexing.members import (
    HAS_CAPTIONS,
    IMAGES,
    JSON,
    LABEL,
    LABEL_KEYS,
    Parts,
    grouped,
    image_extensions,
    part,
    split_name,
)
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
from pixelhdm.data.prepare.labels import give_label, label_under, parsed_label
from pixelhdm.data.prepare.readers.parquet import rows_beside
from pixelhdm.data.prepare.readers.tar_files import flaw, unpack, unreadable
from pixelhdm.data.reading.storage import COMPRESSED, ReadError, Storage
from pixelhdm.errors import UserError

URL = "url"  # where img2dataset had an image from


def list_tars(paths: list[str], storage: Storage, unpacked: Path) -> Listing:
    """The images in tars.

    Args:
        paths: of the tars; compressed ones are unpacked first.
        storage: reads them.
        unpacked: folder for the unpacked ones.

    Raises:
        UserError: a tar cannot be read at all, or there is nothing in any.
    """
    listing, flaws, is_img2dataset = Listing(counted(len(paths), "tar"), []), [], False
    start = os.path.commonprefix(paths).rpartition("/")[0]  # noqa: RUF071 - of URLs too
    for path in paths:
        name = path.removeprefix(start).lstrip("/")
        plain = unpack(path, name, unpacked) if path.endswith(COMPRESSED) else path
        try:
            window = Window(storage, plain)
            found = walk(window, lambda *place, at=window: facts_of(at, Member(*place, {})))
            if not found.members and not found.torn:
                flaws.append(flaw(storage, plain))
                listing.notes.append(f"{name} is {flaws[-1]}")
                continue
        except ReadError as error:
            raise unreadable(path, error) from error
        known = rows_beside(storage, path, listing.notes)
        is_img2dataset |= bool(known) or any(URL in member.facts for member in found.members)
        add_tar(listing, found, TarPlace(storage, plain, 0, 0), name, known)
    if len(flaws) == len(paths):
        raise UserError(f"source must be tars with images, got {paths[0]}, which is {flaws[0]}.")
    listing.kind += " of img2dataset" if is_img2dataset else ""
    listing.classes = classes_beside(start)
    listing.items = sort_items(listing.items)
    return listing


def facts_of(window: Window, member: Member) -> dict[str, Any]:
    """What a .cls or a JSON says, while its bytes are near: its class, and whether the JSON has
    captions and an address.
    """
    name = split_name(member.name)
    kind = name[1].rpartition(".")[2] if name else ""
    if kind == LABEL:
        text = window.read(member.offset, member.length).decode("utf-8", "replace")
        return {LABEL: parsed_label(text)}
    if kind != JSON:
        return {}
    try:
        value = json.loads(window.read(member.offset, member.length))
    except (ValueError, RecursionError):  # told when its captions are read
        return {}
    facts: dict[str, Any] = {HAS_CAPTIONS: bool(captions_of(value))}
    if isinstance(value, dict):
        facts[LABEL] = label_under(value, LABEL_KEYS)[1]
        facts |= {URL: True} if URL in value else {}
    return facts


def add_tar(
    listing: Listing, found: Walk, place: TarPlace, tar: str, known: dict[str, dict[str, Any]]
) -> None:
    """Add the images of one tar to a listing.

    Args:
        listing: is added to.
        found: the tar's members.
        place: the tar.
        tar: its name in paths.
        known: what the parquet beside it says of samples, by the last components of their keys.
    """
    for name in found.torn:
        if name.lower().endswith(IMAGE_ENDINGS):
            listing.rejected.append(Rejection(f"{tar}/{name}", "unreadable", "cut off"))
    if found.cut_at is not None:
        listing.notes.append(f"{tar} is cut off at byte {found.cut_at:,}")
    listing.notes += [f"{tar} is damaged from byte {a:,} to {b:,}" for a, b in found.gaps]
    samples, doubled = grouped(found.members)
    if doubled:
        listing.notes.append(
            f"{tar} has {counted(doubled, 'member')} whose name an earlier one has"
        )
    for key, parts in samples.items():
        about = known.get(key.rpartition("/")[2], {})
        images, used = image_extensions(parts), set()
        for image in images:
            beside = parts_beside(parts, image)
            used |= {member.name for member in beside.values()}
            listing.items.append(tar_item(parts[image], beside, place, tar, about))
        for extension in [e for e in parts if e not in images and parts[e].name not in used]:
            if images and extension in IMAGES:
                detail = f"beside {parts[images[0]].name}"
                path = f"{tar}/{parts[extension].name}"
                listing.rejected.append(Rejection(path, "second_image", detail))
            else:
                listing.others[f".{extension}"] += 1


def parts_beside(parts: Parts, image: str) -> dict[str, Member]:
    """The texts and the .cls of an image, by ending."""
    endings = (*TEXT_ENDINGS, f".{LABEL}")
    found = ((ending, part(parts, image, ending[1:])) for ending in endings)
    return {ending: member for ending, member in found if member}


def tar_item(
    image: Member, beside: dict[str, Member], place: TarPlace, tar: str, known: dict[str, Any]
) -> Item:
    """One image of a tar.

    Args:
        image: the image.
        beside: its other parts by ending.
        place: the tar.
        tar: its name in paths.
        known: what the parquet says; its captions count where the tar has none, as in training.
    """

    def at(member: Member) -> TarPlace:
        return TarPlace(place.storage, place.path, member.offset, member.length)

    texts = tuple((e, at(member)) for e, member in beside.items() if e in TEXT_ENDINGS)
    folder = first_folder(image.name.removeprefix("./"))
    item = Item(f"{tar}/{image.name}", image.length, at(image), folder=folder, texts=texts)
    for ending in (f".{JSON}", f".{LABEL}"):  # the latter counts more
        if ending in beside:
            give_label(item, beside[ending].facts.get(LABEL))
    if not any(has_captions(ending, member) for ending, member in beside.items()):
        item.captions = tuple(captions_of(known))
    if known and f".{JSON}" not in beside:
        item.metadata = {key: one for key, one in known.items() if key not in CAPTION_KEYS}
    return item


def has_captions(ending: str, member: Member) -> bool:
    """Whether a part of a sample has captions, as far as its kind and length tell."""
    if ending == f".{JSON}":
        return member.facts.get(HAS_CAPTIONS, False)
    return ending in TEXT_ENDINGS and member.length > 0


def classes_beside(folder: str) -> tuple[str, ...]:
    """Names of the classes, where the tars are those of an earlier preparation."""
    try:
        content = json.loads((Path(folder) / "dataset.json").read_text(encoding="utf-8"))
        return tuple(str(name) for name in content["classes"])
    except (OSError, ValueError, KeyError, TypeError):
        return ()
