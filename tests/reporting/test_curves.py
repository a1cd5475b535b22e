import numpy as np
import pytest

from pixelhdm.errors import UserError
from pixelhdm.reporting.curves import Curve, read_curves, smoothed, thinned
from tests.reporting.runs import write_log


def points(curve: Curve) -> list[tuple[float, float]]:
    return list(zip(*(part.tolist() for part in curve), strict=True))


def test_steps_are_those_done_and_numbers_of_one_step_may_stand_in_several_rows(tmp_path):
    rows = [{"epoch": 0, "step": 9, "train/total": 2.0}, {"step": 9, "val/total": 1.5}]
    write_log(tmp_path, 0, [*rows, {"epoch": 1, "step": 19, "train/total": float("nan")}])
    curves = read_curves(tmp_path, [])
    assert curves.keys() == {"train/total", "val/total"}
    assert points(curves["val/total"]) == [(10, 1.5)]
    assert curves["train/total"].steps.tolist() == [10, 20]
    assert points(curves["train/total"].finite) == [(10, 2.0)]


@pytest.mark.parametrize("starts", [[0, 20, 35], []])
def test_of_steps_taken_twice_the_later_start_counts(tmp_path, starts):
    for version, steps in enumerate([(9, 19, 29, 39), (29, 39, 49), (39, 49)]):
        rows = [{"epoch": 0, "step": step, "a": 100 * version + step} for step in steps]
        write_log(tmp_path, version, rows)
    expected = [(10, 9), (20, 19), (30, 129), (40, 239), (50, 249)]
    assert points(read_curves(tmp_path, starts)["a"]) == expected


def test_a_start_voids_what_was_logged_after_it_even_where_it_has_logged_less(tmp_path):
    write_log(tmp_path, 0, [{"epoch": 0, "step": s, "a": s, "b": s} for s in (9, 19, 29)])
    write_log(tmp_path, 1, [{"epoch": 0, "step": 24, "a": 0.5}])
    (tmp_path / "logs/version_2").mkdir()
    curves = read_curves(tmp_path, [0, 15, 25])
    assert points(curves["a"]) == [(10, 9), (25, 0.5)]
    assert points(curves["b"]) == [(10, 9)]


def test_versions_are_in_order_of_their_numbers(tmp_path):
    for version in (2, 10):
        write_log(tmp_path, version, [{"epoch": 0, "step": 9, "a": version}])
    assert points(read_curves(tmp_path, [])["a"]) == [(10, 10)]


def test_line_that_is_being_written_is_left_out(tmp_path):
    write_log(tmp_path, 0, [{"epoch": 0, "step": 9, "a": 1.25}], end="1.75,0,1")
    assert points(read_curves(tmp_path, [])["a"]) == [(10, 1.25)]
    (tmp_path / "logs/version_0/metrics.csv").write_text("")
    assert read_curves(tmp_path, []) == {}


def test_damaged_file_is_named(tmp_path):
    write_log(tmp_path, 0, [{"epoch": 0, "step": 9, "a": 1}], end="broken,0,19\n")
    with pytest.raises(UserError, match=r"version_0/metrics.csv must hold rows of numbers"):
        read_curves(tmp_path, [])


def test_smoothing_is_the_mean_of_neighbours():
    values = np.random.default_rng(0).random(9)
    found = smoothed(Curve(np.arange(9.0), values), 5).values
    expected = [values[0], values[:3].mean(), *(values[i - 2 : i + 3].mean() for i in range(2, 7))]
    assert found == pytest.approx([*expected, values[5:].mean(), values[6:].mean()])


@pytest.mark.parametrize("num", [5, 1000, 99_991])
def test_thinning_keeps_ends_and_extremes(num):
    values = np.random.default_rng(0).normal(size=num)
    curve = thinned(Curve(np.arange(float(num)), values), 200)
    assert len(curve.steps) <= 202
    assert (np.diff(curve.steps) > 0).all()
    assert set(points(curve)) <= set(enumerate(values))
    for wanted in (0, num - 1, values.argmin(), values.argmax()):
        assert wanted in curve.steps
