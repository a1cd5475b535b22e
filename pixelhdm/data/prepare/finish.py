"""What is written when all shards are there."""

import json
from collections import Counter
from pathlib import Path

from pixelhdm.data.indexing.open_index import open_index
from pixelhdm.data.prepare.check import Rules
from pixelhdm.data.prepare.chosen_config import Chosen
from pixelhdm.data.prepare.items import REASONS, Listing, Rejection
from pixelhdm.data.prepare.plan import Plan
from pixelhdm.data.prepare.readers.tar_files import remove_unpacked
from pixelhdm.data.prepare.report import BAD_TEXTS, report
from pixelhdm.data.prepare.settings import UNPACKED
from pixelhdm.data.prepare.shards import (
    DATASET,
    RECORDS,
    remove_leftovers,
    size_of,
    write_json,
    write_text,
)
from pixelhdm.data.prepare.tally import Tally
from pixelhdm.data.reading.storage import Storage
from pixelhdm.errors import UserError

REMEDY = "Get the files again"
REMEDIES = {
    "too_small": "Take a lower min_side and another out",
    "extreme": "Take a higher max_aspect and another out",
    "no_caption": "Leave require_captions out and take another out",
    "unsupported": "Set reencode and take another out",
}  # for the most frequent reason
ATTEMPTS = 5
REJECTED, REPORT = "rejected.jsonl", "report.txt"


def finish(
    out: Path,
    listing: Listing,
    plan: Plan,
    rules: Rules,
    chosen: Chosen,
    tallies: list[Tally],
) -> str:
    """Write what describes all shards, and return the report.

    Two parts may do so at once: they write the same bytes.
    """
    tally = Tally.total(tallies)
    rejected = sorted([*tally.rejected, *listing.rejected])
    lines = [json.dumps(one._asdict()) for one in rejected]
    if not len(tally):
        write_text(out / REJECTED, joined(lines))
        print(report(listing, tally, rules, 0, chosen))
        raise none_kept(out, rejected)
    names = [f"{plan.name(n)}.tar" for n, part in enumerate(tallies) if len(part)]
    disk = tuple(
        sum(size_of((out / name).with_suffix(ending)) for name in names)
        for ending in (".tar", ".json")
    )
    text = report(listing, tally, rules, len(names), chosen, disk)
    about = {"classes": listing.classes, "num_images": len(tally), "shards": names}
    about |= {"num_rejected": len(lines), "source": listing.kind}
    for attempt in range(ATTEMPTS):
        try:
            remove_leftovers(out)
            remove_unpacked(out / RECORDS / UNPACKED)
            write_text(out / REJECTED, joined(lines))
            write_bad_texts(out, tally)
            write_text(out / REPORT, text + "\n")
            write_json(out / DATASET, about)
            break
        except FileNotFoundError:  # another part has taken this one's temporary file for a leftover
            if attempt == ATTEMPTS - 1:
                raise
    open_index(str(out), Storage())
    files = [DATASET, REJECTED, *([BAD_TEXTS] if tally.bad_texts else []), REPORT]
    return f"{text}\n\nWritten to {out}: shards, indexes, {', '.join(files)}."


def joined(lines: list[str]) -> str:
    """The text of a file of lines."""
    return "".join(f"{line}\n" for line in lines)


def write_bad_texts(out: Path, tally: Tally) -> None:
    """List the images whose texts could not be read, where there are any."""
    rows = [{"path": path, "detail": detail} for path, detail in sorted(tally.bad_texts)]
    if rows:
        write_text(out / BAD_TEXTS, joined([json.dumps(row) for row in rows]))


def none_kept(out: Path, rejected: list[Rejection]) -> UserError:
    """The error where no image is kept."""
    first = rejected[0]
    [(reason, _)] = Counter(one.reason for one in rejected).most_common(1)
    return UserError(
        f"source must hold an image that can be kept, got none of {len(rejected):,}, the first "
        f"{first.path}: {REASONS[first.reason]} ({first.detail}). "
        f"{REMEDIES.get(reason, REMEDY)}; all are listed in {out / REJECTED}."
    )
