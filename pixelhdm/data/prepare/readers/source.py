"""What a source is, and the reader for it."""

import os
from pathlib import Path
from typing import Literal

from pixelhdm.data.prepare.classes import Labels, give_labels
from pixelhdm.data.prepare.items import IMAGE_ENDINGS, Listing
from pixelhdm.data.prepare.labels import read_labels
from pixelhdm.data.prepare.readers import tar_files, tars
from pixelhdm.data.prepare.readers.arrays import find_cifar, find_mnist, list_cifar, list_mnist
from pixelhdm.data.prepare.readers.folder import is_output, list_folder
from pixelhdm.data.prepare.readers.join import SPLITS
from pixelhdm.data.prepare.readers.list_file import ENDINGS as LIST_ENDINGS
from pixelhdm.data.prepare.readers.list_file import list_file
from pixelhdm.data.reading.storage import Storage
from pixelhdm.errors import UserError

Split = Literal["train", "val"]


def list_source(
    source: str, split: Split, labels: Labels, out: Path | None, unpacked: Path
) -> Listing:
    """All images of a source, sorted and labelled.

    Args:
        source: folder, list or tars.
        split: which part of a source that has parts.
        labels: rule of the labels.
        out: folder to leave out where it lies in the source.
        unpacked: folder for compressed tars.

    Raises:
        UserError: it is not there, of no known kind, or without images.
    """
    listing = read_source(source, split, out, unpacked)
    if not listing.items and not listing.rejected:
        raise UserError(
            f"source must hold images ({', '.join(IMAGE_ENDINGS)}), tars or MNIST's or CIFAR-10's "
            f"files, got {source}, which has none.{tar_files.deeper(source)}"
        )
    if labels == "auto":
        read_labels(listing.items)
    give_labels(listing, labels)
    return listing


def read_source(source: str, split: Split, out: Path | None, unpacked: Path) -> Listing:
    """The images of a source by the reader that fits."""
    path = Path(source)
    if path.is_dir():
        return read_folder(path, split, out, unpacked)
    if path.is_file() and path.suffix.lower() in LIST_ENDINGS:
        check_no_split(split, source)
        return list_file(path)
    if path.suffix.lower() in IMAGE_ENDINGS:
        raise UserError(f"source must be a folder, list or tars, got the image {source}.")
    if "://" not in source and not ({"{", "*"} & set(source) or path.exists()):
        raise UserError(f"source must be there, got {source}, which is not.")
    check_no_split(split, source)
    return tars.list_tars(tar_files.tars_of(source), Storage(), unpacked)


def read_folder(path: Path, split: Split, out: Path | None, unpacked: Path) -> Listing:
    """The images of a folder of any layout."""
    if folder := find_mnist(path):
        return list_mnist(folder, split)
    if folder := find_cifar(path):
        return list_cifar(folder, split)
    names = sorted(name for name in os.listdir(path) if not name.startswith("."))
    folders = [name for name in names if (path / name).is_dir()]
    below = {name for name in folders if not is_output(path / name, out)}
    if below & {"train", "val"} and below <= SPLITS and not any(map(is_image, names)):
        if split not in below:
            raise UserError(
                f"split must be one that the source has, got {split}, but {path} has "
                f"{', '.join(sorted(below))}."
            )
        listing = list_folder(path, split, out)
        listing.kind += f", its split {split}"
        return listing
    check_no_split(split, str(path))
    if any(name.endswith(tar_files.ENDINGS) for name in names) and not any(map(is_image, names)):
        return tars.list_tars(tar_files.tars_of(str(path)), Storage(), unpacked)
    return list_folder(path, "", out)


def is_image(name: str) -> bool:
    """Whether a name is an image's."""
    return name.lower().endswith(IMAGE_ENDINGS)


def check_no_split(split: Split, source: str) -> None:
    """Raise a UserError for a split of a source that has none."""
    if split != "train":
        raise UserError(
            f"split must be left out for a source without splits, got {split} for {source}."
        )
