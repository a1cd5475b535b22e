"""Settings of training as a user gives them, and what happens where they do not suffice."""

import itertools
import math
import re
from pathlib import Path

import pytest
import torch
import wandb

from pixelhdm.models.pixelhdm import PixelHDM
from tests.e2e.conftest import (
    QUICK,
    QUICKSTART,
    checkpoint,
    logged,
    watched,
    with_repa,
)
from tests.e2e.life import fit
from tests.tiny_dino import save_dinov3

AMSGRAD = "--model.optimizer={class_path: torch.optim.AdamW, init_args: {lr: 0.01, amsgrad: true}}"
MUON = "--model.optimizer={class_path: MuonAdamW, init_args: {lr: 0.01}}"


def test_accumulated_batches_equal_one_large_batch():
    """Past the ends of two epochs of 180 images, where a step has one batch of 12 alone and
    padding; with all three terms, by gradient descent, which hides no factor.
    """
    flags = [*QUICK, with_repa(save_dinov3(Path("dinov3"))), "--trainer.max_steps=7"]
    flags += ["--data.train.split=val"]
    flags += ["--model.optimizer={class_path: torch.optim.SGD, init_args: {lr: 0.1}}"]
    flags += ["--checkpoint.every_n_steps=1", "--zclip.warmup_steps=3"]

    def sized(folder: str, batch_size: int, accumulate: int) -> list[str]:
        return [
            *flags,
            f"--trainer.default_root_dir={folder}",
            f"--data.batch_size={batch_size}",
            f"--trainer.accumulate_grad_batches={accumulate}",
        ]

    fit(*sized("large", 84, 1))
    fit(*sized("halves", 42, 2))
    ddp = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    fit(*sized("quarters", 21, 2), *ddp, processes=2)
    for step in (2, 3):  # the 3rd is an epoch's last
        begun = Path(f"large/checkpoints/step_{step:08d}.ckpt").absolute()
        fit(*sized(f"thirds from {step}", 28, 3), f"--ckpt_path={begun}")
    large = checkpoint("large", 7)["state_dict"]
    for folder in ("halves", "quarters", "thirds from 2", "thirds from 3"):
        state = checkpoint(folder, 7)["state_dict"]
        for key, value in large.items():
            torch.testing.assert_close(state[key], value, rtol=1e-4, atol=1e-5)
    for folder in ("halves", "quarters"):
        for term in ("velocity", "frequency", "repa", "total"):
            values = logged(folder, f"train/{term}")
            assert values == pytest.approx(logged("large", f"train/{term}"), rel=1e-4)


def test_learning_rate_and_schedule_of_the_config_win_on_resume_and_the_log_says_so(run, caplog):
    run("fit", *QUICK, MUON)
    more = ["--trainer.max_steps=12", "--ckpt_path=last", "--model.optimizer.init_args.lr=0.02"]
    schedule = "--model.schedule={class_path: CosineSchedule, init_args: {warmup_steps: 2}}"
    caplog.clear()
    run("fit", *QUICK, MUON, *more, schedule)
    for role in ("hidden", "other", "no_decay"):
        said = f"Resuming with lr=0.02 (was 0.01) for {role} weights."
        assert caplog.messages.count(said) == 1
    new = "CosineSchedule(warmup_steps=2, total_steps=None, final=0.0) over a run of 12 steps"
    old = "ConstantSchedule(warmup_steps=0) over a run of 8 steps"
    assert f"Resuming with {new} (was {old})." in caplog.messages
    rates = [0.01 * (1 + math.cos(math.pi * (step - 1) / 11)) for step in range(8, 12)]
    assert logged("runs/quickstart", "train/lr") == pytest.approx([0.01] * 8 + rates)
    caplog.clear()
    run("fit", *QUICK, MUON, *more, schedule, "--trainer.max_steps=13")
    assert [text for text in caplog.messages if "lr=" in text] == []


def test_another_optimizer_is_refused_on_resume(run):
    """Also one of the same name from another package, whose state is another."""
    bnb = "--model.optimizer={class_path: bitsandbytes.optim.AdamW8bit, init_args: {lr: 0.01}}"
    ao = "--model.optimizer={class_path: torchao.optim.AdamW8bit, init_args: {lr: 0.01}}"
    for number, (first, name, second, other) in enumerate(
        [(MUON, "pixelhdm.MuonAdamW", AMSGRAD, "torch.AdamW"),
         (bnb, "bitsandbytes.AdamW8bit", ao, "torchao.AdamW8bit")]
    ):  # fmt: skip
        flags = [*QUICK, f"--trainer.default_root_dir={number}", "--trainer.max_steps=2"]
        run("fit", *flags, first)
        with pytest.raises(SystemExit) as end:
            run("fit", *flags, "--trainer.max_steps=4", "--ckpt_path=last", second)
        assert end.value.code == (
            f"error: a resumed run must keep its optimizer {name}, got {other}. Restore it, or "
            "start a new run from the weights with --model.init_from."
        )


def test_a_setting_that_needs_another_state_is_refused_on_resume(run):
    run("fit", *QUICK)
    with pytest.raises(SystemExit, match="must keep amsgrad=False, got True"):
        run("fit", *QUICK, "--trainer.max_steps=12", "--ckpt_path=last", AMSGRAD)


@pytest.mark.parametrize(("setting", "value"), [("momentum", "0.5"), ("centered", "true")])
def test_so_is_a_new_memory_of_rmsprop(run, setting, value):
    rmsprop = "--model.optimizer={class_path: torch.optim.RMSprop, init_args: {lr: 0.001"
    run("fit", *QUICK, f"{rmsprop}}}}}", "--trainer.max_steps=2")
    with pytest.raises(SystemExit, match=f"must keep {setting}="):
        run("fit", *QUICK, f"{rmsprop}, {setting}: {value}}}}}", "--ckpt_path=last")


SCHEDULER = "--trainer.callbacks=GradientAccumulationScheduler"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--ckpt_path="], "--ckpt_path must be a file or last, got nothing"),
        (["--trainer.limit_train_batches=0"], "limit_train_batches must be above 0 to train"),
        (["--trainer.val_check_interval=0"], "val_check_interval must be above 0, got 0"),
        (["--trainer.enable_checkpointing=false"], "every run saves its end"),
        ([SCHEDULER, "--trainer.callbacks.scheduling={0: 2}"], "Set trainer.accumulate_grad_b"),
        (["--trainer.check_val_every_n_epoch=1", "--trainer.val_check_interval=500"], "must be l"),
        (watched("Unreadable"), "the state of Unreadable must be plain values"),
    ],
)
def test_settings_that_cannot_be_meant_are_one_sentence(run, flags, words):
    with pytest.raises(SystemExit, match=re.escape(words)):
        run("fit", *QUICKSTART, *flags)


def test_settings_that_exclude_each_other_are_one_sentence(run):
    with pytest.raises(SystemExit, match=r"optimizer settings must be valid, got: .*`foreach`"):
        run("fit", *QUICK, "--model.optimizer.init_args.foreach=true")


def test_every_rate_is_logged_under_its_role(run):
    run("fit", *QUICK, MUON, "--model.optimizer.init_args.hidden_lr=0.04")
    for role, rate in {"hidden": 0.04, "other": 0.01, "no_decay": 0.01}.items():
        assert logged("runs/quickstart", f"train/lr_{role}") == pytest.approx([rate] * 8)


def test_cosine_ends_with_a_run_that_its_epochs_limit(run):
    flags = ["--trainer.max_steps=-1", "--trainer.max_epochs=2", "--data.batch_size=300"]
    flags += ["--trainer.accumulate_grad_batches=2", "--model.schedule=CosineSchedule"]
    run("fit", *QUICK, *flags)
    rates = [0.0015 * (1 + math.cos(math.pi * step / 6)) for step in range(6)]
    assert logged("runs/quickstart", "train/lr") == pytest.approx(rates)


def test_out_of_memory_says_what_helps_and_the_last_checkpoint_goes_on(run, monkeypatch):
    forward, steps = PixelHDM.forward, itertools.count()

    def run_out(self: PixelHDM, *inputs: object):
        if torch.is_grad_enabled() and next(steps) == 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, *inputs)

    with monkeypatch.context() as patch:
        patch.setattr(PixelHDM, "forward", run_out)
        with pytest.raises(SystemExit) as end:
            run("fit", *QUICK)
    assert end.value.code == (
        "error: fit must fit into the device's memory, got out of it with batch_size=8 at 8x8. "
        "What helps most: --model.network.grad_checkpoint=selective, --data.batch_size=4 "
        "--trainer.accumulate_grad_batches=2, an optimizer with 8-bit states (README, Optimizers). "
        "step_00000004.ckpt is intact and can be resumed with all of these, another optimizer or "
        "network excepted."
    )
    advice = ["--model.network.grad_checkpoint=selective", "--data.batch_size=4"]
    advice += ["--trainer.accumulate_grad_batches=2"]
    run("fit", *QUICK, "--ckpt_path=last", *advice)
    run("fit", *QUICK, "--trainer.default_root_dir=whole")
    resumed, whole = (checkpoint(name, 8)["state_dict"] for name in ("runs/quickstart", "whole"))
    for key, value in whole.items():
        torch.testing.assert_close(resumed[key], value, rtol=1e-4, atol=1e-4)


def test_wandb_beside_loggers_of_ones_own_is_refused(run):
    with pytest.raises(SystemExit, match=r"wandb must be empty where trainer\.logger is given"):
        run("fit", *QUICK, "--wandb.offline=true", "--trainer.logger=false")


@pytest.fixture
def no_account(run_folder, monkeypatch):
    """No key and no settings from elsewhere, and nothing left behind."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    for name in ("NETRC", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(Path("home", name).absolute()))
    yield
    wandb.teardown()


def test_wandb_by_a_word_goes_online_and_asks_for_a_key_in_one_sentence(run, no_account):
    with pytest.raises(
        SystemExit, match=r"an API key to go online, got none.*wandb\.offline: true"
    ):
        run("fit", *QUICK, "--wandb=true")
    assert "Training ended" in run("fit", *QUICK, "--wandb=false")


def test_wandb_records_offline_by_one_line(run, no_account):
    Path("wandb.yaml").write_text("wandb: {offline: true}\n")
    output = run("fit", *QUICKSTART, "-c", "wandb.yaml")
    more = ["--ckpt_path=last", "--trainer.max_steps=12"]
    output += run("fit", *QUICK, "--wandb.offline=true", *more)
    wandb.teardown()
    assert "wandb:" not in output
    records = sorted(Path("runs/quickstart/wandb").glob("offline-run-*"))
    assert len(records) == 2
    assert len({record.name.split("-")[3] for record in records}) == 1
    assert all(list(record.glob("*.wandb")) for record in records)
    assert list(records[0].glob("files/media/images/samples_raw_*.png"))
