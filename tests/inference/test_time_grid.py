import math
from itertools import pairwise

import pytest

from pixelhdm.errors import UserError
from pixelhdm.inference.time_grid import TimeGrid, after
from pixelhdm.training.flow import FlowMatching

FLOW = FlowMatching()


def times(num_steps: int, flow: FlowMatching = FLOW, size: int = 64, **settings) -> list[float]:
    return TimeGrid(**settings).times(num_steps, flow, size, size)


def test_trained_times_end_with_the_last_jump_to_the_image():
    assert times(4) == pytest.approx([0.05, 0.35, 0.65, 0.95, 1.0])
    assert times(1) == [0.05, 1.0]
    assert times(3, FlowMatching(t_eps=0.2)) == pytest.approx([0.2, 0.5, 0.8, 1.0])


def test_full_times_are_all_of_them():
    assert times(4, span="full") == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert times(1, span="full") == [0.0, 1.0]


def test_shifted_full_times_are_pixelgens():
    found = times(5, span="full", shift=3.0)
    assert found == pytest.approx([0, 0.0769, 0.1818, 0.3333, 0.5714, 1], abs=5e-5)


def test_shifted_trained_times_are_where_training_shifts_them():
    """Shift, then squeeze into [t_eps, 1 - t_eps], as the training's times."""
    found = times(3, shift=3.0)
    assert found == pytest.approx([0.05, 0.05 + 0.9 * 0.25, 0.95, 1.0])
    assert times(3, shift=1 / 3) == pytest.approx([0.05, 0.05 + 0.9 * 0.75, 0.95, 1.0])


def test_the_flows_shift_grows_with_the_image():
    flow = FlowMatching(time_shift=2.0, reference_size=256, time_shift_power=0.5)
    for span in ("trained", "full"):
        for size, shift in ((256, 2.0), (1024, 4.0)):
            own = times(7, flow, size, span=span, shift="flow")
            assert own == pytest.approx(times(7, flow, size, span=span, shift=shift))


@pytest.mark.parametrize("span", ["trained", "full"])
@pytest.mark.parametrize("shift", [0.1, 1.0, 3.0, 30.0])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 50, 1000])
def test_times_rise_to_exactly_1(span, shift, num_steps):
    found = times(num_steps, span=span, shift=shift)
    assert len(found) == num_steps + 1
    assert all(t < t_next for t, t_next in pairwise(found))
    assert found[-1] == 1.0
    assert found[0] == (0.0 if span == "full" else FLOW.t_eps)


def test_a_way_that_begins_later_keeps_what_is_left():
    grid = times(5, span="full")
    assert after(grid, 0.0) == grid
    assert after(grid, 0.25) == pytest.approx([0.25, 0.4, 0.6, 0.8, 1.0])
    assert after(grid, 0.99) == [0.99, 1.0]


@pytest.mark.parametrize("num_steps", [1, 5, 50])
@pytest.mark.parametrize("span", ["trained", "full"])
def test_no_way_begins_with_a_step_much_shorter_than_the_next(num_steps, span):
    """0.1 - 2e-17 and 0.1, for example: multistep solvers would divide by 2e-17."""
    grid = times(num_steps, span=span)
    for number in range(1000):
        left = after(grid, max(1 - (number + 1) / 1000, grid[0]))
        steps = [t_next - t for t, t_next in pairwise(left)]
        assert left[-1] == 1.0
        assert min(steps) > 0
        assert len(steps) <= 2 or steps[0] >= steps[1] / 2  # the last step is Euler's


@pytest.mark.parametrize("shift", [0.0, -1.0, math.inf, math.nan])
def test_wrong_shift(shift):
    with pytest.raises(UserError, match="shift must be above 0 or flow, got"):
        TimeGrid(shift=shift)


def test_wrong_number_of_steps():
    with pytest.raises(UserError, match="num_steps must be at least 1, got 0"):
        times(0)
