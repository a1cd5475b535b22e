"""Settings of optimizer and schedule when a run is resumed: the config's win."""

from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from torch.optim import Optimizer

from pixelhdm.errors import UserError
from pixelhdm.training.optim.schedules import Schedule

OWN = ("params", "lr")  # of the optimizer that is resumed; lr follows from initial_lr


def describe(optimizer: Optimizer, schedule: Schedule) -> dict[str, str]:
    """What a checkpoint tells of them beside the optimizer's state."""
    return {"optimizer": type(optimizer).__name__, "schedule": repr(schedule)}


def keep_settings(
    saved: dict[str, str], state: dict[str, Any], fresh: Optimizer, schedule: Schedule
) -> None:
    """Put the config's learning rate and other settings into a saved optimizer state.

    A saved state carries the settings of its own run, which would silently replace those that the
    resumed run was given.

    Args:
        saved: what `describe` gave when the state was saved.
        state: the saved state of the optimizer, changed in place.
        fresh: the optimizer as the config asks for it.
        schedule: the schedule as the config asks for it.

    Raises:
        UserError: the state belongs to another optimizer.
    """
    given = describe(fresh, schedule)
    if saved["optimizer"] != given["optimizer"]:
        raise UserError(
            f"a resumed run must keep its optimizer {saved['optimizer']}, got "
            f"{given['optimizer']}. Restore it, or start a new run from the weights with "
            "--model.init_from."
        )
    if saved["schedule"] != given["schedule"]:
        rank_zero_info(f"Resuming with {given['schedule']} (was {saved['schedule']}).")
    for old, new in zip(state["param_groups"], fresh.param_groups, strict=True):
        for key, value in new.items():
            if key not in OWN and old.get(key) != value:
                name = "lr" if key == "initial_lr" else key
                rank_zero_info(
                    f"Resuming with {name}={value} (was {old.get(key)}) for {new['role']} weights."
                )
                old[key] = value
