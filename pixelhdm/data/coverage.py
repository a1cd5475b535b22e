"""The table that says, before training, what of the data it will see."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, UInt16

from pixelhdm.data.buckets import DROPPED, Assignment, Buckets

MUCH = 0.05  # share of dropped images that deserves advice
MANY = 0.2  # share of images that are cut too much, likewise
SHOWN = 6  # names of buckets in one line
HEAD = "  bucket (h x w)     images   share  batches      of  padded  crop mean    p99  enlarged"


def coverage_table(
    buckets: Buckets,
    sizes: UInt16[np.ndarray, "N 2"],
    assignment: Assignment,
    batch_sizes: Sequence[int],
    world_size: int = 1,
) -> list[str]:
    """Per bucket images, batches, padded slots, crop and enlargement; below it what is dropped and
    why, and advice on what stands out; as lines.

    Args:
        buckets: the table and its rule.
        sizes: upright width and height of each image in pixels.
        assignment: what the rule makes of them.
        batch_sizes: images per process and batch of each bucket.
        world_size: number of processes.
    """
    kept = assignment.bucket != DROPPED
    counts = np.bincount(assignment.bucket[kept], minlength=len(buckets.table))
    slots = np.array(batch_sizes) * world_size
    batches = -(-counts // slots)
    lines = [HEAD]
    for number in np.flatnonzero(counts):
        mine = assignment.bucket == number
        crop, larger = assignment.crop[mine], (assignment.scale[mine] > 1).mean()
        height, width = buckets.table[number]
        lines.append(
            f"  {height:>5} x {width:<5} {counts[number]:>11,} {counts[number] / kept.sum():>7.1%} "
            f"{batches[number]:>8,} {slots[number]:>7,} "
            f"{batches[number] * slots[number] - counts[number]:>7,} {crop.mean():>10.1%} "
            f"{np.quantile(crop, 0.99):>6.1%} {larger:>9.1%}"
        )
    padded = int((batches * slots - counts).sum())
    lines += [
        f"  {kept.sum():,} of {counted(len(sizes), 'image')}, "
        f"{counted(int(batches.sum()), 'batch', 'batches')} an epoch, "
        f"{counted(padded, 'padded slot')} (weight 0)"
    ]
    return (
        lines
        + changed(buckets, assignment, kept)
        + dropped(buckets, sizes, kept)
        + rare(buckets, counts, slots)
    )


def changed(buckets: Buckets, assignment: Assignment, kept: np.ndarray) -> list[str]:
    """How many images are enlarged, and cut by more than the rule would like."""
    if not kept.any():
        return []
    enlarged = assignment.scale[kept] > 1
    cropped = assignment.crop[kept] > buckets.max_crop + 1e-6
    line = f"  {enlarged.mean():.1%} enlarged"
    if buckets.max_crop < 1:
        line += (
            f"; {cropped.mean():.1%} cut by more than {buckets.max_crop:.0%}, as no bucket suits "
            "them better"
        )
    if cropped.mean() <= MANY or len(buckets.table) == 1 or buckets.sizes is not None:
        return [line]
    return [line, "  advice: a smaller buckets.step has shapes nearer to theirs"]


def dropped(buckets: Buckets, sizes: np.ndarray, kept: np.ndarray) -> list[str]:
    """What is dropped, by reason, and what to do where it is much."""
    unreadable = int((sizes == 0).any(axis=1).sum())
    small = int((~kept).sum()) - unreadable
    lines = []
    if small:
        lines.append(
            f"  dropped: {small:,} ({small / len(sizes):.1%}) too small for any bucket without "
            f"being enlarged by more than {buckets.max_upscale:g}"
        )
    if unreadable:
        lines.append(f"  dropped: {unreadable:,} whose size cannot be read")
    if small > MUCH * len(sizes):
        lines.append(
            "  advice: buckets.levels and buckets.min_side that are smaller take small images in; "
            "buckets.too_small=upscale enlarges them"
        )
    return lines


def rare(
    buckets: Buckets, counts: Int64[np.ndarray, "buckets"], slots: Int64[np.ndarray, "buckets"]
) -> list[str]:
    """Which buckets hold less than a batch, and what merges them."""
    found = np.flatnonzero((counts > 0) & (counts < slots))
    if not len(found) or len(buckets.table) == 1:
        return []
    names = ["{}x{}".format(*buckets.table[number]) for number in found[:SHOWN]]
    more = ", …" if len(found) > SHOWN else ""
    verb = "hold" if len(found) > 1 else "holds"
    line = (
        f"  {counted(len(found), 'bucket')} {verb} less than one batch "
        f"({', '.join(names)}{more}); the rest of it is padding"
    )
    if np.count_nonzero(counts) == 1:
        return [line]
    return [
        line,
        "  advice: a larger buckets.step or fewer buckets.levels merge buckets; smaller batches "
        "are filled sooner",
    ]


def counted(count: int, word: str, plural: str = "") -> str:
    """A number of things in words: 1 image, 2,000 images."""
    return f"{count:,} {word if count == 1 else plural or word + 's'}"
