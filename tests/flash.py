"""flash-attn's two functions, computed plainly on any device."""

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

from pixelhdm.models import attention_kernels

VERSION = "2.8.3"


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    *,
    deterministic: bool = False,
) -> Tensor:
    """Tensors batch, sequence, heads, channels; key heads may be fewer."""
    assert len(q) == len(k)
    return torch.stack([plain(*rows, softmax_scale) for rows in zip(q, k, v, strict=True)])


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    *,
    deterministic: bool = False,
) -> Tensor:
    """Tensors of all sequences' tokens, heads, channels."""
    numbers = []
    for starts, rows in ((cu_seqlens_q, q), (cu_seqlens_k, k)):
        assert starts.dtype == torch.int32
        places = torch.arange(len(rows), dtype=torch.int32, device=rows.device)
        numbers.append(torch.searchsorted(starts, places, right=True))
    return plain(q, k, v, softmax_scale, numbers[0][:, None] == numbers[1])


def plain(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None, seen: Tensor | None = None
) -> Tensor:
    """The formula for one sequence; the kernels take one type and as many heads of k as of v."""
    assert q.dtype == k.dtype == v.dtype
    assert k.shape == v.shape
    (length, heads, dim), kv = q.shape, k.shape[1]
    grouped = q.reshape(length, kv, heads // kv, dim)
    logits = torch.einsum("qngd,knd->ngqk", grouped, k) * (scale or dim**-0.5)
    if seen is not None:
        logits = logits.masked_fill(~seen, -torch.inf)
    return torch.einsum("ngqk,knd->qngd", logits.softmax(-1), v).reshape(q.shape)


def pretend_flash(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Let flash-attn be installed and compute everything, on CPUs and in float32 too."""
    module = ModuleType("flash_attn")
    module.__version__ = VERSION
    module.flash_attn_func = flash_attn_func
    module.flash_attn_varlen_func = flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    monkeypatch.setattr(attention_kernels, "flash_obstacle", lambda *_: None)
    return module
