"""What differs between a checkpoint and a config, and the likely cause."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from pixelhdm.checkpoints import EMA_PREFIX, LOSS_PREFIX, PROFILES_PREFIX
from pixelhdm.errors import UserError, counted

State = Mapping[str, Tensor]
EMBEDDING = "network.patch_embedding."
PATCHES = (f"{EMBEDDING}0.weight", f"{EMBEDDING}weight")
WIDE = ("network.patch_blocks.", "network.blocks.", "network.text_blocks.")  # of width hidden_dim
BLOCKS = (*WIDE, "network.pixel_")
CLASS_TABLE, POSITION = "conditioner.pooled.weight", "conditioner.position"
TEXT_PROJECTIONS = ("conditioner.token_projection.weight", "conditioner.projection.weight")


def profiles_in(state: Iterable[str]) -> str:
    """The sigma_rel of the profiles whose averages are among these keys, as text."""
    names = {key.split(".")[1] for key in state if key.startswith(PROFILES_PREFIX)}
    return ", ".join(sorted(name.replace("_", ".") for name in names)) or "none"


def check_fit(expected: State, found: State, source: str) -> None:
    """Raise a UserError that says what differs, and why, unless keys and shapes are the same."""
    if profiles_in(expected) != profiles_in(found):
        raise UserError(
            f"ema.sigma_rel must be what the run was started with, {profiles_in(found)} in "
            f"{source}, got {profiles_in(expected)}. An average over all steps cannot begin later: "
            "for another one start a new run, with --model.init_from."
        )
    missing = [key for key in expected if key not in found]
    extra = [key for key in found if key not in expected]
    other = [key for key in expected if key in found and found[key].shape != expected[key].shape]
    shapes = [
        f"{key} {tuple(found[key].shape)} in the checkpoint, {tuple(expected[key].shape)} in the "
        "config"
        for key in other
    ]
    parts = [
        counted(names, what)
        for what, names in (
            ("tensors it lacks", missing),
            ("tensors the config has no place for", extra),
            ("other shapes", shapes),
        )
        if names
    ]
    if parts:
        remedy = remedy_for(expected, found, {*missing, *extra}, set(other))
        raise UserError(
            f"checkpoint {source} does not fit the config: {'; '.join(parts)}. {remedy}"
        )


def remedy_for(expected: State, found: State, names: set[str], shapes: set[str]) -> str:
    """The likely cause of names that only one of both has and of other shapes, and what helps."""
    if all(key.startswith(LOSS_PREFIX) for key in names | shapes):
        return (
            "Keep the losses that it was trained with (--repa_early_stop.step=0 ends REPA), or "
            "start a new run from its weights with --model.init_from."
        )
    names, shapes = ({key.removeprefix(EMA_PREFIX) for key in keys} for keys in (names, shapes))
    cause = of_network(expected, found, names, shapes) or of_conditioner(expected, names, shapes)
    likely = f"The likely cause: another {cause}. " if cause else ""
    return f"{likely}Use the config that it was trained with."


def of_network(expected: State, found: State, names: set[str], shapes: set[str]) -> str | None:
    """What of the network is another; its width also changes the conditioner's shapes."""
    own = {key for key in names if key.startswith("network.")}
    if own and all(key.startswith(EMBEDDING) for key in own):
        return "network size (bottleneck_dim)"
    differs_both_ways = 0 < len(own & expected.keys()) < len(own)
    if differs_both_ways or not all(key.startswith(BLOCKS) for key in own):
        return "network class"
    if any(key.startswith(WIDE) for key in shapes):
        return "network size (hidden_dim, or number and width of heads)"
    for key in shapes.intersection(PATCHES):
        if expected[key].shape[1] != found[key].shape[1]:
            return "patch size"
    if any(key.startswith("network.") for key in shapes):
        return "network size (bottleneck_dim or pixel_dim)"
    return "network size (depth, patch_depth or pixel_depth)" if own else None


def of_conditioner(expected: State, names: set[str], shapes: set[str]) -> str | None:
    """What of the conditioner is another, where the network is the same."""
    if not all(key.startswith("conditioner.") for key in names | shapes):
        return None
    if CLASS_TABLE in names and not names.isdisjoint(TEXT_PROJECTIONS):
        config, checkpoint = ("class", "text") if CLASS_TABLE in expected else ("text", "class")
        return f"conditioner ({checkpoint}-conditional checkpoint, {config}-conditional config)"
    if any("null_" in key for key in names):
        return "null condition (learned or empty)"
    if shapes == {POSITION}:
        return "max_length of the texts"
    if CLASS_TABLE in shapes:
        return "number of classes"
    return "conditioner or text encoder width"
