"""What a preparation found, for a person."""

from collections import Counter

import numpy as np
from jaxtyping import UInt16

from pixelhdm.data.coverage import counted
from pixelhdm.data.prepare.check import Rules
from pixelhdm.data.prepare.chosen_config import Chosen
from pixelhdm.data.prepare.items import OTHER_LABEL, REASONS, Listing
from pixelhdm.data.prepare.tally import Tally
from pixelhdm.data.prepare.texts import UTF8

BAD_TEXTS = "bad_texts.jsonl"
QUANTILES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
SHOWN = 8  # lines of one kind
SLOW = ("PNG", "WEBP", "TIFF", "AVIF", "GIF", "BMP")  # 5-8 times slower to decode than JPEG
MANY = 0.2  # share of slow images that deserves a hint


def report(
    listing: Listing,
    tally: Tally,
    rules: Rules,
    num_shards: int,
    chosen: Chosen,
    disk: tuple[int, int] | None = None,
    sampled: int | None = None,
) -> str:
    """The report on a source.

    Args:
        listing: the source.
        tally: what its images, or a sample of them, turned out to be.
        rules: what they had to be.
        num_shards: how many shards there are, or would be.
        chosen: the training that the bucket table is of.
        disk: bytes of all tars and of their indexes; None where nothing was written.
        sampled: number of images that were looked at, where not all were.
    """
    found = len(listing.items) + len(listing.rejected)
    seen = found if sampled is None else sampled
    lines = [f"Source: {listing.kind}", f"Images: {found:,} found"]
    if sampled is not None:
        lines[-1] += f"; {sampled:,} of them, spread evenly, were looked at for what follows"
    rejected = Counter(one.reason for one in tally.rejected)
    if sampled is None:
        rejected.update(one.reason for one in listing.rejected)
    kept = len(tally)
    lines += [row("kept", kept, seen)]
    lines += [row(words, rejected[key], seen) for key, words in REASONS.items() if rejected[key]]
    lines += noted(listing, tally, disk is not None)
    if not kept:
        return "\n".join(lines)
    lines += ["", *labelled(listing, tally), *captioned(tally), *formats(tally, rules)]
    size = f"{disk_size(tally.num_bytes)} of images"
    if disk is not None:
        size += "; on the disk {} of tars, {} of indexes".format(*map(disk_size, disk))
    lines += [f"Shards: {num_shards:,}, {size}", *measured(tally.sizes())]
    return "\n".join([*lines, *chosen.lines(tally.sizes())])


def row(words: str, count: int, total: int) -> str:
    """One line of the table of counts."""
    return f"  {count:>12,}  {share(count, total):>7}  {words}"


def share(count: int, total: int) -> str:
    """A share in per cent, never 0 where there are some or 100 where some lack."""
    if 0 < count < total:
        return f"{min(max(count / total, 0.0001), 0.9999):.2%}"
    return f"{count / max(1, total):.0%}"


def noted(listing: Listing, tally: Tally, is_written: bool) -> list[str]:
    """What stands out in the source, the worst first."""
    notes = [*mislabelled(tally), *unread(tally, is_written), *listing.notes]
    if listing.others:
        most = ", ".join(
            f"{n:,} {ending or 'without ending'}" for ending, n in listing.others.most_common(5)
        )
        notes.append(f"other files, left alone: {most}")
    more = [f"  … and {len(notes) - SHOWN:,} more notes"] if len(notes) > SHOWN else []
    return [f"  {note}" for note in notes[:SHOWN]] + more


def mislabelled(tally: Tally) -> list[str]:
    """Which duplicates had another label than the image that stays."""
    found = sorted(one for one in tally.rejected if one.detail.endswith(OTHER_LABEL))
    if not found:
        return []
    are = "duplicate has" if len(found) == 1 else "duplicates have"
    stays = found[0].detail.removesuffix(OTHER_LABEL).removeprefix("the same bytes as ")
    return [
        f"{len(found):,} {are} another label than the image that stays, the first "
        f"{found[0].path} and {stays}"
    ]


def unread(tally: Tally, is_written: bool) -> list[str]:
    """The images whose texts cannot be read."""
    if not tally.bad_texts:
        return []
    path, detail = min(tally.bad_texts)
    line = f"texts that cannot be read: of {counted(len(tally.bad_texts), 'image')}, the first "
    line += f"{path} ({detail})"
    line += f"; all are in {BAD_TEXTS}" if is_written else ""
    other = any(UTF8 in detail for _, detail in tally.bad_texts)
    return [line + ("; save those of other encodings as UTF-8" if other else "")]


def labelled(listing: Listing, tally: Tally) -> list[str]:
    """The classes and how many images they have."""
    if not listing.classes:
        return ["Classes: none"]
    counts = [(tally.labels[number], name) for number, name in enumerate(listing.classes)]
    least, most = min(counts), max(counts)
    text = f"Classes: {len(counts):,}, from {least[0]:,} ({least[1]}) "
    text += f"to {counted(most[0], 'image')} ({most[1]})"
    if unlabelled := len(tally) - tally.labels.total():
        text += f"; {have_none(unlabelled)}"
    return [text]


def captioned(tally: Tally) -> list[str]:
    """How many captions images have."""
    without = tally.captions[0]
    if without == len(tally):
        return ["Captions: none"]
    each = sum(number * count for number, count in tally.captions.items()) / len(tally)
    text = f"Captions: {each:.2f} an image, at most {max(tally.captions)}"
    return [f"{text}; {have_none(without)}" if without else text]


def have_none(count: int) -> str:
    """That some images have none."""
    return f"{counted(count, 'image')} {'has' if count == 1 else 'have'} none"


def formats(tally: Tally, rules: Rules) -> list[str]:
    """The files' formats."""
    traits = ("CMYK", "reencoded")
    kinds = Counter({k: n for k, n in tally.tags.items() if k not in traits})
    parts = [f"{kind} {share(count, len(tally))}" for kind, count in kinds.most_common()]
    if tally.tags["CMYK"]:
        parts.append(f"{tally.tags['CMYK']:,} in CMYK (converted when read)")
    if tally.tags["reencoded"]:
        parts.append(f"{tally.tags['reencoded']:,} written anew as {rules.reencode}")
    lines = [f"Formats: {', '.join(parts)}"]
    slow = sum(kinds[kind] for kind in SLOW) / len(tally)
    large = np.median(tally.sizes().astype(np.int64).prod(axis=1)) > 256**2
    if slow > MANY and large and not rules.reencode:
        lines.append(
            f"  {slow:.0%} are in a format that decodes 5 to 8 times slower than JPEG; "
            "--reencode jpeg stores them faster to read, at a small loss"
        )
    return lines


def measured(sizes: UInt16[np.ndarray, "N 2"]) -> list[str]:
    """The distribution of sizes."""
    wide, high = sizes.astype(np.float64).T
    short, ratio = np.minimum(wide, high), wide / high
    lines = ["", "Sizes           " + "".join(f"{quantile:>8.0%}" for quantile in QUANTILES)]
    rows = {"short side px": short, "megapixels": wide * high / 1e6, "width / height": ratio}
    for name, values in rows.items():
        digits = 0 if name == "short side px" else 2 if values.max() >= 0.1 else 4
        quantiles = np.quantile(values, QUANTILES)
        lines.append(f"  {name:<14}" + "".join(f"{value:>8.{digits}f}" for value in quantiles))
    return lines


def disk_size(count: int) -> str:
    """A number of bytes in words."""
    size, unit = float(count), "bytes"
    for larger in ("KB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:,.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:,.1f} {unit}"
