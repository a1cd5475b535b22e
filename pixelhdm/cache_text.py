"""The command `cache-text`: all captions as the text encoder's states, before the training."""

import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pixelhdm.data.prepare.plan import parse_part
from pixelhdm.data.reading.storage import is_local
from pixelhdm.data.shards import Shards
from pixelhdm.data.source import BadSample, ImageSource
from pixelhdm.data.text_cache import (
    NUM_THREADS,
    crc32_of,
    first_rows,
    found_file,
    rows_digest,
)
from pixelhdm.data.text_places import PROMPTS, beside, text_path
from pixelhdm.errors import UserError
from pixelhdm.models.encoders.text_encoder import TextEncoder
from pixelhdm.text_encoding import Encoding

LOST = ("missing", "torn", "text")  # samples that training cannot have either


def cache_text(
    encoder: TextEncoder,
    sources: list[ImageSource],
    prompts: list[str],
    text_folder: str | None = None,
    batch_size: int = 64,
    device: str | None = None,
    part: str | None = None,
) -> None:
    """Write the states of all captions of sources, one file a shard, and of single texts.

    Args:
        encoder: the training's text encoder.
        sources: the training's, not opened.
        prompts: single texts, such as those of sample grids.
        text_folder: where to; empty takes each source's own text_folder, or writes beside its
            shards.
        batch_size: texts that are encoded at once.
        device: to encode on; empty takes the accelerator where there is one.
        part: i/n does the i-th of n parts, 1 ≤ i ≤ n.

    Raises:
        UserError: there are no captions, or no place to write to.
    """
    started = time.monotonic()
    number, num_parts = parse_part(part)
    chosen = captioned(sources, text_folder)
    mine = list(jobs_of(chosen).items())[number - 1 :: num_parts]
    encoding = Encoding(encoder, chosen_device(device), batch_size)
    places = {beside(s.index.shards[0], PROMPTS, s.text_folder) for s in chosen}
    if number == 1:
        for path in sorted(places):
            cache_prompts(encoding, path, chosen[0], prompts)
    total = sum(len(rows) for _, (_, _, rows) in mine)
    kept = 0
    with tqdm(total=total, desc="encoding", unit="image", disable=None) as bar:
        for path, (source, shard, rows) in mine:
            kept += not cache_shard(encoding, path, source, shard, rows, bar)
    print(report(encoding, kept, time.monotonic() - started, places))
    flags = "cached_text: true" + (f", text_folder: {text_folder}" if text_folder else "")
    print(f"Train with {flags} in the init_args of data.train and data.val.")


def captioned(sources: list[ImageSource], text_folder: str | None) -> list[Shards]:
    """The shards with captions among sources, opened."""
    leaves = [leaf for source in sources for leaf in source.leaves()]
    chosen = [leaf for leaf in leaves if isinstance(leaf, Shards) and leaf.condition == "caption"]
    if not chosen:
        names = ", ".join(sorted({type(leaf).__name__ for leaf in leaves})) or "none"
        raise UserError(
            "cache-text must have a source of class Shards with condition: caption, got "
            f"{names} without. Set data.train so."
        )
    for source in chosen:
        source.text_folder = text_folder or source.text_folder
        source.cached_text = False  # it is what is made here
        source.prepare()
        source.open()
    return chosen


def chosen_device(name: str | None) -> torch.device:
    """A device by its name, or the accelerator where there is one."""
    if name is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device must be one that torch can use, got {name}.") from error


def jobs_of(sources: list[Shards]) -> dict[str, tuple[Shards, int, range]]:
    """Source, number and samples of each shard by the path of its file; a shard of several sources
    comes once.

    Raises:
        UserError: a path is remote, or that of two shards.
    """
    jobs: dict[str, tuple[Shards, int, range]] = {}
    for source in sources:
        rows = first_rows(source.index)
        for number, shard in enumerate(source.index.shards):
            path = text_path(shard, source.text_folder)
            if not is_local(path):
                raise UserError(
                    f"text_folder must be a local folder, got {path}. Give --text_folder DIR; "
                    "its files may be copied beside the shards afterwards."
                )
            job = source, number, range(int(rows[number]), int(rows[number + 1]))
            other, own, _ = jobs.setdefault(path, job)
            if other.index.shards[own] != shard:
                raise UserError(
                    f"text_folder must be another for shards of the same name, got {path} for "
                    f"{other.index.shards[own]} and {shard}. Give each source its own."
                )
    return {path: job for path, job in jobs.items() if job[2]}


def cache_shard(
    encoding: Encoding, path: str, source: Shards, shard: int, rows: range, bar: tqdm
) -> bool:
    """Write the file of a shard, unless it is there and fits; whether it was written."""
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        captions = list(pool.map(partial(captions_of, source), rows))
    arrays = {
        "counts": np.array([len(own) for own in captions], np.int32),
        "crc32": np.array([crc32_of(own) for own in captions], np.uint32),
    }
    about = {**encoding.about, "rows": rows_digest(source.index, shard)}
    if is_there(source, path, about, arrays):
        bar.update(len(rows))
        return False

    def watch(states: Iterable[Tensor]) -> Iterator[Tensor]:
        each = iter(states)
        for own in captions:
            yield from (next(each) for _ in own)
            bar.update()

    texts = [text for own in captions for text in own]
    encoding.write(path, about, arrays, texts, watch)
    return True


def captions_of(source: Shards, index: int) -> list[str]:
    """The captions of a sample; none where training cannot have it either."""
    try:
        return source.captions(index)
    except BadSample as bad:
        if bad.reason not in LOST:
            raise UserError(f"captions must be readable, got {bad}.") from bad
        return []


def is_there(
    source: Shards, path: str, about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> bool:
    """Whether a whole file of these captions, made by this encoder, is there."""
    try:
        file = found_file(source.storage, path)
    except UserError:  # it is written anew
        return False
    return (
        file is not None
        and file.about == about
        and all(np.array_equal(file.arrays.get(name), own) for name, own in arrays.items())
    )


def cache_prompts(encoding: Encoding, path: str, source: Shards, prompts: list[str]) -> None:
    """Write the file of single texts, those that it already has included."""
    try:
        file = found_file(source.storage, path)
    except UserError:  # it is written anew
        file = None
    about = {} if file is None else file.about
    is_own = all(about.get(name) == value for name, value in encoding.about.items())
    had = about.get("texts", []) if is_own else []
    texts = list(dict.fromkeys([*had, "", *prompts]))
    if texts != had:
        encoding.write(path, {**encoding.about, "texts": texts}, {}, texts)


def report(encoding: Encoding, kept: int, seconds: float, places: Iterable[str]) -> str:
    """What was done, in words."""
    written = encoding.written
    texts = sum(len(file.arrays["lengths"]) for file in written)
    tokens = sum(file.num_tokens for file in written)
    size = sum(file.num_bytes for file in written)
    folders = ", ".join(sorted({str(Path(place).parent) for place in places}))
    return (
        f"Encoded {texts:,} texts of {tokens:,} tokens in {seconds:.1f} s: {len(written)} files, "
        f"{size / 1e6:,.1f} MB, in {folders}; {kept} shards were done before."
    )
