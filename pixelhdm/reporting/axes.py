"""Where numbers stand in a chart, and which of them are named beside it."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

STEPS = (1, 2, 5, 10)
LEAST_RATIO = 3.0  # of highest and lowest value, for a logarithmic axis to be of use


class Axis(NamedTuple):
    """The range of an axis.

    Attributes:
        low: lowest number.
        high: highest number.
        is_log: whether it is logarithmic.
    """

    low: float
    high: float
    is_log: bool = False

    def place(self, values: Float64[np.ndarray, "N"]) -> Float64[np.ndarray, "N"]:
        """Where values stand, 0 at the low end, 1 at the high one."""
        if self.is_log:
            low, high = math.log(self.low), math.log(self.high)
            return (np.log(values) - low) / (high - low)
        return (values - self.low) / (self.high - self.low)

    def ticks(self, most: int = 6) -> list[float]:
        """Round numbers in its range."""
        if not self.is_log:
            return linear_ticks(self.low, self.high, most)
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for factors in ((1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
            found = [factor * 10.0**decade for decade in decades for factor in factors]
            found = [tick for tick in found if self.low <= tick <= self.high]
            if len(found) <= most:
                return found
        return found[:: -(-len(found) // most)]


def axis_of(values: Float64[np.ndarray, "N"], may_be_log: bool) -> Axis:
    """The axis that shows finite values; logarithmic where it may and they are far apart."""
    low, high = float(values.min()), float(values.max())
    if may_be_log and low > 0 and high / low >= LEAST_RATIO:
        margin = (high / low) ** 0.03
        return Axis(low / margin, high * margin, True)
    margin = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
    below = low - margin if low < 0 or low > 2 * margin else 0.0
    return Axis(below, high + margin)


def linear_ticks(low: float, high: float, most: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in STEPS if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]
