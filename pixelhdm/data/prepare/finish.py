"""What is written when all shards are there."""

import json
from pathlib import Path

from pixelhdm.data.indexing.open_index import open_index
from pixelhdm.data.prepare.check import Rules
from pixelhdm.data.prepare.chosen_config import Chosen
from pixelhdm.data.prepare.items import REASONS, Listing
from pixelhdm.data.prepare.plan import Plan
from pixelhdm.data.prepare.readers.tars import remove_unpacked
from pixelhdm.data.prepare.report import report
from pixelhdm.data.prepare.settings import UNPACKED
from pixelhdm.data.prepare.shards import (
    RECORDS,
    remove_leftovers,
    size_of,
    write_json,
    write_text,
)
from pixelhdm.data.prepare.tally import Tally
from pixelhdm.data.prepare.verify import DATASET
from pixelhdm.data.reading.storage import Storage
from pixelhdm.errors import UserError

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
    if not len(tally):
        first = min([*tally.rejected, *listing.rejected])
        raise UserError(
            f"source must hold an image that can be kept, got none, the first {first.path}: "
            f"{REASONS[first.reason]} ({first.detail})."
        )
    names = [f"{plan.name(n)}.tar" for n, part in enumerate(tallies) if len(part)]
    disk = sum(size_of(out / name) for name in names)
    text = report(listing, tally, rules, len(names), chosen, disk)
    lines = [json.dumps(one._asdict()) for one in sorted([*tally.rejected, *listing.rejected])]
    about = {"classes": listing.classes, "num_images": len(tally), "shards": names}
    about |= {"num_rejected": len(lines), "source": listing.kind}
    for attempt in range(ATTEMPTS):
        try:
            remove_leftovers(out)
            remove_unpacked(out / RECORDS / UNPACKED)
            write_text(out / REJECTED, "".join(f"{line}\n" for line in lines))
            write_text(out / REPORT, text + "\n")
            write_json(out / DATASET, about)
            break
        except FileNotFoundError:  # another part has taken this one's temporary file for a leftover
            if attempt == ATTEMPTS - 1:
                raise
    open_index(str(out), Storage())
    return f"{text}\n\nWritten to {out}: shards, indexes, {DATASET}, {REJECTED}, {REPORT}."
