import pytest
import torch
from torch import nn

from pixelhdm.errors import UserError
from pixelhdm.models.network import Prediction
from pixelhdm.training.flow import FlowMatching, FlowSample
from pixelhdm.training.losses.frequency import FrequencyLoss
from pixelhdm.training.losses.loss import LossTerm
from pixelhdm.training.losses.repa import RepaLoss
from pixelhdm.training.losses.triple import TripleLoss
from pixelhdm.training.losses.velocity import VelocityLoss
from tests.stubs import randn
from tests.tiny_dino import PatchMeans


class Bias(LossTerm):
    """A term with a parameter: the squared mean of the output, moved by it."""

    name = "bias"

    def __init__(self, weight: float = 1.0):
        super().__init__(weight)
        self.bias = nn.Parameter(torch.ones(3))

    def forward(self, prediction: Prediction, sample: FlowSample) -> torch.Tensor:
        return (prediction.output + self.bias).mean((1, 2, 3)).square()


def given(num: int = 3, size: int = 8) -> tuple[Prediction, FlowSample]:
    flow = FlowMatching()
    x, noise = randn(num, size, size, 3, seed=1), randn(num, size, size, 3, seed=2)
    sample = flow.sample(x, noise, flow.time(randn(num, seed=3), *x.shape[1:3]))
    return Prediction(randn(num, size, size, 3, seed=4), randn(num, 4, 6, seed=5)), sample


def test_total_is_the_weighted_sum_and_the_terms_are_without_weight():
    prediction, sample = given()
    loss = TripleLoss(VelocityLoss(2.0), FrequencyLoss(0.25), extra=[Bias(0.5)])
    values = loss(prediction, sample)
    assert list(values) == ["velocity", "frequency", "bias", "total"]
    assert torch.equal(values["velocity"], VelocityLoss()(prediction, sample))
    expected = 2 * values["velocity"] + 0.25 * values["frequency"] + 0.5 * values["bias"]
    torch.testing.assert_close(values["total"], expected)
    assert all(value.shape == (3,) and value.dtype == torch.float32 for value in values.values())


def test_an_image_does_not_change_another_ones_loss():
    prediction, sample = given(4)
    loss = TripleLoss(VelocityLoss(), FrequencyLoss())
    whole = loss(prediction, sample)["total"]
    for i in range(4):
        one = (value[i : i + 1] for value in (*prediction[:2], *sample))
        alone = loss(Prediction(next(one), next(one)), FlowSample(*one))["total"]
        torch.testing.assert_close(alone, whole[i : i + 1])


def test_a_stopped_term_leaves_the_total_and_keeps_a_zero_gradient():
    prediction, sample = given()
    loss = TripleLoss(VelocityLoss(), extra=[Bias()])
    loss.terms["bias"].stop()
    values = loss(prediction, sample)
    assert list(values) == ["velocity", "total"]
    assert torch.equal(values["total"], values["velocity"])
    values["total"].sum().backward()
    assert torch.equal(loss.terms["bias"].bias.grad, torch.zeros(3))


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (2, 3)])
def test_a_term_of_another_shape_is_refused(axes):
    term = Bias()
    term.forward = lambda prediction, sample: prediction.output.mean(axes)
    with pytest.raises(UserError, match=r"loss bias must be one number per image, of shape \(3,\)"):
        TripleLoss(VelocityLoss(), extra=[term])(*given())


@pytest.mark.parametrize(
    "name", ["velocity", "total", "grad_norm", "lr", "lpips/vgg", "a.b", "", "keys"]
)
def test_extra_terms_need_a_name_of_their_own(name):
    term = Bias()
    term.name = name
    with pytest.raises(UserError, match=f"name of its own, one word .*, got '{name}' of Bias"):
        TripleLoss(VelocityLoss(), extra=[term])


def test_a_term_without_a_name_is_refused():
    class Nameless(VelocityLoss):
        name = property()

    with pytest.raises(UserError, match="got '' of Nameless"):
        TripleLoss(VelocityLoss(), extra=[Nameless()])


def test_a_stopped_term_does_not_pass_on_its_parameters_nan():
    prediction, sample = given()
    loss = TripleLoss(VelocityLoss(), extra=[Bias()])
    loss.terms["bias"].stop()
    loss.terms["bias"].bias.data.fill_(torch.nan)
    assert loss(prediction, sample)["total"].isfinite().all()


def test_a_term_on_the_output():
    words = r"a term on the network's output, got {}\. Set model\.loss\.velocity"
    with pytest.raises(UserError, match=words.format("none")):
        TripleLoss()
    with pytest.raises(UserError, match=words.format("repa alone")):
        TripleLoss(repa=RepaLoss(PatchMeans()))


def test_wrong_weight():
    with pytest.raises(UserError, match="weight of a loss must be at least 0, got -1"):
        VelocityLoss(-1.0)
