"""The table that says, before training, what of the data it will see."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt16

from pixelhdm.data.buckets import DROPPED, Assignment, Buckets

RARE = 1.0  # batches' worth of images under which a bucket is mostly padding


def coverage_table(
    buckets: Buckets,
    sizes: UInt16[np.ndarray, "N 2"],
    assignment: Assignment,
    batch_sizes: Sequence[int],
    world_size: int = 1,
) -> str:
    """Per bucket images, batches, padded slots, crop and enlargement; below it what is dropped and
    why, and advice on what stands out.

    Args:
        buckets: the table and its rule.
        sizes: upright width and height of each image.
        assignment: what the rule makes of them.
        batch_sizes: images per process and batch of each bucket.
        world_size: number of processes.
    """
    kept = assignment.bucket != DROPPED
    counts = np.bincount(assignment.bucket[kept], minlength=len(buckets.table))
    lines = ["  bucket (h x w)    images   share  batches of  padded   crop mean  p99  enlarged"]
    total_batches = total_padded = 0
    for number, (height, width) in enumerate(buckets.table):
        if not counts[number]:
            continue
        mine = assignment.bucket == number
        slots = batch_sizes[number] * world_size
        batches = -(-int(counts[number]) // slots)
        padded = batches * slots - int(counts[number])
        total_batches, total_padded = total_batches + batches, total_padded + padded
        crop, larger = assignment.crop[mine], float((assignment.scale[mine] > 1).mean())
        lines.append(
            f"  {height:>5} x {width:<5} {counts[number]:>10,} {counts[number] / kept.sum():>7.1%} "
            f"{batches:>7,} {slots:>5} {padded:>7,} {crop.mean():>10.1%} "
            f"{np.quantile(crop, 0.99):>6.1%} {larger:>8.1%}"
        )
    empty = int((counts == 0).sum())
    enlarged = float((assignment.scale[kept] > 1).mean()) if kept.any() else 0.0
    cropped = float((assignment.crop[kept] > buckets.max_crop + 1e-6).mean()) if kept.any() else 0.0
    lines.append(
        f"  {kept.sum():,} of {len(sizes):,} images in {total_batches:,} batches an epoch, "
        f"{total_padded:,} padded slots (weight 0), {enlarged:.1%} enlarged, "
        f"{cropped:.1%} cropped by more than {buckets.max_crop:.0%}"
        f"{f'; {empty} buckets are empty' if empty else ''}"
    )
    return "\n".join(
        [
            *lines,
            *dropped(buckets, sizes, kept),
            *advice(buckets, counts, batch_sizes, world_size, kept),
        ]
    )


def dropped(buckets: Buckets, sizes: np.ndarray, kept: np.ndarray) -> list[str]:
    """What is dropped, by reason."""
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
    return lines


def advice(
    buckets: Buckets, counts: np.ndarray, batch_sizes: Sequence[int], world: int, kept: np.ndarray
) -> list[str]:
    """What a person may want to change."""
    lines = []
    share = 1 - kept.mean() if len(kept) else 0.0
    if share > 0.05:
        lines.append(
            f"  note: {share:.0%} of the images are dropped. Lower levels and min_side take smaller "
            "ones in, too_small: upscale enlarges them."
        )
    rare = [
        size
        for size, count, num in zip(buckets.table, counts, batch_sizes, strict=True)
        if 0 < count < RARE * num * world
    ]
    if rare and len(buckets.table) > 1:
        names = ", ".join(f"{height}x{width}" for height, width in rare[:6])
        lines.append(
            f"  note: {len(rare)} buckets hold less than one batch ({names}"
            f"{', …' if len(rare) > 6 else ''}): mostly padding. A larger step, fewer levels or "
            "smaller batches merge them."
        )
    return lines
