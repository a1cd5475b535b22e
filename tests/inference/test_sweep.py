import math

import pytest

from pixelhdm.data.draw_list import class_draws, prompt_draws
from pixelhdm.data.draws import Draws
from pixelhdm.data.prompt_fields import Prompt
from pixelhdm.data.prompts import PromptList
from pixelhdm.data.variants import Variant, varied
from pixelhdm.errors import UserError
from pixelhdm.inference.samplers import AdamsSampler, EulerSampler, HeunSampler, SDESampler
from pixelhdm.inference.sweep import Sweep, described

OWN = HeunSampler(20)


def test_what_is_left_out_is_the_runs():
    assert Sweep(scales=[1.0, 2.5]).variants(OWN) == [
        Variant("HeunSampler", 20, 1.0),
        Variant("HeunSampler", 20, 2.5),
    ]
    both = [EulerSampler(7), AdamsSampler(9, 3)]
    assert Sweep(samplers=both).variants(OWN) == [
        Variant("EulerSampler", 7, None),
        Variant("AdamsSampler order=3", 9, None),
    ]
    assert Sweep(samplers=both).by_name(OWN) == {
        "EulerSampler": both[0],
        "AdamsSampler order=3": both[1],
    }
    assert [v.num_steps for v in Sweep(steps=[3, 5], samplers=both).variants(OWN)] == [3, 5, 3, 5]


def test_settings_tell_solvers_apart():
    assert described(SDESampler(5, 0.5)) == "SDESampler eta=0.5"
    assert described(EulerSampler(5)) == described(EulerSampler(7)) == "EulerSampler"
    assert (
        Variant("SDESampler eta=0.5", 5, 2.5).file_name
        == "SDESampler_eta=0.5_steps005_scale2.5.png"
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"steps": [5, 0]}, "sweep.steps must be at least 1, got 0"),
        ({"scales": []}, "sweep.scales must hold something or be left out, got"),
        ({"scales": [math.nan]}, "sweep.scales must be finite numbers"),
        ({"steps": [5, 5]}, "different settings, got two times HeunSampler_steps005. Leave one"),
        ({"samplers": [EulerSampler(), EulerSampler()]}, "got two times EulerSampler_steps050"),
    ],
)
def test_sweeps_that_cannot_be_meant(given, words):
    with pytest.raises(UserError, match=words):
        Sweep(**given).variants(OWN)


def test_every_image_comes_with_all_variants_in_a_folder_of_its_own():
    variants = [Variant("A b", 5, None), Variant("A b", 5, 3.0)]
    drawn = varied(class_draws(Draws([3, 1], 2), (8, 8)), variants)
    assert drawn.layout == "sweep"
    assert [item.file for item in drawn.items[2:4]] == [
        "class0003_seed000001/A_b_steps005.png",
        "class0003_seed000001/A_b_steps005_scale3.png",
    ]
    assert [(item.group, item.seed) for item in drawn.items[::2]] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]
    assert {(item.sampler, item.num_steps) for item in drawn.items} == {("A b", 5)}
    own = prompt_draws(PromptList([Prompt("a", "1", scale=7.0)], "plain", ""), Draws(), (8, 8))
    assert [item.scale for item in varied(own, variants).items] == [7.0, 3.0]
    with pytest.raises(UserError, match="sweep must draw classes or prompts of one's own, got a"):
        varied(own._replace(layout="dpg"), variants)
