"""Which sizes of its inputs a compiled block meets differently from batch to batch."""

from typing import Any

from torch import Tensor


def vary(inputs: Any) -> None:
    """Tell torch.compile which sizes of a block's inputs differ between batches: samples and
    tokens, not pixels of a patch and channels.

    A size of 1 stays a graph of its own, as torch computes differently there.
    """
    from torch._dynamo import maybe_mark_dynamic

    for value in inputs:
        if isinstance(value, tuple):
            vary(value)
        elif isinstance(value, Tensor):
            # Masks and indices have no channels.
            num = min(2, value.ndim - 1) if value.is_floating_point() else value.ndim
            for axis in range(num):
                if value.shape[axis] > 1:
                    maybe_mark_dynamic(value, axis)
