"""Learning rates over the optimizer steps.

A schedule keeps no state: resumed at step k it goes on as if it had never stopped, and one that is
changed in the config counts from then on.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from pixelhdm.errors import UserError, check_at_least


class Schedule(ABC):
    """Base of all schedules: factor of every learning rate at each optimizer step.

    factor(step) = min(1, (step + 1) / warmup_steps) curve(steps since the peak), where the peak is
    the last step of the warm-up, and without one the first step.
    """

    warmup_steps: int = 0

    def factor(self, step: int, total_steps: int | None) -> float:
        """The factor at optimizer step `step`, from 0.

        Args:
            step: number of optimizer steps done.
            total_steps: optimizer steps of the whole run; None if it has no known end.
        """
        warmup = max(self.warmup_steps, 1)
        curve = self.curve(max(0, step + 1 - warmup), total_steps)
        return min(1.0, (step + 1) / warmup) * curve

    @abstractmethod
    def curve(self, step: int, total_steps: int | None) -> float:
        """The factor `step` steps after the peak, where it is 1."""


@dataclass(frozen=True)
class ConstantSchedule(Schedule):
    """The learning rate as given, after a linear warm-up.

    Args:
        warmup_steps: optimizer steps of the warm-up.
    """

    warmup_steps: int = 0

    def __post_init__(self) -> None:
        check_at_least(0, warmup_steps=self.warmup_steps)

    def curve(self, step: int, total_steps: int | None) -> float:
        return 1.0


@dataclass(frozen=True)
class CosineSchedule(Schedule):
    """Half a cosine from the peak down to `final`, reached when the last step is done
    (arXiv:1608.03983, eq. 5, without restarts).

    Args:
        warmup_steps: optimizer steps of the linear warm-up.
        total_steps: optimizer steps to the end, the warm-up included; empty takes the run's.
        final: factor at the end and after it, 0 … 1.
    """

    warmup_steps: int = 0
    total_steps: int | None = None
    final: float = 0.0

    def __post_init__(self) -> None:
        check_at_least(0, warmup_steps=self.warmup_steps)
        if self.total_steps is not None:
            check_at_least(self.warmup_steps + 1, total_steps=self.total_steps)
        check_fractions(final=self.final)

    def curve(self, step: int, total_steps: int | None) -> float:
        total = total_steps if self.total_steps is None else self.total_steps
        if total is None:
            raise UserError(
                "total_steps of CosineSchedule must be known, got none and a run without an end. "
                "Set it, or trainer.max_steps."
            )
        length = max(total - max(self.warmup_steps, 1) + 1, 1)
        return cosine(1.0, self.final, min(step / length, 1.0))


@dataclass(frozen=True)
class SteppedCosineRestart(Schedule):
    """Cosines of `period_steps` from a peak to a trough, both `decay` times lower at each restart.

    trough_n + (peak_n - trough_n) (1 + cos(pi k / period_steps)) / 2 in the k-th step of cycle n,
    with peak_n = max(floor, decay^n) and trough_n = max(floor, trough decay^n): warm restarts
    (arXiv:1608.03983, eq. 5) with falling ends. The trough itself is never reached.

    Args:
        period_steps: optimizer steps of a cycle.
        warmup_steps: optimizer steps of the linear warm-up; its last is the first of cycle 0.
        trough: lower end of cycle 0, 0 … 1.
        decay: factor of both ends at each restart, 0 … 1.
        floor: what neither end falls below, 0 … 1.
    """

    period_steps: int
    warmup_steps: int = 0
    trough: float = 0.5
    decay: float = 0.9
    floor: float = 0.1

    def __post_init__(self) -> None:
        check_at_least(1, period_steps=self.period_steps)
        check_at_least(0, warmup_steps=self.warmup_steps)
        check_fractions(trough=self.trough, decay=self.decay, floor=self.floor)

    def curve(self, step: int, total_steps: int | None) -> float:
        cycle, since = divmod(step, self.period_steps)
        fallen = self.decay**cycle
        peak, trough = max(self.floor, fallen), max(self.floor, self.trough * fallen)
        return cosine(peak, trough, since / self.period_steps)


def cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine from `start` at progress 0 to `end` at progress 1."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def check_fractions(**values: float) -> None:
    """Raise a UserError that names the first of `values` outside 0 … 1."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise UserError(f"{name} must lie in 0 … 1, got {value}.")
