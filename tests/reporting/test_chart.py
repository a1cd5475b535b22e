import json
import re

import numpy as np
import pytest

from pixelhdm.reporting.axes import Axis, axis_of
from pixelhdm.reporting.chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Line, line_chart
from pixelhdm.reporting.curves import Curve


def curve(steps, values) -> Curve:
    return Curve(np.array(steps, dtype=np.float64), np.array(values, dtype=np.float64))


def drawn(svg: str, kind: str = "path d") -> list[list[tuple[float, float]]]:
    """The points of all lines of a chart, the legend's left out."""
    paths = re.findall(rf'<{kind}="M([^"]*)"', svg.partition('viewBox="0 0 480')[2])
    return [[tuple(map(float, point.split())) for point in path.split("L")] for path in paths]


@pytest.mark.parametrize("is_log", [False, True])
def test_points_stand_where_their_values_belong(is_log):
    svg = line_chart("loss", [Line("a", curve([10, 20, 40], [1, 10, 100]))], may_be_log=is_log)
    (points,) = drawn(svg)
    facts = json.loads(re.search(r"json\">(.*)</script>", svg)[1])
    low, high, log = facts["y"]
    assert log == is_log
    scale = np.log if is_log else np.asarray
    share = (scale([1, 10, 100]) - scale(low)) / (scale(high) - scale(low))
    assert [x for x, _ in points] == pytest.approx(
        [LEFT, LEFT + (WIDTH - RIGHT - LEFT) / 3, WIDTH - RIGHT], abs=0.1
    )
    expected = HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)
    assert [y for _, y in points] == pytest.approx(expected, abs=0.1)
    assert facts["lines"] == [{"x": [10, 20, 40], "y": [1, 10, 100]}]
    assert "<b>100</b>" in svg


def test_many_points_are_smoothed_over_the_raw_ones_and_keep_their_extremes():
    values = np.ones(100_000)
    values[70_123] = 50
    svg = line_chart("loss", [Line("a", curve(np.arange(100_000), values), is_noisy=True)], True)
    (raw,), (smooth,) = drawn(svg, 'path class="raw" d'), drawn(svg)
    assert min(y for _, y in raw) == pytest.approx(TOP, abs=8)  # 50 is near the top
    assert min(y for _, y in smooth) > HEIGHT - BOTTOM - 10
    assert len(svg) < 60_000
    assert "mean of 2501 points" in svg


def test_texts_are_escaped_and_without_finite_values_there_is_no_chart():
    svg = line_chart("<b>&", [Line("</script>", curve([1], [1]))])
    assert "<b>&" not in svg
    assert svg.count("</script>") == 1
    assert line_chart("x", [Line("a", curve([1, 2], [np.nan, np.inf]))]) == ""
    assert line_chart("x", []) == ""


@pytest.mark.parametrize(
    ("low", "high", "is_log"),
    [(0, 1, False), (-3e-5, 2e-5, False), (0.1, 0.9, True), (1e-6, 1e5, True), (7, 7, True)],
)
def test_ticks_are_few_round_and_in_range(low, high, is_log):
    axis = axis_of(np.array([low, high], dtype=np.float64), is_log)
    ticks = axis.ticks()
    assert axis.is_log == (is_log and low < high)
    assert 2 <= len(ticks) <= 7
    assert all(axis.low <= tick <= axis.high for tick in ticks)
    assert all(len(f"{tick:.6g}".strip("-0.").replace(".", "")) <= 6 for tick in ticks)
    assert axis.place(np.array([axis.low, axis.high])) == pytest.approx([0, 1])


def test_numbers_that_may_be_negative_have_no_logarithmic_axis():
    assert axis_of(np.array([-0.1, 5.0]), True)[2] is False
    assert axis_of(np.array([2.0, 3.0]), True) == Axis(1.95, 3.05)
