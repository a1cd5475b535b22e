import numpy as np
import pytest
import torch

from pixelhdm.errors import UserError
from pixelhdm.inference.seeds import seeds_of, texts, whole


@pytest.mark.parametrize("given", [7, np.int64(7), torch.tensor(7)])
def test_whole_numbers_of_all_kinds_are_taken(given):
    assert whole("seed", given) == 7
    assert type(whole("seed", given)) is int


@pytest.mark.parametrize("given", [1.5, "7", True, None, torch.tensor(1.5), [1]])
def test_what_is_no_whole_number_is_named(given):
    with pytest.raises(UserError, match=r"^height must be a whole number, got "):
        whole("height", given)


def test_seeds_count_up_for_each_prompt_and_belong_to_images_in_a_list():
    assert seeds_of(2, 3, 5, None) == [5, 6, 7, 5, 6, 7]
    assert seeds_of(2, 1, [9, 3], None) == [9, 3]
    with pytest.raises(UserError, match="seed must be one or as many as images, 2, got 1"):
        seeds_of(2, 1, [9], None)


def test_texts_are_texts():
    assert texts("prompt", ["a", ""]) == ["a", ""]
    with pytest.raises(UserError, match="prompt must be a text or a list of texts, got None"):
        texts("prompt", ["a", None])
