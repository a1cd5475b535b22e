import pytest
import torch
from torch import Tensor

from pixelhdm.inference.guidance import Guidance
from pixelhdm.models.conditioners.context import Context
from tests.stubs import context, perturb, randn, tiny_network

Z, T = randn(2, 4, 4, 3), 0.3


class Asked:
    """A model that remembers what it was asked; its conditions are contexts."""

    def __init__(self) -> None:
        self.conditioner = None
        self.network = perturb(tiny_network())
        self.calls: list[tuple[Tensor, Context]] = []

    def velocity(self, z: Tensor, t: float, given: Context) -> Tensor:
        self.calls.append((z, given))
        return self.network(z, torch.full((len(z),), t), given).output


def test_scale_one_is_the_conditional_prediction_alone():
    predict, given = Predict(), context(2, 3)
    guided = Guidance(1.0).velocity(predict, given, context(2, 3, seed=9))(Z, T)
    assert torch.equal(guided, Predict()(Z, T, given))
    assert len(predict.calls) == 1
    assert predict.calls[0][1] is given


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, 7.5])
@pytest.mark.parametrize("null_length", [3, 1, 0, 5])
def test_guidance_is_its_formula_whatever_the_lengths(scale, null_length):
    predict, given, empty = Predict(), context(2, 3), context(2, null_length, seed=9)
    guided = Guidance(scale).velocity(predict, given, empty)(Z, T)
    c, u = Predict()(Z, T, given), Predict()(Z, T, empty)
    torch.testing.assert_close(guided, u + scale * (c - u), rtol=1e-4, atol=1e-4)
    assert (c - u).abs().max() > 0.01


def test_another_strength_leaves_the_first_alone():
    first = Guidance(2.0)
    assert [first.at(scale).scale for scale in (None, 0.0, 5.0)] == [2.0, 0.0, 5.0]
    assert first.scale == 2.0


def test_both_halves_run_in_one_call():
    predict = Predict()
    velocity = Guidance(3.0).velocity(predict, context(2, 3), context(2, 1, seed=9))
    velocity(Z, T)
    velocity(Z + 1, T)
    assert [tuple(z.shape) for z, _ in predict.calls] == [(4, 4, 4, 3)] * 2
    assert predict.calls[0][1].mask.sum(1).tolist() == [3, 3, 1, 1]


def test_equal_lengths_need_no_mask():
    predict = Predict()
    Guidance(3.0).velocity(predict, context(2, 3), context(2, 3, seed=9))(Z, T)
    assert predict.calls[0][1].mask is None
