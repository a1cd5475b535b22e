from pixelhdm.inference.draw import Drawing
from pixelhdm.inference.guidance import Guidance
from pixelhdm.inference.samplers import EulerSampler, HeunSampler
from pixelhdm.inference.time_grid import TimeGrid
from pixelhdm.sweeping.axes import Axes
from pixelhdm.sweeping.grids import thinned
from pixelhdm.sweeping.layout import grouped, layout_of
from pixelhdm.sweeping.setting import combinations

OWN = Drawing(HeunSampler(20), Guidance(2.0), TimeGrid())
BOTH = [EulerSampler(), HeunSampler()]


def layout(**axes):
    return layout_of(combinations(Axes(**axes), OWN, "ema"))


def test_the_scale_is_along_and_the_rest_are_lines():
    found = layout(scales=[1.0, 2.0], samplers=BOTH, emas=["run", "raw", 0.05])
    assert (found.along, found.lines, found.panels) == ("scale", ["ema", "solver"], [])
    assert found.fixed == ["steps", "interval"]
    assert layout(steps=[5, 10], samplers=BOTH)[:2] == ("steps", ["solver"])
    assert layout()[:3] == ("scale", [], [])


def test_too_many_lines_become_panels():
    found = layout(
        scales="1..2/0.5",
        intervals=[(0.0, 1.0), (0.1, 1.0)],
        steps=[25, 50],
        samplers=BOTH,
        emas=[0.05, 0.1, "run"],
    )
    assert (found.lines, found.panels) == (["ema", "solver"], ["interval", "steps"])


def test_groups_keep_their_order_and_hold_every_setting():
    axes = Axes(scales=[3.0, 1.0], samplers=BOTH, emas=["run", "raw"])
    settings = combinations(axes, OWN, "ema")
    groups = grouped(settings, ["solver"])
    assert [{own.solver for own in group} for group in groups] == [
        {"EulerSampler"},
        {"HeunSampler"},
    ]
    assert [own.scale for own in groups[0]] == [3.0, 1.0, 3.0, 1.0]
    assert sorted(own for group in groups for own in group) == sorted(settings)


def test_many_columns_are_thinned_to_both_ends_and_the_best():
    scales = Axes(scales="1..4/0.1").scale_list
    kept = thinned(scales, 1.3)
    assert (kept[0], kept[-1], len(kept)) == (1.0, 4.0, 10)
    assert 1.3 in kept
    assert kept == sorted(kept)
    assert thinned(scales[:9], 1.3) == scales[:9]
