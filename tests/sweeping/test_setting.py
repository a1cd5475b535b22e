import pytest

from pixelhdm.inference.draw import Drawing
from pixelhdm.inference.guidance import Guidance
from pixelhdm.inference.samplers import AdamsSampler, EulerSampler, HeunSampler
from pixelhdm.inference.time_grid import TimeGrid
from pixelhdm.sweeping.axes import Axes
from pixelhdm.sweeping.cost import cost
from pixelhdm.sweeping.setting import Setting, combinations, drawing_of, plain
from pixelhdm.training.flow import FlowMatching

OWN = Drawing(HeunSampler(20), Guidance(2.0, interval=(0.1, 0.9), rescale=0.5), TimeGrid())


def test_what_is_left_out_is_the_runs():
    own = Setting("run", "HeunSampler", 20, (0.1, 0.9), 2.0)
    assert combinations(Axes(), OWN, "ema") == [own]
    assert combinations(Axes(), OWN, "raw") == [own._replace(ema="raw")]
    axes = Axes(scales=[1.0, 3.0], samplers=[EulerSampler(), AdamsSampler()])
    assert combinations(axes, OWN, "ema") == [
        own._replace(solver=solver, scale=scale)
        for solver in ("EulerSampler", "AdamsSampler order=2")
        for scale in (1.0, 3.0)
    ]


def test_every_combination_comes_once_and_an_average_at_a_stretch():
    axes = Axes([1.5, 2.0], [(0.0, 1.0), (0.1, 0.9)], [5, 9], [EulerSampler()], [0.05, "run"])
    settings = combinations(axes, OWN, "ema")
    assert len(set(settings)) == len({setting.name for setting in settings}) == 16
    assert [setting.ema for setting in settings] == ["0.05"] * 8 + ["run"] * 8


def test_without_guidance_the_interval_is_nothing():
    axes = Axes([1.0, 2.0], [(0.0, 1.0), (0.1, 0.9)])
    settings = combinations(axes, OWN, "ema")
    drawn = [plain(setting, OWN.guidance) for setting in settings]
    assert len(set(drawn)) == 3
    assert drawn[0] == drawn[2] == settings[0]._replace(interval=None)
    assert (drawn[1], drawn[3]) == (settings[1], settings[3])
    rising = Guidance(1.0, "linear", end_scale=3.0)  # scale 1 at the beginning alone
    assert plain(settings[0], rising) == settings[0]


def test_a_setting_changes_nothing_else_of_how_the_run_draws():
    samplers = {"HeunSampler": HeunSampler(50)}
    drawing = drawing_of(Setting("run", "HeunSampler", 7, (0.2, 0.8), 3.0), OWN, samplers)
    assert (drawing.sampler.num_steps, drawing.guidance.scale) == (7, 3.0)
    assert (drawing.guidance.interval, drawing.guidance.rescale) == ((0.2, 0.8), 0.5)
    assert (OWN.guidance.scale, OWN.guidance.interval) == (2.0, (0.1, 0.9))
    plainly = drawing_of(Setting("run", "HeunSampler", 7, None, 1.0), OWN, samplers)
    assert plainly.guidance.is_off


def test_names_are_those_of_files():
    setting = Setting("0.05", "SDESampler eta=0.5", 25, (0.1, 1.0), 1.5)
    assert setting.name == "ema=0.05_SDESampler_eta=0.5_steps=25_scale=1.5_interval=0.1-1"
    unguided = "ema=0.05_SDESampler_eta=0.5_steps=25_scale=1"
    assert setting._replace(interval=None, scale=1.0).name == unguided
    assert setting.words() == "scale 1.5, interval 0.1-1, SDE eta=0.5, 25 steps, EMA 0.05"
    assert setting._replace(interval=None, ema="raw").words(["ema", "interval"]) == "raw weights"


@pytest.mark.parametrize("sampler", [EulerSampler(10), HeunSampler(10), AdamsSampler(10, 3)])
def test_predictions_are_two_a_call_inside_the_interval(sampler):
    flow, grid = FlowMatching(), TimeGrid()
    drawing = Drawing(sampler, Guidance(2.0), grid)
    found = cost(drawing, flow, 8, 8)
    assert found == (drawing.num_calls, 2 * drawing.num_calls)
    assert cost(drawing._replace(guidance=Guidance(1.0)), flow, 8, 8).passes == found.calls


def test_predictions_of_eulers_steps_are_known():
    full = TimeGrid("full")  # asked at 0, 0.1, … 0.9
    drawing = Drawing(EulerSampler(10), Guidance(2.0, interval=(0.25, 0.65)), full)
    assert cost(drawing, FlowMatching(), 8, 8) == (10, 14)  # 0.3, 0.4, 0.5, 0.6
