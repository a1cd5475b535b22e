import pytest
import torch

from pixelhdm.models.network import Prediction
from pixelhdm.training.flow import FlowMatching
from pixelhdm.training.losses.velocity import VelocityLoss
from tests.stubs import randn

X, NOISE, T = randn(4, 2, 6, 3), randn(4, 2, 6, 3, seed=5), torch.tensor([0.1, 0.4, 0.7, 0.9])
OUTPUT = randn(4, 2, 6, 3, seed=6)


def loss(keep: slice, weight: list[float], output: torch.Tensor = OUTPUT) -> torch.Tensor:
    sample = FlowMatching().sample(X[keep], NOISE[keep], T[keep])
    prediction = Prediction(output[keep], torch.zeros(len(output[keep]), 1, 1))
    terms = VelocityLoss()(prediction, sample, torch.tensor(weight))
    assert terms.keys() == {"velocity", "total"}
    assert torch.equal(terms["total"], terms["velocity"])
    return terms["total"]


def test_loss_is_the_weighted_mean_of_squared_errors():
    errors = (OUTPUT - (X - NOISE)).square().flatten(1).mean(1)
    weight = [0.5, 0.2, 0.2, 0.1]
    torch.testing.assert_close(loss(slice(4), weight), (errors * torch.tensor(weight)).sum())
    torch.testing.assert_close(loss(slice(4), [0.25] * 4), errors.mean())


def test_a_known_error_has_a_known_loss_and_gradient():
    output = (X - NOISE + 0.5).requires_grad_()
    value = loss(slice(4), [0.25] * 4, output)
    value.backward()
    assert value.item() == pytest.approx(0.25, rel=1e-5)
    torch.testing.assert_close(output.grad, torch.full_like(X, 2 * 0.5 / X.numel()))


def test_samples_of_weight_zero_do_not_matter():
    changed = OUTPUT.clone()
    changed[2:] = 1e3
    changed.requires_grad_()
    padded = loss(slice(4), [0.5, 0.5, 0.0, 0.0], changed)
    assert torch.equal(padded, loss(slice(2), [0.5, 0.5]))
    padded.backward()
    assert (changed.grad[2:] == 0).all()
    assert (changed.grad[:2].abs() > 0).all()


def test_loss_is_float32_under_bfloat16():
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(slice(4), [0.25] * 4, OUTPUT.bfloat16())
    assert value.dtype == torch.float32
    exact = loss(slice(4), [0.25] * 4, OUTPUT.bfloat16().float())
    torch.testing.assert_close(value, exact)
