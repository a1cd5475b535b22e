"""Settings that predict compares."""

import math
from dataclasses import dataclass

from pixelhdm.data.variants import Variant
from pixelhdm.errors import UserError, check_at_least
from pixelhdm.inference.samplers import Sampler

MANY = 2000  # pictures


@dataclass(frozen=True)
class Sweep:
    """What predict compares: each image is drawn with every scale, number of steps and solver, and
    sheets show them side by side.

    Args:
        scales: strengths of the guidance, a column each; empty takes the run's, or a prompt's own.
        steps: numbers of steps, a row each with every solver; empty takes each solver's own.
        samplers: solvers; empty takes the run's.
    """

    scales: list[float] | None = None
    steps: list[int] | None = None
    samplers: list[Sampler] | None = None

    def __post_init__(self) -> None:
        for name, given in vars(self).items():
            if given is not None and not given:
                raise UserError(f"sweep.{name} must hold something or be left out, got [].")
        for number in self.steps or []:
            check_at_least(1, **{"sweep.steps": number})
        if not all(map(math.isfinite, self.scales or [])):
            raise UserError(f"sweep.scales must be finite numbers, got {self.scales}.")

    def solvers(self, own: Sampler) -> list[Sampler]:
        """All solvers; `own` is the run's."""
        return self.samplers or [own]

    def by_name(self, own: Sampler) -> dict[str, Sampler]:
        """All solvers by what tells them apart."""
        return {described(sampler): sampler for sampler in self.solvers(own)}

    def variants(self, own: Sampler) -> list[Variant]:
        """All combinations, by solver, steps and scale.

        Raises:
            UserError: one comes twice.
        """
        variants = [
            Variant(described(sampler), num_steps, scale)
            for sampler in self.solvers(own)
            for num_steps in self.steps or [sampler.num_steps]
            for scale in self.scales or [None]
        ]
        names = [variant.file_name for variant in variants]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(
                "sweep must hold different settings, got two times "
                f"{twice[0].rpartition('.')[0]}. Leave one out."
            )
        return variants


def described(sampler: Sampler) -> str:
    """A solver's class and settings but its steps, in a few words."""
    settings = {name: value for name, value in vars(sampler).items() if name != "num_steps"}
    words = (
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in settings.items()
    )
    return " ".join([type(sampler).__name__, *words])
