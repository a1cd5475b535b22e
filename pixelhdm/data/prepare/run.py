"""The work of a preparation: a look at a source, or all shards of it."""

from collections.abc import Iterable, Iterator
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pixelhdm.data.prepare.check import Rules, check_all
from pixelhdm.data.prepare.chosen_config import Chosen
from pixelhdm.data.prepare.duplicates import find_duplicates
from pixelhdm.data.prepare.finish import finish
from pixelhdm.data.prepare.items import OTHER_LABEL, Item, Listing, Rejection
from pixelhdm.data.prepare.plan import Plan
from pixelhdm.data.prepare.report import report
from pixelhdm.data.prepare.settings import duplicates_of
from pixelhdm.data.prepare.shards import Result, read_record, write_shard
from pixelhdm.data.prepare.tally import Tally
from pixelhdm.data.prepare.work import in_order

SAMPLE = 2000  # images that a dry run looks at
TASK_IMAGES, TASK_BYTES = 32, 8 << 20  # of one task of a process


def look(
    listing: Listing,
    plan: Plan,
    rules: Rules,
    chosen: Chosen,
    keep_duplicates: bool,
    processes: int,
) -> str:
    """The report on a sample spread over a listing."""
    count = len(listing.items)
    rows = np.unique(np.linspace(0, count - 1, min(SAMPLE, count)).astype(int)) if count else []
    items = [listing.items[row] for row in rows]
    duplicates = {} if keep_duplicates else find_duplicates(items, rules.require_captions)
    tally = Tally()
    results = checked(items, list(range(len(items))), duplicates, rules, processes)
    for item, result in tqdm(results, total=len(items), unit="image", disable=None):
        tally.add(result, item.path)
    sampled = len(items) if len(items) < count else None
    return report(listing, tally, rules, len(plan), chosen, sampled=sampled)


def run(
    out: Path,
    listing: Listing,
    plan: Plan,
    rules: Rules,
    chosen: Chosen,
    keep_duplicates: bool,
    share: tuple[int, int],
    processes: int,
) -> None:
    """Write a part of the shards, and what describes all of them once all are there."""
    part, num_parts = share
    mine = [shard for shard in range(len(plan)) if shard % num_parts == part - 1]
    missing = [shard for shard in mine if read_record(out, plan.name(shard)) is None]
    if missing:
        duplicates = (
            {} if keep_duplicates else duplicates_of(out, listing.items, rules.require_captions)
        )
        write_shards(out, listing.items, plan, missing, duplicates, rules, processes)
    records = [read_record(out, plan.name(shard)) for shard in range(len(plan))]
    if None in records:
        left = sum(record is None for record in records)
        are = "shard of other parts is" if left == 1 else "shards of other parts are"
        print(f"Part {part}/{num_parts} is done; {left:,} {are} not there yet.")
        return
    print(finish(out, listing, plan, rules, chosen, records))


def write_shards(
    out: Path,
    items: list[Item],
    plan: Plan,
    shards: list[int],
    duplicates: dict[int, int],
    rules: Rules,
    processes: int,
) -> None:
    """Write some of the shards in their order."""
    rows = [row for shard in shards for row in plan.rows(shard).tolist()]
    results = checked(items, rows, duplicates, rules, processes)
    with closing(results), tqdm(total=len(rows), unit="image", disable=None) as bar:
        for shard in shards:
            count = len(plan.rows(shard))
            write_shard(out, plan.name(shard), keyed(islice(results, count), plan, shard, bar))


def keyed(
    results: Iterable[tuple[Item, Result]], plan: Plan, shard: int, bar: tqdm
) -> Iterator[tuple[str, str, Result]]:
    """A shard's results with their keys; the bar goes on by one with each."""
    for number, (item, result) in enumerate(results):
        yield plan.key(shard, number), item.path, result
        bar.update()


def checked(
    items: list[Item], rows: list[int], duplicates: dict[int, int], rules: Rules, processes: int
) -> Iterator[tuple[Item, Result]]:
    """Each image by its number with what the check says of it, in the order of the numbers."""
    single = (items[row] for row in rows if row not in duplicates)
    results = in_order(partial(check_all, rules=rules), tasks_of(single), processes)
    flat = (result for part in results for result in part)
    with closing(results):
        for row in rows:
            if row in duplicates:
                yield items[row], duplicate(items[row], items[duplicates[row]])
            else:
                yield items[row], next(flat)


def duplicate(item: Item, first: Item) -> Rejection:
    """An image that is left out as another has the same bytes."""
    detail = f"the same bytes as {first.path}"
    differs = (item.label, item.class_name) != (first.label, first.class_name)
    return Rejection(item.path, "duplicate", detail + OTHER_LABEL * differs)


def tasks_of(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Images in lists that are neither long nor large."""
    task, size = [], 0
    for item in items:
        task.append(item)
        size += item.size
        if len(task) == TASK_IMAGES or size > TASK_BYTES:
            yield task
            task, size = [], 0
    if task:
        yield task
