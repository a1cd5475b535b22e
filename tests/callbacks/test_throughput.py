"""Throughput in real runs under a clock that moves only where the test says so."""

import csv
import time
from collections import Counter
from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger

from pixelhdm.callbacks import throughput
from pixelhdm.callbacks.throughput import Throughput
from pixelhdm.data.draws import Draws
from pixelhdm.data.source import Record
from pixelhdm.datamodule import PixelHDMDataModule
from pixelhdm.inference.guidance import Guidance
from pixelhdm.inference.samplers import EulerSampler
from pixelhdm.models.conditioners.class_conditioner import ClassConditioner
from pixelhdm.models.flops import ForwardFlop
from pixelhdm.models.pixelhdm import PixelHDM
from pixelhdm.models.precision import training_dtype
from pixelhdm.module import PixelHDMModule
from pixelhdm.training.losses.triple import TripleLoss
from pixelhdm.training.losses.velocity import VelocityLoss
from tests.stubs import TINY, Numbers, tiny_network

LOADING, STEP, PAUSE, FIRST, PEAK = 0.25, 3.0, 500.0, 70.0, 1e9
BATCH, TOKENS = 4, 5


class Clock:
    """Seconds that pass when somebody says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    monkeypatch.setattr(throughput, "quick_peak", lambda device, dtype: PEAK)
    return clock


class Slow(Numbers):
    """A source that takes its time."""

    def __init__(self, num: int, clock: Clock):
        super().__init__(num)
        self.clock = clock

    def load(self, index: int, seed: int, height: int, width: int) -> Record:
        self.clock.now += LOADING
        return super().load(index, seed, height, width)


class SlowLoss(VelocityLoss):
    """The velocity loss, which takes the time of a whole step."""

    def __init__(self, clock: Clock):
        super().__init__()
        self.clock, self.next = clock, FIRST

    def forward(self, *arguments):
        self.clock.now += self.next if self.training else PAUSE
        self.next = STEP if self.training else self.next
        return super().forward(*arguments)


class Reading(PixelHDM):
    """A network that looks at values, so that it cannot run without them."""

    def forward(self, z, *arguments):
        assert z.mean().item() < 100
        return super().forward(z, *arguments)


def small_module(clock: Clock, network: PixelHDM | None = None) -> PixelHDMModule:
    return PixelHDMModule(
        network or tiny_network(),
        lambda dim: ClassConditioner(dim, 10, TOKENS),
        EulerSampler(1),
        Guidance(),
        loss=TripleLoss(velocity=SlowLoss(clock)),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
    )


class Pause(Callback):
    """What samples and checkpoints do after a step."""

    def __init__(self, clock: Clock):
        self.clock = clock

    def on_train_batch_end(self, *_) -> None:
        self.clock.now += PAUSE


def run(folder, clock, num=24, network=None, ckpt_path=None, **flags) -> tuple[list[dict], Trainer]:
    """The training rows that were logged, and the trainer."""
    trainer = Trainer(
        accelerator="cpu",
        logger=CSVLogger(folder, name="logs"),
        default_root_dir=folder,
        callbacks=[Throughput(), Pause(clock)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **flags,
    )
    data = PixelHDMDataModule(
        2, BATCH, Draws(0), Slow(num, clock), Slow(8, clock), seed=0, num_workers=0
    )
    trainer.fit(small_module(clock, network), data, ckpt_path=ckpt_path)
    with open(f"{trainer.logger.log_dir}/metrics.csv", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["train/total"]], trainer


def test_rates_are_those_of_training_alone(tmp_path, clock):
    rows, _ = run(
        tmp_path,
        clock,
        max_epochs=1,
        log_every_n_steps=2,
        val_check_interval=1,
        precision="32-true",
    )
    assert [row["step"] for row in rows] == ["1", "3", "5"]
    seconds = BATCH * LOADING + STEP
    flop = 3 * ForwardFlop(tiny_network())(2, 2, TOKENS)
    for row in rows:
        values = {
            key.removeprefix("throughput/"): float(value)
            for key, value in row.items()
            if key.startswith("throughput/")
        }
        assert values["images_per_s"] == pytest.approx(BATCH / seconds)
        assert values["tokens_per_s"] == pytest.approx(BATCH / seconds * (1 + TOKENS))
        assert values["data_share"] == pytest.approx(BATCH * LOADING / seconds)
        assert values["mfu"] == pytest.approx(flop * BATCH / seconds / PEAK)
        assert 0.05 < values["peak_memory_gib"] < 50


def test_accumulated_batches_count_each(tmp_path, clock):
    rows, _ = run(
        tmp_path, clock, num=48, max_epochs=1, log_every_n_steps=2, accumulate_grad_batches=3
    )
    assert [row["step"] for row in rows] == ["1", "3"]
    for row in rows:
        rate = BATCH / (BATCH * LOADING + STEP)
        assert float(row["throughput/images_per_s"]) == pytest.approx(rate)


def test_the_device_is_waited_for_once_a_window(tmp_path, clock, monkeypatch):
    calls = Counter()

    def synchronize(device):
        calls[str(device)] += 1
        clock.now += 1.0  # what the device still had to do belongs to the window

    monkeypatch.setattr(throughput, "synchronize", synchronize)
    rows, _ = run(tmp_path, clock, max_epochs=1, log_every_n_steps=3)
    assert calls == {"cpu": 1 + 2}
    first, second = (float(row["throughput/images_per_s"]) for row in rows)
    seconds = BATCH * LOADING + STEP
    assert first == pytest.approx(2 * BATCH / (2 * seconds + 1))
    assert second == pytest.approx(3 * BATCH / (3 * seconds + 1))


def test_a_resumed_run_keeps_the_rhythm(tmp_path, clock):
    _, trainer = run(tmp_path, clock, max_steps=3, max_epochs=-1, log_every_n_steps=2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    rows, _ = run(
        tmp_path,
        clock,
        ckpt_path=tmp_path / "last.ckpt",
        max_steps=8,
        max_epochs=-1,
        log_every_n_steps=2,
    )
    assert [row["step"] for row in rows] == ["3", "5", "7"]
    assert [bool(row["throughput/mfu"]) for row in rows] == [False, True, True]


def test_a_network_that_cannot_be_counted_trains_without_mfu(tmp_path, clock):
    rows, _ = run(tmp_path, clock, network=Reading(**TINY), max_steps=2, log_every_n_steps=2)
    assert "throughput/images_per_s" in rows[0]
    assert "throughput/mfu" not in rows[0]


def test_no_hook_stays_and_nothing_is_logged_where_logging_is_off(tmp_path, clock):
    module = small_module(clock)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        log_every_n_steps=0,
        logger=False,
        callbacks=[Throughput()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    source = Slow(8, clock)
    trainer.fit(module, PixelHDMDataModule(2, BATCH, Draws(0), source, source, seed=0))
    assert not module.conditioner._forward_hooks
    assert not [name for name in trainer.callback_metrics if name.startswith("throughput")]


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("bf16-mixed", torch.bfloat16),
        ("bf16-true", torch.bfloat16),
        ("16-mixed", torch.float16),
        ("32-true", torch.float32),
        ("64-true", torch.float64),
    ],
)
def test_the_peak_is_measured_at_the_training_precision(precision, dtype):
    assert training_dtype(precision) == dtype


def test_rates_are_those_of_all_processes(clock):
    meter, module = Throughput(), small_module(clock)
    meter.flop, meter.peak = (lambda *_: 30.0), 120.0
    meter.images, meter.seconds, meter.waited = Counter({(2, 4, 3): 8}), 4.0, 1.0
    values = meter.measured(Mock(spec=Trainer, world_size=2), module)
    values.pop("throughput/peak_memory_gib", None)
    assert {key.removeprefix("throughput/"): value for key, value in values.items()} == {
        "images_per_s": 8 * 2 / 4,
        "tokens_per_s": 8 * 2 / 4 * (2 + 3),
        "data_share": 1 / 4,
        "mfu": 3 * 30 * 8 / 4 / 120,  # of one device
    }
