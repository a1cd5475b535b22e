"""Which samples of a damaged shard are lost."""

from bisect import bisect_left
from collections import Counter

from pixelhdm.data.indexing.members import IMAGES, Parts, split_name
from pixelhdm.data.indexing.tar import Walk


def torn_keys(found: Walk, samples: dict[str, Parts]) -> set[str]:
    """Keys of the samples that damage has taken a part of: it ends too early, or the sample lies
    beside the damage and lacks what most others have, or all but its image where there is no other.
    """
    names = [split_name(name) for name in found.torn]
    torn = {name[0] for name in names if name}
    near = edges(found) & samples.keys()
    others = [parts for key, parts in samples.items() if key not in near]
    counts = Counter(name for parts in others or samples.values() for name in parts)
    usual = {name for name, count in counts.items() if count > len(others) / 2} - {*IMAGES}
    is_lone = len(samples) == 1  # nothing to compare with: an image by itself may lack a part
    return torn | {
        key
        for key in near
        if not usual <= samples[key].keys() or (is_lone and len(samples[key]) == 1)
    }


def edges(found: Walk) -> set[str]:
    """Keys of the samples right before and after damage."""
    named = [(member.offset, split_name(member.name)) for member in found.members]
    keys = [(offset, name[0]) for offset, name in named if name]
    ends = list(found.gaps)
    if found.cut_at is not None:
        ends.append((found.cut_at, found.cut_at))
    chosen = set()
    for start, end in ends:
        before, behind = (bisect_left(keys, at, key=lambda pair: pair[0]) for at in (start, end))
        chosen |= {key for _, key in [*keys[before - 1 : before], *keys[behind : behind + 1]]}
    return chosen
