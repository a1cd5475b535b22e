"""Which published network a file holds, and which --from fits it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from torch import Tensor

from pixelhdm.converting import jit, pixeldit, text_jit
from pixelhdm.converting.files import Container, Copies
from pixelhdm.converting.plan import Plan, depth_of
from pixelhdm.errors import UserError

Family = Literal["pixeldit", "pixeldit_t2i", "jit", "pixelgen"]
CLASS_PIXELDIT, TEXT_PIXELDIT, CLASS_JIT, TEXT_JIT = (
    "PixelDiT",
    "PixelDiT-T2I",
    "JiT",
    "PixelGen-T2I",
)
TEXT_KINDS = (TEXT_PIXELDIT, TEXT_JIT)
KINDS = {
    "pixeldit": (CLASS_PIXELDIT,),
    "pixeldit_t2i": (TEXT_PIXELDIT,),
    "jit": (CLASS_JIT,),
    "pixelgen": (CLASS_JIT, TEXT_JIT),
}
CONTAINERS: dict[str, Container] = {"jit": "jit", "pixelgen": "lightning"}  # of the same network
PIXELGEN_XL_DEPTH, PIXELGEN_XL_DROPOUT = 28, 0.1
JIT_LARGE_DEPTH, JIT_LARGE_DROPOUT = 32, 0.2


def kind_of(state: Mapping[str, Tensor]) -> str | None:
    """Which network these are the tensors of; None for any other."""
    has_classes = "y_embedder.embedding_table.weight" in state
    if depth_of(state, "pixel_blocks"):
        return CLASS_PIXELDIT if has_classes else TEXT_PIXELDIT
    if depth_of(state, "text_refine_blocks") and "pos_embed" in state:
        return TEXT_JIT
    if "in_context_posemb" in state or (has_classes and "pos_embed" in state):
        return CLASS_JIT
    return None


def checked_kind(family: Family, copies: Copies, path: str | Path) -> str:
    """The network in a file, which must be one of the family.

    Raises:
        UserError: it is not; the sentence says which family it is of.
    """
    kind = kind_of(copies.best)
    if kind is None:
        raise UserError(
            f"ckpt must hold a network of {family}, got {path} with {other_name(copies.best)}. "
            f"Known are {', '.join(KINDS)}."
        )
    if fits(family, kind, copies.container):
        return kind
    right = next(name for name in reversed(KINDS) if fits(name, kind, copies.container))
    raise UserError(
        f"--from must be what the file holds, got {family} for {path}, which holds {kind}. Give "
        f"--from {right}."
    )


def fits(family: str, kind: str, container: Container) -> bool:
    """Whether a family publishes this network in this kind of file."""
    own = CONTAINERS.get(family)
    return kind in KINDS[family] and (kind != CLASS_JIT or container in (own, "plain"))


def other_name(state: Mapping[str, Tensor]) -> str:
    """What a network that cannot be converted is, for a person."""
    for name in state:
        if name.startswith("dec_net."):
            return "DeCo's network, which is not converted"
        if ".param_generator1." in name:
            return "PixNerd's network, which is not converted"
    first = ", ".join(list(state)[:3])
    return f"tensors of another one ({first}, …)"


def plan_of(
    family: Family, kind: str, state: Mapping[str, Tensor], in_context_start: int | None
) -> Plan:
    """How a network becomes ours."""
    if kind == CLASS_PIXELDIT:
        return pixeldit.class_plan(state)
    if kind == TEXT_PIXELDIT:
        return pixeldit.text_plan(state)
    if kind == TEXT_JIT:
        return text_jit.text_plan(state)
    return jit.class_plan(state, in_context_start, dropout_of(family, depth_of(state, "blocks")))


def dropout_of(family: Family, depth: int) -> float:
    """What the published training of a JiT of this depth dropped."""
    if family == "pixelgen":
        return PIXELGEN_XL_DROPOUT if depth == PIXELGEN_XL_DEPTH else 0.0
    return JIT_LARGE_DROPOUT if depth >= JIT_LARGE_DEPTH else 0.0
