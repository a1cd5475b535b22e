import pytest
import torch

from pixelhdm.errors import UserError
from pixelhdm.models.conditioners.class_conditioner import ClassConditioner


def conditioner(num_tokens: int = 2) -> ClassConditioner:
    torch.manual_seed(0)
    return ClassConditioner(6, 4, num_tokens)


@pytest.mark.parametrize("num_tokens", [0, 1, 3])
def test_shapes_and_size(num_tokens):
    layer = conditioner(num_tokens)
    context = layer(torch.tensor([0, 3, 1]))
    assert context.tokens.shape == (3, num_tokens, 6)
    assert context.pooled.shape == (3, 6)
    assert context.mask is None
    assert sum(p.numel() for p in layer.parameters()) == 5 * 6 * (1 + num_tokens)


def test_classes_and_the_null_class_have_their_own_embeddings():
    layer = conditioner()
    everything = layer(torch.arange(4)).cat(layer.empty(1))
    for rows in (everything.pooled, everything.tokens.flatten(1)):
        assert (torch.cdist(rows, rows) + torch.eye(5) > 1e-3).all()


def test_null_takes_the_place_of_the_class():
    layer, empty = conditioner(), conditioner().empty(3)
    given = torch.tensor([0, 1, 2])
    dropped = layer(given, torch.tensor([True, False, True]))
    plain = layer(given)
    for name in ("tokens", "pooled"):
        got, null, kept = (getattr(c, name) for c in (dropped, empty, plain))
        assert torch.equal(got[[0, 2]], null[[0, 2]])
        assert torch.equal(got[1], kept[1])
    assert given.tolist() == [0, 1, 2]


def test_tokens_of_a_class_are_in_order():
    layer = conditioner()
    assert torch.equal(layer(torch.tensor([2])).tokens.flatten(), layer.tokens.weight[2])


@pytest.mark.parametrize(("numbers", "wrong"), [([0, 4], 4), ([-1, 2], -1)])
def test_a_class_out_of_range_is_named(numbers, wrong):
    with pytest.raises(
        UserError, match=rf"class must lie in 0 … 3 .*got {wrong}\. Set num_classes"
    ):
        conditioner().check(torch.tensor(numbers))
    conditioner().check(torch.tensor([0, 3]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_classes": 0}, "num_classes must be at least 1"),
        ({"num_classes": 2, "num_tokens": -1}, "num_tokens must be at least 0, got -1"),
        ({"num_classes": 2, "null_prob": 1.5}, "null_prob must lie in 0 … 1, got 1.5"),
        ({"num_classes": 2, "null_prob": float("nan")}, "null_prob"),
    ],
)
def test_wrong_arguments(arguments, words):
    with pytest.raises(UserError, match=words):
        ClassConditioner(6, **arguments)
