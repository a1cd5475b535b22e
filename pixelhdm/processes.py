"""What the processes of a run tell each other."""

from typing import Any

import torch.distributed


def are_several() -> bool:
    """Whether this process belongs to a group."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def gather_objects(own: Any) -> list[Any]:
    """The `own` of every process, in the order of their ranks; all must call it together."""
    if not are_several():
        return [own]
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, own)
    return parts
