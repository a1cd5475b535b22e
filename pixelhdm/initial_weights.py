"""What of a checkpoint a module takes: the weights alone, checked, with or without the average."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from pixelhdm.checkpoints import (
    EMA_PREFIX,
    LOSS_PREFIX,
    PROFILES_PREFIX,
    Weights,
    choose_weights,
    raw_in,
)
from pixelhdm.errors import UserError
from pixelhdm.mismatch import check_fit

State = Mapping[str, Tensor]
NO_AVERAGE = "--model.init_ema false, which starts an average from the trained weights"


class Start(NamedTuple):
    """What a module starts from.

    Attributes:
        state: its whole state.
        average_steps: optimizer steps that the average in it has seen.
        report: what was taken and what starts anew, for a person.
    """

    state: dict[str, Tensor]
    average_steps: int
    report: str


def fitting(own: State, chosen: State, source: str) -> dict[str, Tensor]:
    """The chosen weights, checked against a module's own raw ones; those of loss terms that it does
    not have are left out.
    """
    kept = {k: v for k, v in chosen.items() if k in own or not k.startswith(LOSS_PREFIX)}
    check_fit(own, kept, source)
    return kept


def start_from(
    checkpoint: Mapping[str, Any],
    own: State,
    weights: Weights,
    flag: str,
    carry: bool,
    source: str,
) -> Start:
    """The state of a module that starts a new run from the weights of a checkpoint.

    What a loss term has trained, such as a projector, starts anew where it is not there or has
    another shape. Profiles, and an average that is not carried, start from the chosen weights.

    Args:
        checkpoint: its content.
        own: the module's state so far, with the keys and shapes of the result.
        weights: which weights to take.
        flag: name of the setting that says so.
        carry: whether the module's average goes on from the checkpoint's.
        source: name of the checkpoint.

    Raises:
        UserError: it does not fit, or has no average where one is asked for.
    """
    raw, saved = raw_in(own), checkpoint["state_dict"]
    anew = {
        key: value
        for key, value in raw.items()
        if key.startswith(LOSS_PREFIX) and (key not in saved or saved[key].shape != value.shape)
    }
    saved = saved | anew
    chosen = choose_weights(saved, weights, source, f"--model.{flag} raw")
    average = chosen = fitting(raw, chosen, source)
    steps = 0
    if carry:
        average = fitting(raw, choose_weights(saved, "ema", source, NO_AVERAGE), source)
        steps = steps_of_average(checkpoint, source)
    state = {key: (average if key.startswith(EMA_PREFIX) else chosen)[raw_name(key)] for key in own}
    report = (
        f"{weights} weights of step {checkpoint.get('global_step', '?')} from {source}, "
        f"{len(raw) - len(anew)} tensors, none missing, none left over"
    )
    if any(key.startswith(EMA_PREFIX) for key in own):
        report += f"; the average {f'goes on after its {steps} steps' if carry else 'starts anew'}"
    unused = {key for key in saved if key.startswith(LOSS_PREFIX)} - chosen.keys()
    return Start(state, steps, report + other_fates(own, anew, unused))


def other_fates(own: Iterable[str], anew: Iterable[str], unused: Iterable[str]) -> str:
    """What became of a module's profiles and of tensors of loss terms, for a person."""
    has_profiles = any(key.startswith(PROFILES_PREFIX) for key in own)
    text = "; the averages of sigma_rel start anew" * has_profiles
    for keys, fate in ((anew, "starts anew"), (unused, "is left out")):
        for term, number in sorted(Counter(key.split(".")[2] for key in keys).items()):
            text += f"; {term} of the loss ({number} tensors) {fate}"
    return text


def raw_name(key: str) -> str:
    """The name of the raw weight that a key of a module's state belongs to."""
    return key.split(".", 2)[2] if key.startswith(PROFILES_PREFIX) else key.removeprefix(EMA_PREFIX)


def steps_of_average(checkpoint: Mapping[str, Any], source: str) -> int:
    """Optimizer steps that a checkpoint's average has seen, those of earlier stages among them."""
    if "global_step" not in checkpoint:
        raise UserError(
            f"checkpoint {source} must say after how many steps its average was taken, got no "
            f"global_step. Use {NO_AVERAGE}."
        )
    return checkpoint["global_step"] + checkpoint.get("training", {}).get("average_steps", 0)
