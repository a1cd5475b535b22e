import weakref
from functools import partial
from itertools import pairwise

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, SingleDeviceStrategy
from torch.nn.parallel import DistributedDataParallel

from pixelhdm.callbacks.ema import EMA, Device
from pixelhdm.data.draws import Draws
from pixelhdm.datamodule import PixelHDMDataModule
from pixelhdm.errors import UserError
from pixelhdm.inference.guidance import Guidance
from pixelhdm.inference.request import Request
from pixelhdm.inference.samplers import EulerSampler
from pixelhdm.models.conditioners.class_conditioner import ClassConditioner
from pixelhdm.module import PixelHDMModule
from pixelhdm.training.average import Average
from pixelhdm.training.losses.triple import TripleLoss
from pixelhdm.training.losses.velocity import VelocityLoss
from tests.stubs import Numbers, tiny_network


def new_module() -> PixelHDMModule:
    return PixelHDMModule(
        tiny_network(), lambda dim: ClassConditioner(dim, 10, 1), EulerSampler(1), Guidance()
    )


class Clock(Trainer):
    """The part of a trainer that the callback reads."""

    global_step, strategy, default_root_dir = 0, SingleDeviceStrategy(), ""

    def __init__(self, step: int):
        self.global_step, self.callbacks = step, []


class Run:
    """A run that sets the weights itself."""

    def __init__(
        self,
        decay: float,
        module: PixelHDMModule,
        step: int = 0,
        every_n_steps: int = 1,
        device: Device = "auto",
        state: dict[str, float] | None = None,
    ):
        self.ema = EMA(decay, device=device, every_n_steps=every_n_steps)
        self.module, self.trainer = module, Clock(step)
        self.ema.setup(self.trainer, module, "fit")
        if state:
            self.ema.load_state_dict(state)
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


# Every n steps ------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 5])
def test_of_every_third_step_an_average_is_as_far_as_three_steps_to_the_same_weights(first):
    """In the ramp too; in between nothing moves."""
    module, weights = new_module(), [9.0, 9.0, 1.5, 9.0, 9.0, -2.0, 9.0]
    run = Run(0.5, module, first, every_n_steps=3)
    start, values = averages(module), []
    for weight in weights:
        run.batch(weight)
        values.append(averages(module))
    due = [n for n in range(len(weights)) if (first + n + 1) % 3 == 0]
    same = [weights[next((d for d in due if d >= n), 0)] for n in range(max(due) + 1)]
    for name, value in averages(module).items():
        expected = closed_form(start[name], same, 0.5, first).float()
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
        moved = [not torch.equal(a[name], b[name]) for a, b in pairwise([start, *values])]
        assert moved == [n in due for n in range(len(weights))]


def test_a_skipped_step_that_was_due_is_made_up_for_and_does_not_count():
    module = new_module()
    run = Run(0.9, module, 1000, every_n_steps=3)
    start = averages(module)
    for step, weight in {1001: 1.0, 1002: 2.0, 1003: 3.0, 1004: 4.0}.items():
        module.step_skipped = step == 1002
        run.batch(weight)
    for name, value in averages(module).items():
        expected = (start[name].double() * 0.9**2 + 3.0 * (1 - 0.9**2)).float()
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("device", ["auto", "cpu"])
@pytest.mark.parametrize("stop", range(1, 8))
def test_a_run_resumed_between_two_updates_is_that_of_one_life_to_the_bit(stop, device):
    weights = [1.0, -2.0, 0.5, 3.0, 0.25, 4.0, -1.0, 2.0]
    whole = Run(0.9, new_module(), every_n_steps=3, device=device)
    first = Run(0.9, new_module(), every_n_steps=3)  # files serve both devices
    for weight in weights:
        whole.batch(weight)
    for weight in weights[:stop]:
        first.batch(weight)
    module = new_module()
    second = Run(0.9, module, stop, 3, device, first.ema.state_dict())
    module.load_state_dict(first.module.state_dict())
    for weight in weights[stop:]:
        second.batch(weight)
    assert second.ema.state_dict() == whole.ema.state_dict()
    state = whole.module.state_dict()
    assert module.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())


def test_another_number_of_steps_may_be_set_on_resuming():
    runs = [Run(0.9, new_module(), step=20, every_n_steps=n) for n in (1, 5)]
    for run in runs:
        for _ in range(5):
            run.batch(1.0)
    assert [run.ema.state_dict() for run in runs] == [{}, {"averaged": 25, "kept": 1.0}]
    for key, value in averages(runs[0].module).items():
        torch.testing.assert_close(averages(runs[1].module)[key], value, rtol=1e-5, atol=1e-6)
    module = runs[1].module
    runs[1].batch(2.0)
    rest = Run(0.9, module, step=26, state=runs[1].ema.state_dict())
    before = averages(module)
    rest.batch(2.0)
    d = [(1 + n) / (10 + n) for n in (26, 27)]
    for key, value in averages(module).items():
        torch.testing.assert_close(value, 2 + (before[key] - 2) * d[0] * d[1])


# In CPU memory ------------------------------------------------------------------------------------


@pytest.fixture
def away(monkeypatch) -> None:
    """The weights count as those of another device, for whoever is to copy between the two."""
    monkeypatch.setattr(Average, "is_away", lambda self, device: self.stays)


def test_nothing_that_moves_or_casts_the_module_reaches_an_average_on_the_cpu():
    module = new_module()
    Run(0.9, module, device="cpu")
    before = averages(module)
    module.to("meta").to(torch.bfloat16)
    assert {value.device.type for value in module.network.parameters()} == {"meta"}
    for name, value in module.ema.named_parameters():
        assert torch.equal(value, before[name])
    auto = new_module()
    Run(0.9, auto)
    assert {value.device.type for value in auto.to("meta").ema.parameters()} == {"meta"}


def test_an_average_on_the_cpu_is_that_of_auto_to_the_bit(away):
    runs = [Run(0.9, new_module(), device=device) for device in ("auto", "cpu")]
    for run in runs:
        for weight in (1.0, -2.0, 3.0):
            run.batch(weight)
    first, second = (run.module.state_dict() for run in runs)
    assert first.keys() == second.keys()
    assert all(map(torch.equal, first.values(), second.values()))


def test_it_draws_and_validates_by_a_copy_that_lives_until_the_next_batch(away):
    plain, module = new_module(), new_module()
    Run(0.9, plain).batch(1.0)
    run = Run(0.9, module, device="cpu")
    run.batch(1.0)
    request = Request(torch.tensor([1, 2]), [0, 1], 4, 4)
    before = {value.untyped_storage().data_ptr() for value in module.ema.parameters()}
    assert torch.equal(module.draw(request), plain.draw(request))
    network, conditioner = module.drawing_parts()
    assert module.drawing_parts()[0] is network is not module.ema["network"]
    copied = [*network.parameters(), *conditioner.parameters()]
    own = list(module.ema.parameters())
    assert all(map(torch.equal, copied, own))
    assert {value.untyped_storage().data_ptr() for value in own} == before
    assert not before & {value.untyped_storage().data_ptr() for value in copied}
    assert not any(value.requires_grad for value in copied)
    assert module.state_dict().keys() == plain.state_dict().keys()
    gone = weakref.ref(copied[0])
    del network, conditioner, copied
    run.ema.on_train_batch_start(run.trainer, module, None, 0)
    assert gone() is None
    for end in (run.ema.on_validation_end, partial(run.ema.teardown, stage="fit")):
        gone = weakref.ref(module.drawing_parts()[0])
        end(run.trainer, module)
        assert gone() is None


def test_what_is_drawn_after_an_update_is_not_an_older_copy(away):
    module = new_module()
    run = Run(0.0, module, device="cpu")
    module.drawing_parts()  # by a callback that comes before the update
    run.batch(3.0)
    assert {float(value.unique()) for value in module.drawing_parts()[0].parameters()} == {3.0}


def test_profiles_stay_on_the_cpu_too(away):
    module, ema = new_module(), EMA(0.9, [0.05], 100, device="cpu")
    ema.setup(Clock(0), module, "fit")
    module.to("meta")
    assert {value.device.type for value in module.profiles.parameters()} == {"cpu"}


def test_ddp_leaves_averages_on_the_cpu_alone(tmp_path):
    """It refuses weights on different devices."""
    refused, module = new_module(), new_module()
    for one, device in ((refused, "auto"), (module, "cpu")):
        Run(0.9, one, device=device)
        for part in one.ema.values():
            part.to("meta")  # as far from the CPU as a GPU
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="same type of devices"):
            DistributedDataParallel(refused)
        DistributedDataParallel(module)
    finally:
        torch.distributed.destroy_process_group()


def test_where_weights_are_sharded_the_cpu_is_refused(monkeypatch):
    monkeypatch.setattr(Clock, "strategy", ModelParallelStrategy())
    with pytest.raises(UserError, match=r"ema\.device must be auto where the weights are sharded"):
        Run(0.9, new_module(), device="cpu")


def test_wrong_number_of_steps():
    with pytest.raises(UserError, match="every_n_steps must be at least 1, got 0"):
        EMA(every_n_steps=0)
