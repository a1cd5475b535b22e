"""Settings of optimizer and schedule when a run is resumed: those of the config win."""

from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from torch.optim import Optimizer, RMSprop

from pixelhdm.errors import UserError
from pixelhdm.training.optim.schedules import Schedule

OWN = ("params", "lr")  # of the optimizer that is resumed; lr follows from initial_lr
# Switched on, they ask for a memory that the saved state does not have.
NEEDS_STATE = ("amsgrad", "centered")
NEEDS_STATE_IN_RMSPROP = ("momentum", *NEEDS_STATE)


def class_name(optimizer: Optimizer) -> str:
    """Package and class of an optimizer; several packages have one of the same name."""
    return f"{type(optimizer).__module__.split('.')[0]}.{type(optimizer).__name__}"


def describe(schedule: Schedule, total_steps: int | None) -> str:
    """A schedule in words."""
    run = "a run without end" if total_steps is None else f"a run of {total_steps} steps"
    return f"{schedule!r} over {run}"


def keep_settings(state: dict[str, Any], saved_class: str, fresh: Optimizer) -> None:
    """Put the config's learning rate and other settings into a saved optimizer state.

    A saved state carries the settings of its own run, which would silently replace those that the
    resumed run was given.

    Args:
        state: the saved state, changed in place.
        saved_class: `class_name` of the optimizer that it belongs to.
        fresh: the optimizer as the config asks for it.

    Raises:
        UserError: the state belongs to another optimizer, or lacks what a setting needs.
    """
    name = class_name(fresh)
    if saved_class != name:
        raise UserError(
            f"a resumed run must keep its optimizer {saved_class}, got {name}. Restore it, or "
            "start a new run from the weights with --model.init_from."
        )
    needs_state = NEEDS_STATE_IN_RMSPROP if isinstance(fresh, RMSprop) else NEEDS_STATE
    changes = {}  # several groups may have one role
    for old, new in zip(state["param_groups"], fresh.param_groups, strict=True):
        for key, value in new.items():
            if key in needs_state and value and not old.get(key):
                raise UserError(
                    f"a resumed run must keep {key}={old.get(key)}, got {value}. Restore it, or "
                    "start a new run from the weights with --model.init_from."
                )
            if key not in OWN and old.get(key) != value:
                shown = "lr" if key == "initial_lr" else key
                changes[f"{shown}={value} (was {old.get(key)}) for {new['role']} weights"] = None
                old[key] = value
    for change in changes:
        rank_zero_info(f"Resuming with {change}.")
