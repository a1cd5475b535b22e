import math

import pytest

from pixelhdm.errors import UserError
from pixelhdm.inference.samplers import AdamsSampler, EulerSampler
from pixelhdm.sweeping.axes import Axes


def test_a_range_of_scales_has_both_ends_without_rounding():
    scales = Axes(scales="1..4/0.1").scale_list
    assert scales == [number / 10 for number in range(10, 41)]
    assert Axes(scales="-1..1/0.75").scale_list == [-1, -0.25, 0.5]
    assert Axes(scales="2..2/1").scale_list == [2]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"scales": []}, r"sweep\.scales must hold something or be left out, got \[\]"),
        ({"emas": []}, r"sweep\.emas must hold something"),
        (
            {"scales": [1.0, 2.0, 1.0]},
            r"scales must hold different settings, got 1\.0 twice",
        ),
        ({"samplers": [EulerSampler(), EulerSampler()]}, "got EulerSampler twice"),
        ({"scales": [math.inf]}, "must be finite numbers"),
        ({"scales": "1 to 4"}, r"a list of numbers or from\.\.to/step, as 1\.\.4/0\.1, got 1 to 4"),
        ({"scales": "1..4/0"}, r"from\.\.to/step"),
        ({"scales": "1.2.3..4/1"}, r"from\.\.to/step"),
        ({"scales": "4..1/0.1"}, "must be 1 … 1000 numbers, got -29"),
        ({"scales": "1..4/0.0001"}, "must be 1 … 1000 numbers, got 30001"),
        ({"steps": [0]}, r"sweep\.steps must be at least 1"),
        ({"intervals": [(0.5, 0.2)]}, "interval must be two rising times"),
        ({"emas": [0.9]}, "sigma_rel must be above 0 and at most"),
        ({"samplers": [EulerSampler(7)]}, "must have no num_steps of their own, got 7 for Euler"),
        ({"num_grids": -1}, r"sweep\.num_grids must be at least 0"),
    ],
)
def test_axes_that_cannot_be_meant(given, words):
    with pytest.raises(UserError, match=words):
        Axes(**given)


def test_solvers_that_differ_in_their_settings_are_different():
    Axes(samplers=[AdamsSampler(order=2), AdamsSampler(order=3)], emas=["run", "raw", 0.05])
