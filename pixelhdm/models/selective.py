"""Selective checkpointing: of a block only what is costly is kept for the backward pass."""

import inspect
from functools import partial
from typing import Any

from torch import nn
from torch._ops import HigherOrderOperator, OpOverload
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    checkpoint,
    create_selective_checkpoint_contexts,
)

Operator = OpOverload | HigherOrderOperator

# A GPU does 100 to 200 multiplications while it reads or writes one number of its memory. Products
# with shorter rows, those inside a pixel, take less time to compute than to keep and load.
MIN_PRODUCTS = 128
LEFT = {"aten::mm": 0, "aten::bmm": 0, "aten::addmm": 1, "mkldnn::_linear_pointwise": 0}

# From torch 2.14 on what is kept may be offloaded too; before, it stays on the device.
HOOKED = "respect_saved_tensors_hooks"
HOOKS = {HOOKED: True} if HOOKED in inspect.signature(checkpoint).parameters else {}


def run_selectively(block: nn.Module, *inputs: Any) -> Any:
    """Run a block and keep its inputs, its long matrix products and its attention; the backward
    pass computes the norms, gates, activations, rotations and short products between them again.
    """
    return checkpoint(block, *inputs, use_reentrant=False, context_fn=KEEP_COSTLY, **HOOKS)


def is_costly(op: Operator, *inputs: Any) -> bool:
    """Whether an operator is an attention, or a matrix product whose every number is a sum of at
    least MIN_PRODUCTS products.
    """
    name = op.name()
    if name in LEFT:
        return inputs[LEFT[name]].shape[-1] >= MIN_PRODUCTS
    return "attn" in name or "attention" in name


def policy(
    context: SelectiveCheckpointContext, op: Operator, *inputs: Any, **settings: Any
) -> CheckpointPolicy:
    """What becomes of an operator's output."""
    costly = is_costly(op, *inputs)
    return CheckpointPolicy.MUST_SAVE if costly else CheckpointPolicy.PREFER_RECOMPUTE


KEEP_COSTLY = partial(create_selective_checkpoint_contexts, policy)
