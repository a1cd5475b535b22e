import pytest
import torch
from lightning.pytorch import Trainer

from pixelhdm.callbacks.ema import EMA
from pixelhdm.data.draws import Draws
from pixelhdm.datamodule import PixelHDMDataModule
from pixelhdm.errors import UserError
from pixelhdm.inference.guidance import Guidance
from pixelhdm.inference.samplers import EulerSampler
from pixelhdm.models.conditioners.class_conditioner import ClassConditioner
from pixelhdm.module import PixelHDMModule
from pixelhdm.training.losses.triple import TripleLoss
from pixelhdm.training.losses.velocity import VelocityLoss
from tests.stubs import Numbers, tiny_network


def new_module() -> PixelHDMModule:
    return PixelHDMModule(
        tiny_network(), lambda dim: ClassConditioner(dim, 10, 1), EulerSampler(1), Guidance()
    )


class Clock(Trainer):
    """The part of a trainer that the callback reads."""

    global_step = 0

    def __init__(self, step: int):
        self.global_step, self.callbacks = step, []


class Run:
    """A run that sets the weights itself."""

    def __init__(self, decay: float, module: PixelHDMModule, step: int = 0):
        self.ema, self.module = EMA(decay), module
        self.trainer = Clock(step)
        self.ema.setup(self.trainer, module, "fit")
        self.ema.on_train_start(self.trainer, module)

    def batch(self, weight: float | None) -> None:
        """One batch; with a weight, an optimizer step that sets every parameter to it."""
        if weight is not None:
            self.trainer.global_step += 1
            with torch.no_grad():
                for part in (self.module.network, self.module.conditioner):
                    for parameter in part.parameters():
                        parameter.fill_(weight)
                        parameter.grad = torch.ones_like(parameter)
        self.ema.on_train_batch_end(self.trainer, self.module, None, None, 0)


def closed_form(start: torch.Tensor, weights: list[float], decay: float, first: int = 0):
    """start * prod d_n + sum_n weight_n (1 - d_n) prod_(m > n) d_m."""
    d = [min(decay, (1 + n) / (10 + n)) for n in range(first + 1, first + len(weights) + 1)]
    value = start.double() * torch.tensor(d, dtype=torch.float64).prod()
    for n, weight in enumerate(weights):
        value = value + weight * (1 - d[n]) * torch.tensor(d[n + 1 :], dtype=torch.float64).prod()
    return value


def averages(module: PixelHDMModule) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.ema.named_parameters()}


@pytest.mark.parametrize("decay", [0.9999, 0.5, 0.0])
def test_average_is_its_closed_form(decay):
    module, weights = new_module(), [1.0, -2.0, 0.5, 3.0, 0.25, -1.0, 4.0, 0.125, 2.0, -0.5, 1.5]
    run = Run(decay, module)
    start = averages(module)
    for weight in weights:
        run.batch(weight)
    for name, value in averages(module).items():
        expected = closed_form(start[name], weights, decay).float()
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def test_ramp_ends_at_the_decay():
    """Between 0 and 1, decay 0.5 is reached at step 8: (1 + 8) / (10 + 8)."""
    module = new_module()
    run = Run(0.5, module)
    for step, decay in enumerate(
        [2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15, 7 / 16, 8 / 17, 0.5, 0.5]
    ):
        for value in module.ema.parameters():
            value.zero_()
        run.batch(1.0)
        value = next(module.ema.parameters()).flatten()[0].item()
        assert value == pytest.approx(1 - decay, abs=1e-6), step


def test_batches_without_an_optimizer_step_change_nothing():
    """Accumulated gradients: two batches a step."""
    one, two = new_module(), new_module()
    plain, accumulating = Run(0.9, one), Run(0.9, two)
    for weight in (1.0, 2.0, 3.0):
        plain.batch(weight)
        accumulating.batch(None)
        accumulating.batch(weight)
    assert all(map(torch.equal, averages(one).values(), averages(two).values()))


def test_a_resumed_run_goes_on_with_the_ramp():
    module = new_module()
    run = Run(0.9999, module, step=100)
    start = averages(module)
    run.batch(None)  # not a step of this run
    run.batch(7.0)
    for name, value in averages(module).items():
        expected = closed_form(start[name], [7.0], 0.9999, first=100).float()
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("step", [0, 30])
def test_the_ramp_counts_the_steps_that_a_carried_average_has_seen(step):
    """At the start of a new run, and where that run is resumed."""
    module = new_module()
    module.average_steps = 5000
    run = Run(0.9999, module, step)
    start, weights = averages(module), [7.0, -3.0, 2.0]
    for weight in weights:
        run.batch(weight)
    for name, value in averages(module).items():
        expected = closed_form(start[name], weights, 0.9999, first=5000 + step).float()
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def test_average_is_float32_and_fine_beside_bfloat16_weights():
    module = new_module()
    module.network.bfloat16()
    run = Run(0.9999, module, step=10**6)
    assert {value.dtype for value in module.ema.parameters()} == {torch.float32}
    first = next(module.ema.parameters())
    start = first.clone()
    for _ in range(10):
        run.batch(1.0)
    expected = 1 + (start.double() - 1) * 0.9999**10  # far below what bfloat16 can hold
    torch.testing.assert_close(first.double(), expected, rtol=0, atol=1e-6)
    assert {value.dtype for value in module.network.parameters()} == {torch.bfloat16}


def test_training_with_bfloat16_weights_is_refused(tmp_path):
    """Lightning would turn the average to bfloat16 too, after the callbacks' setup."""
    module = new_module()
    module.loss = TripleLoss(VelocityLoss())
    module.optimizer = lambda parts: torch.optim.SGD(parts, lr=0.1)
    trainer = Trainer(
        accelerator="cpu",
        precision="bf16-true",
        max_steps=2,
        logger=False,
        default_root_dir=tmp_path,
        callbacks=[EMA(0.9)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = PixelHDMDataModule(2, 4, Draws(0), Numbers(8), num_workers=0)
    with pytest.raises(UserError, match=r"stored in float32 to train, got bfloat16.*bf16-mixed"):
        trainer.fit(module, data)


def test_average_starts_at_the_weights_and_is_not_trained():
    module = new_module()
    Run(0.9, module)
    state = module.state_dict()
    raw = [key for key in state if not key.startswith("ema.")]
    assert len(state) == 2 * len(raw)
    assert all(torch.equal(state[key], state[f"ema.{key}"]) for key in raw)
    assert not any(value.requires_grad for value in module.ema.parameters())
    assert module.drawing_parts() == (module.ema["network"], module.ema["conditioner"])
    module.weights = "raw"
    assert module.drawing_parts() == (module.network, module.conditioner)


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_wrong_decay(decay):
    with pytest.raises(UserError, match="decay must lie in 0 … 1"):
        EMA(decay)
