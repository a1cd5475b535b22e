"""The command `prepare`: images of any source as shards to train on."""

import inspect
import tempfile
from pathlib import Path
from typing import Any

from pixelhdm.data.prepare.check import Reencode, Rules
from pixelhdm.data.prepare.chosen_config import Chosen, choose
from pixelhdm.data.prepare.classes import Labels
from pixelhdm.data.prepare.index_only import index_tars
from pixelhdm.data.prepare.lock import locked, room_in
from pixelhdm.data.prepare.plan import Plan, parse_bytes, parse_part
from pixelhdm.data.prepare.readers.source import Split, list_source
from pixelhdm.data.prepare.run import look, run
from pixelhdm.data.prepare.settings import UNPACKED, VERSION, agree, check_folder, keep
from pixelhdm.data.prepare.shards import RECORDS
from pixelhdm.data.prepare.verify import verify_folder
from pixelhdm.errors import UserError, check_at_least
from pixelhdm.processes import num_cores


def prepare(
    source: str | None = None,
    out: str | None = None,
    split: Split = "train",
    labels: Labels = "auto",
    seed: int = 0,
    shard_size: str = "256MB",
    images_per_shard: int | None = None,
    num_processes: int | None = None,
    part: str | None = None,
    min_side: int = 16,
    max_aspect: float = 4.5,
    require_captions: bool = False,
    keep_duplicates: bool = False,
    reencode: Reencode | None = None,
    quality: int = 95,
    train_config: str | list[str] | None = None,
    dry_run: bool = False,
    verify: bool = False,
    index_only: bool = False,
) -> None:
    """Turn images into WebDataset shards to train on, each with its index, and report on them.

    Stopped at any moment, the same command goes on where it was. The result is the same, byte for
    byte, for any number of processes and parts.

    Args:
        source: a folder of images (with .txt, .caption, .json or metadata.jsonl, .csv, .parquet
            for captions; with class folders; ImageNet's, MNIST's or CIFAR-10's as torchvision
            keeps them); a list (.txt with a path a line; .jsonl, .csv, .parquet with file_name);
            or tars (a folder of them, or webdataset's braces).
        out: folder for the shards, their indexes, dataset.json, rejected.jsonl and report.txt.
        split: which part of ImageNet, MNIST or CIFAR-10.
        labels: auto takes the source's own, or the folders where nothing else says what images
            show; folders takes the folders always; none takes no labels.
        seed: of the shuffle before images are put into shards.
        shard_size: about the largest size of a shard, such as 256MB, 1GB or 1000000 (bytes).
        images_per_shard: largest number of images in a shard, in place of shard_size.
        num_processes: how many decode at once; empty takes one per core.
        part: i/n does the i-th of n parts, 1 ≤ i ≤ n, for a cluster's job array; the parts run in
            any order or at once, and the one that ends last writes dataset.json and the report.
        min_side: shortest side that is kept, in pixels; 16 is one patch of most networks, what
            training has no bucket for it drops itself.
        max_aspect: highest ratio of sides that is kept; the default bucket table reaches 4 and
            crops at most 8 % more.
        require_captions: leave out images without caption.
        keep_duplicates: keep images that have the same bytes as another one.
        reencode: jpeg or webp stores all others in this format; empty keeps the original bytes.
            Animations and files of several pages are left out; CMYK and transparent images are
            kept, and turned into RGB, on white, when training reads them.
        quality: of reencode, 1 … 100.
        train_config: file of the training to come, or several as [a.yaml,b.yaml], for the report's
            bucket table; the default table when empty. A finished folder's report is made anew.
        dry_run: look at up to 2,000 images spread over the source, report and write nothing.
        verify: read the finished shards in out again, check all bytes and decode all images.
        index_only: only write indexes beside existing tars, without out.

    Raises:
        UserError: an argument is wrong, out was begun otherwise, or verify found something.
    """
    check_at_least(1, min_side=min_side, quality=quality)
    check_at_least(0, seed=seed)
    processes = num_cores() if num_processes is None else num_processes
    check_at_least(1, num_processes=processes)
    if images_per_shard is not None:
        check_at_least(1, images_per_shard=images_per_shard)
    if not max_aspect >= 1:
        raise UserError(f"max_aspect must be at least 1, got {max_aspect:g}.")
    if quality > 100:
        raise UserError(f"quality must be at most 100, got {quality}.")
    shard_bytes, share = parse_bytes(shard_size), parse_part(part)
    files = [train_config] if isinstance(train_config, str) else train_config or []
    chosen = choose(files)
    rules = Rules(min_side, max_aspect, require_captions, reencode, quality)
    check_mode(source, out, dry_run, verify, index_only)
    if verify:
        print(verify_folder(Path(out), processes))
    elif index_only:
        print(index_tars(source, processes))
    elif dry_run:
        with tempfile.TemporaryDirectory() as unpacked:
            listing = list_source(source, split, labels, out and Path(out), Path(unpacked))
            plan = Plan.of(listing.items, seed, shard_bytes, images_per_shard)
            print(look(listing, plan, rules, chosen, keep_duplicates, processes))
    else:
        settings = {"version": VERSION, "split": split, "labels": labels, "seed": seed}
        settings |= {"shard_size": shard_bytes, "images_per_shard": images_per_shard}
        settings |= {"keep_duplicates": keep_duplicates, **vars(rules)}
        with room_in(Path(out)):
            write(source, Path(out), settings, rules, chosen, share, processes)


def write(
    source: str,
    out: Path,
    settings: dict[str, Any],
    rules: Rules,
    chosen: Chosen,
    share: tuple[int, int],
    processes: int,
) -> None:
    """Write a part of a source's shards.

    Args:
        source: the source.
        out: folder for the shards.
        settings: all that decides what is written; a folder that was begun must have the same.
        rules: what images must be.
        chosen: the training that the report's table is of.
        share: number of the part from 1, and of all parts.
        processes: how many work at once.
    """
    check_folder(out)
    agree(out, settings)  # before a long listing
    unpacked = out / RECORDS / UNPACKED
    listing = list_source(source, settings["split"], settings["labels"], out, unpacked)
    limits = settings["shard_size"], settings["images_per_shard"]
    plan = Plan.of(listing.items, settings["seed"], *limits)
    settings |= {"source_digest": listing.digest(), "source_images": len(listing.items)}
    agree(out, settings)
    keep(out, settings)
    with locked(out, *share):
        run(out, listing, plan, rules, chosen, settings["keep_duplicates"], share, processes)


def check_mode(
    source: str | None, out: str | None, dry_run: bool, verify: bool, index_only: bool
) -> None:
    """Raise a UserError where what is asked for does not go together."""
    if dry_run + verify + index_only > 1:
        raise UserError("dry_run, verify and index_only must stand alone, got several of them.")
    for name, value in {"source": source, "out": out}.items():
        if value is not None and not value.strip():
            raise UserError(f"{name} must be a path, got an empty text. Correct --{name}.")
    if source is None and not verify:
        raise UserError("source must be given, got none. Add --source with a folder, list or tars.")
    if out is not None and index_only:
        raise UserError(f"out must be left out with index_only, got {out}.")
    if out is None and not (dry_run or index_only):
        raise UserError("out must be given, got none. Add --out with a folder for the shards.")


def spelled_out(arguments: list[str]) -> list[str]:
    """A command's arguments with _ in the names of flags, and with true after those that may stand
    alone: `--dry-run` becomes `--dry_run=true`.
    """
    alone = {
        f"--{name}"
        for name, parameter in inspect.signature(prepare).parameters.items()
        if parameter.annotation is bool
    }
    found = []
    for number, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name.startswith("--"):
            name = "--" + name[2:].replace("-", "_")
        following = arguments[number + 1 : number + 2]
        if name in alone and not equals and following not in (["true"], ["false"]):
            equals, value = "=", "true"
        found.append(name + equals + value if name.startswith("--") else argument)
    return found
