"""The command `convert`: published weights as a folder that draws and trains on."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from pixelhdm.checkpoints import EMA_PREFIX
from pixelhdm.converting.families import (
    CLASS_JIT,
    TEXT_KINDS,
    TEXT_PIXELDIT,
    Family,
    checked_kind,
    plan_of,
)
from pixelhdm.converting.files import Copies, read_copies
from pixelhdm.converting.folder import check_empty, write_folder
from pixelhdm.converting.instruction import read_text
from pixelhdm.converting.moves import check_state, converted
from pixelhdm.converting.plan import Plan
from pixelhdm.converting.settings import LICENCES, config_text, drawing_of
from pixelhdm.errors import UserError, check_at_least, check_one_of
from pixelhdm.inference.exports.parts import build
from pixelhdm.inference.exports.trained import CONFIG
from pixelhdm.mismatch import check_fit
from pixelhdm.models.network import Network

Chosen = Literal["both", "ema", "raw"]
SIDES = {"pixeldit": 256, "pixeldit_t2i": 1024}  # of those whose weights do not tell
FROM = (
    "which network the file holds; pixelgen's are for classes or texts. Licences of the weights, "
    "which PixelHDM does not ship: "
    + "; ".join(f"{name} {licence}" for name, licence in LICENCES.items())
    + "."
)


def convert(
    family: Family,
    ckpt: str,
    out: str,
    weights: Chosen = "both",
    image_size: int | None = None,
    in_context_start: int | None = None,
    text_encoder: str | None = None,
    instruction: str | None = None,
) -> None:
    """Convert a published network's weights into a folder that draws and trains on.

    The folder looks like that of a run: config.yaml, with the sampling settings of the authors, and
    a checkpoint. Every name and shape is checked.

    Args:
        family: which network the file holds; --from on the command line.
        ckpt: the official file, or its tensors as .safetensors.
        out: folder to write; new or empty.
        weights: which of the file's: both keeps the raw ones to train on from and the average to
            draw with; ema or raw take one of them for both. A file with one has it as both.
        image_size: side in pixels of drawn images; empty takes what JiT's and PixelGen's weights
            tell, 256 for pixeldit and 1024 for pixeldit_t2i. Give 512 for their models of that
            size, which draw with other settings.
        in_context_start: first block, from 0, that sees the class's tokens; empty takes JiT's own,
            by depth.
        text_encoder: folder or Hub name of the text encoder; empty names the published one.
        instruction: file with the text that PixelDiT-T2I's encoder reads before every caption: the
            YAML of a stage in its repository (text_encoder.chi_prompt), or a text file with the
            same lines. Without it captions are understood worse.

    Raises:
        UserError: the file is torn or holds something else, or the folder holds files.
    """
    check_one_of(Family, family=family)
    check_one_of(Chosen, weights=weights)
    check_at_least(1, image_size=1 if image_size is None else image_size)
    check_empty(Path(out))
    copies = read_copies(ckpt)
    kind = checked_kind(family, copies, ckpt)
    if in_context_start is not None and kind != CLASS_JIT:
        raise UserError(f"in_context_start must be empty for {kind}, got {in_context_start}.")
    plan = plan_of(family, kind, copies.best, in_context_start)
    side = check_side(plan, image_size or plan.side or SIDES[family])
    plan.conditioner["init_args"] |= text_settings(kind, text_encoder, instruction)
    state = state_of(copies, plan, weights, f"{kind} in {ckpt}")
    drawing = drawing_of(family, kind, plan, side, copies.step)
    text = config_text(family, plan, drawing, side, out, Path(ckpt).name)
    origin = {"source": Path(ckpt).name, "licence": LICENCES[family]}
    write_folder(Path(out), state, copies.step, origin, text)
    report(family, kind, plan, copies, weights, state, out)


def check_side(plan: Plan, side: int) -> int:
    """The side of drawn images; raise a UserError unless the network takes it."""
    patch = plan.network["init_args"]["patch_size"]
    if side % patch:
        raise UserError(f"image_size must be a multiple of the patch size {patch}, got {side}.")
    return side


def text_settings(kind: str, encoder: str | None, instruction: str | None) -> dict[str, str]:
    """What a person says of the text encoder, as arguments of the conditioner."""
    if kind not in TEXT_KINDS and (encoder or instruction):
        name, value = ("text_encoder", encoder) if encoder else ("instruction", instruction)
        raise UserError(f"{name} must be empty for a network of classes, got {value}.")
    settings = {} if encoder is None else {"source": encoder}
    return settings if instruction is None else settings | {"instruction": read_text(instruction)}


def state_of(copies: Copies, plan: Plan, weights: Chosen, what: str) -> dict[str, Tensor]:
    """The state of a checkpoint of ours: raw weights and average."""
    for name, copy in (("raw", copies.raw), ("ema", copies.ema)):
        if copy is None and weights == name:
            raise UserError(f"weights must be in the file, got {weights} for {what} without them.")
        if copy is not None:
            check_state(plan.moves, plan.fixed, copy, what)
    raw, ema = copies.raw or copies.ema, copies.ema or copies.raw
    if weights != "both":
        raw = ema = copies.raw if weights == "raw" else copies.ema
    ours = converted(plan.moves, raw)
    average = ours if ema is raw else converted(plan.moves, ema)
    check_network(plan, ours, what)
    return ours | {EMA_PREFIX + name: value for name, value in average.items()}


def check_network(plan: Plan, state: Mapping[str, Tensor], what: str) -> None:
    """Raise a UserError unless our network takes the converted tensors, each in its shape."""
    with torch.device("meta"):
        built = build({"network": Network}, [{"network": plan.network}], has_imports=False)
    own = {f"network.{name}": v for name, v in built.parts["network"].state_dict().items()}
    check_fit(own, {name: v for name, v in state.items() if name.startswith("network.")}, what)


def report(
    family: Family,
    kind: str,
    plan: Plan,
    copies: Copies,
    weights: Chosen,
    state: Mapping[str, Tensor],
    out: str,
) -> None:
    """Say what was written, under which licence, and how it is used."""
    own = [value for name, value in state.items() if not name.startswith(EMA_PREFIX)]
    held = [name for name, copy in (("raw", copies.raw), ("ema", copies.ema)) if copy is not None]
    kept = held if weights == "both" else [weights]
    after = f" after {copies.step:,} steps" if copies.step else ""
    print(
        f"Wrote {out}: {kind}{after}, {len({move.theirs for move in plan.moves})} tensors, "
        f"{sum(value.numel() for value in own):,} parameters, {' and '.join(kept)} weights."
    )
    if len(kept) == 1:
        print(f"They are the raw weights and the average of the folder at once ({kept[0]}).")
    print(f"Licence of the weights: {LICENCES[family]}.")
    if kind == TEXT_PIXELDIT and "instruction" not in plan.conditioner["init_args"]:
        print(
            "These weights were trained with an instruction before every caption, which their "
            "repository has; without --instruction captions are understood worse."
        )
    config, main = str(Path(out) / CONFIG), ["python", "main.py"]
    base = f"configs_{'t2i' if kind in TEXT_KINDS else 'c2i'}/base.yaml"
    start = ["--model.init_from", out, "--trainer.default_root_dir", "runs/YOURS"]
    for what, words in (
        ("Draw:", ["predict", "-c", config, "--ckpt_path", "last"]),
        ("Draw on a page:", ["demo", "--model", out]),
        ("Fine-tune:", ["fit", "-c", base, "-c", config, "-c", "YOURS.yaml", *start]),
    ):
        print(f"{what:<16}{shlex.join([*main, *words])}")
