import logging
import warnings

import pytest
import torch

from pixelhdm.data.draw_list import class_draws, prompt_draws
from pixelhdm.data.draws import Draws
from pixelhdm.data.prompt_fields import Prompt
from pixelhdm.data.prompts import PromptList
from pixelhdm.errors import UserError
from pixelhdm.inference.drawable import check_drawable
from pixelhdm.inference.guidance import Guidance
from pixelhdm.models.conditioners.class_conditioner import ClassConditioner
from pixelhdm.models.conditioners.text_conditioner import TextConditioner
from pixelhdm.models.routing import TokenRouting
from tests.stubs import HashConditioner, Sized, tiny_network
from tests.tiny_qwen3 import save_tiny_qwen3

NETWORK = Sized(8, 4)


def items(*prompts: Prompt):
    return prompt_draws(PromptList(list(prompts), "plain", ""), Draws(num_images=2), (8, 8)).items


def test_a_size_that_does_not_fit_is_named_with_its_place():
    given = items(Prompt("a", "one"), Prompt("b", "two", height=10), Prompt("c", "three", height=6))
    with pytest.raises(UserError, match=r"two: image height .* got 10x8"):
        check_drawable(given, NETWORK, HashConditioner(8), Guidance())
    check_drawable(given[:2], NETWORK, HashConditioner(8), Guidance())
    with pytest.raises(UserError, match=r"data.draw: image height"):
        check_drawable(
            class_draws(Draws(1), (8, 7)).items, NETWORK, ClassConditioner(8, 10), Guidance()
        )


def test_conditions_must_suit_the_conditioner():
    with pytest.raises(UserError, match=r"got captions such as 'a'.* in the place of data.prompts"):
        check_drawable(items(Prompt("a", "one")), NETWORK, ClassConditioner(8, 10), Guidance())
    with pytest.raises(UserError, match="class must lie in 0 … 9"):
        check_drawable(
            class_draws(Draws([1, 10]), (8, 8)).items, NETWORK, ClassConditioner(8, 10), Guidance()
        )
    with pytest.raises(UserError, match="must say what to draw, got neither"):
        check_drawable([], NETWORK, ClassConditioner(8, 10), Guidance())


def test_a_prompt_beyond_the_limit_is_named_once_with_what_is_cut(tmp_path, caplog):
    conditioner = TextConditioner(8, str(save_tiny_qwen3(tmp_path)), max_length=12)
    long = "a photo of a cat on " + "a very very large table"
    given = items(
        Prompt("a photo of a cat", "one"), Prompt(long, "two"), Prompt("a", "three", negative=long)
    )
    with caplog.at_level(logging.INFO):
        check_drawable(given, NETWORK, conditioner, Guidance(2.0))
    (said,) = [record.message for record in caplog.records if "Warning" in record.message]
    assert said.startswith("Warning: two: A text must have at most max_length=12 tokens, got ")
    assert long.endswith(said.split("'")[1])
    assert "Raise model.conditioner.max_length" in said
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="A text must have")
        conditioner([long])  # not said again
    caplog.clear()
    conditioner.known[long] = torch.zeros(1, 32)  # cached: its text is not looked at
    check_drawable(given, NETWORK, conditioner, Guidance(2.0))
    assert "Warning" not in caplog.text


@pytest.mark.parametrize(
    ("scale", "own", "said"),
    [
        (1.0, None, ["at guidance scale 1. Raise it"]),
        (2.0, 1.0, ["at guidance scale 1. Raise it"]),
        (2.0, None, []),
        (1.0, 3.0, []),
    ],
)
def test_negative_prompts_without_effect_are_named_once(caplog, scale, own, said):
    given = items(
        Prompt("a", "one"),
        Prompt("b", "two", negative="c", scale=own),
        Prompt("d", "three", negative="e", scale=own),
    )
    with caplog.at_level(logging.INFO):
        check_drawable(given, NETWORK, HashConditioner(8), Guidance(scale))
    found = [record.message for record in caplog.records if "Warning" in record.message]
    assert len(found) == len(said)
    for text, part in zip(found, said, strict=True):
        assert text.startswith(f"Warning: two: negative prompt 'c' has no effect {part}")


def test_negative_prompts_have_no_effect_beside_a_weaker_model(caplog, tmp_path):
    weak = tmp_path / "weak.ckpt"
    weak.touch()
    with caplog.at_level(logging.INFO):
        check_drawable(
            items(Prompt("b", "two", negative="c")),
            NETWORK,
            HashConditioner(8),
            Guidance(2.0, weak=str(weak)),
        )
    assert "has no effect beside a weaker model" in caplog.text


def test_images_too_small_for_routed_guidance_are_named_with_their_place():
    network = tiny_network(routing=TokenRouting(min_tokens=16))
    given = items(Prompt("a", "one"), Prompt("b", "two", height=6))
    guidance, words = Guidance(2.0, routed=True), HashConditioner(8)
    check_drawable(given[:2], network, words, guidance)
    check_drawable(given, network, words, Guidance(1.0, routed=True))
    with pytest.raises(UserError, match=r"two: guidance.routed must be false .* 6x8, whose 12"):
        check_drawable(given, network, words, guidance)
