import pytest
import torch

from pixelhdm.models.network import Prediction
from pixelhdm.training.flow import FlowMatching
from pixelhdm.training.losses.velocity import VelocityLoss
from tests.stubs import randn

X, NOISE, T = randn(4, 2, 6, 3), randn(4, 2, 6, 3, seed=5), torch.tensor([0.1, 0.4, 0.7, 0.9])
OUTPUT = randn(4, 2, 6, 3, seed=6)


def loss(output: torch.Tensor) -> torch.Tensor:
    return VelocityLoss()(
        Prediction(output, torch.zeros(4, 1, 1)), FlowMatching().sample(X, NOISE, T)
    )


def test_loss_is_the_mean_squared_error_of_each_image():
    errors = (OUTPUT - (X - NOISE)).square().flatten(1).mean(1)
    torch.testing.assert_close(loss(OUTPUT), errors)


def test_a_known_error_has_a_known_loss_and_gradient():
    output = (X - NOISE + 0.5).requires_grad_()
    value = loss(output).mean()
    value.backward()
    assert value.item() == pytest.approx(0.25, rel=1e-5)
    torch.testing.assert_close(output.grad, torch.full_like(X, 2 * 0.5 / X.numel()))


def test_loss_is_float32_under_bfloat16():
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(OUTPUT.bfloat16())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(OUTPUT.bfloat16().float()))
