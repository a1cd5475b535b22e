import logging
import warnings

import pytest
import torch

from pixelhdm.data.draws import Draws, class_draws, prompt_draws
from pixelhdm.data.prompt_fields import Prompt
from pixelhdm.data.prompts import PromptList
from pixelhdm.errors import UserError
from pixelhdm.inference.drawable import check_drawable
from pixelhdm.models.conditioners.class_conditioner import ClassConditioner
from pixelhdm.models.conditioners.text_conditioner import TextConditioner
from tests.stubs import HashConditioner, Sized
from tests.tiny_qwen3 import save_tiny_qwen3

NETWORK = Sized(8, 4)


def items(*prompts: Prompt):
    return prompt_draws(PromptList(list(prompts), "plain", ""), Draws(num_images=2), (8, 8)).items


def test_a_size_that_does_not_fit_is_named_with_its_place():
    given = items(Prompt("a", "one"), Prompt("b", "two", height=10), Prompt("c", "three", height=6))
    with pytest.raises(UserError, match=r"two: image height .* got 10x8"):
        check_drawable(given, NETWORK, HashConditioner(8))
    check_drawable(given[:2], NETWORK, HashConditioner(8))
    with pytest.raises(UserError, match=r"data.draw: image height"):
        check_drawable(class_draws(Draws(1), (8, 7)).items, NETWORK, ClassConditioner(8, 10))


def test_conditions_must_suit_the_conditioner():
    with pytest.raises(UserError, match=r"got captions such as 'a'.* in the place of data.prompts"):
        check_drawable(items(Prompt("a", "one")), NETWORK, ClassConditioner(8, 10))
    with pytest.raises(UserError, match="class must lie in 0 … 9"):
        check_drawable(class_draws(Draws([1, 10]), (8, 8)).items, NETWORK, ClassConditioner(8, 10))
    with pytest.raises(UserError, match="must say what to draw, got neither"):
        check_drawable([], NETWORK, ClassConditioner(8, 10))


def test_a_prompt_beyond_the_limit_is_named_once_with_what_is_cut(tmp_path, caplog):
    conditioner = TextConditioner(8, str(save_tiny_qwen3(tmp_path)), max_length=12)
    long = "a photo of a cat on " + "a very very large table"
    given = items(
        Prompt("a photo of a cat", "one"), Prompt(long, "two"), Prompt("a", "three", negative=long)
    )
    with caplog.at_level(logging.INFO):
        check_drawable(given, NETWORK, conditioner)
    (said,) = [record.message for record in caplog.records if "Warning" in record.message]
    assert said.startswith("Warning: two: A text must have at most max_length=12 tokens, got ")
    assert long.endswith(said.split("'")[1])
    assert "Raise model.conditioner.max_length" in said
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="A text must have")
        conditioner([long])  # not said again
    caplog.clear()
    conditioner.known[long] = torch.zeros(1, 32)  # cached: its text is not looked at
    check_drawable(given, NETWORK, conditioner)
    assert "Warning" not in caplog.text
