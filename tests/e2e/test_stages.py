"""The text-to-image stages one after another, on tiny settings and the real command line."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from pixelhdm.module import PixelHDMModule
from tests.captioned import prepare_captioned
from tests.e2e.conftest import ROOT, checkpoint, differences
from tests.tiny_dino import save_dinov3
from tests.tiny_qwen3 import save_tiny_qwen3

STEPS = 4  # of every stage
DRAWN = ("network.", "conditioner.", "ema.")
REPA = "--model.loss.init_args.repa.init_args.teacher.init_args"


class Beginning(NamedTuple):
    """What a run has when its training starts."""

    state: dict[str, torch.Tensor]
    step: int
    optimizer: int
    position: tuple[int, int]


@pytest.fixture
def beginnings(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Beginning]]:
    """Those of all runs of a test, in order."""
    found, begin = [], PixelHDMModule.on_train_start

    def note(self: PixelHDMModule) -> None:
        begin(self)
        state = {key: value.clone() for key, value in self.state_dict().items()}
        optimizer = len(self.optimizers(use_pl_optimizer=False).state)
        epoch, step, _ = self.trainer.datamodule.loader.position()
        found.append(Beginning(state, self.trainer.global_step, optimizer, (epoch, step)))

    monkeypatch.setattr(PixelHDMModule, "on_train_start", note)
    return found


@pytest.fixture
def stage(run: Callable[..., str]) -> Callable[..., None]:
    """Train the stage of a config after base.yaml, or of several; its folder is the config's."""
    save_tiny_qwen3("qwen3")
    prepare_captioned("data/mine")
    teacher = save_dinov3(Path("dinov3"))

    def train(*names: str, flags: tuple[str, ...] = ()) -> None:
        files = [ROOT / f"configs_t2i/{name}.yaml" for name in ("base", *names)]
        call = [word for file in (*files, ROOT / "tests/offline_t2i.yaml") for word in ("-c", file)]
        if not any("repa: null" in file.read_text() for file in files):
            call += [f"{REPA}.source={teacher.source}", f"{REPA}.dim={teacher.dim}"]
        run("fit", *call, "--sample_images.every_n_steps=0", *flags)

    return train


def check_handed_over(before: str, beginning: Beginning) -> None:
    """Weights and average are the last of the run before; optimizer, steps and data are new."""
    last = checkpoint(before, STEPS)["state_dict"]
    assert {key for key in last if key.startswith(DRAWN)} == {
        key for key in beginning.state if key.startswith(DRAWN)
    }
    for key, value in beginning.state.items():
        if key in last:
            assert torch.equal(value, last[key]), key
    assert (beginning.step, beginning.optimizer, beginning.position) == (0, 0, (0, 0))


def check_ramp(start: dict[str, torch.Tensor], first: dict[str, torch.Tensor]) -> None:
    """The average forgets no faster than at the fifth step, its first one in this run."""
    for key, value in first.items():
        if key.startswith("ema."):
            expected = start[key].lerp(first[key.removeprefix("ema.")], 1 - 6 / 15)
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)


def check_resuming(stage: Callable[..., None]) -> None:
    """A stage that is resumed does not ask for the one before, and gives the same to the bit."""
    parts = "--trainer.default_root_dir=parts"
    stage("pretrain_512", flags=(parts, "--trainer.max_steps=2"))
    stage("pretrain_512", flags=(parts, "--ckpt_path=last", "--model.init_from=nothing"))
    whole, resumed = checkpoint("runs/t2i_512", STEPS), checkpoint("parts", STEPS)
    for part in ("state_dict", "optimizer_states", "training", "PixelHDMDataModule"):
        assert differences(whole[part], resumed[part]) == []


def test_stages_hand_weights_and_average_on_and_nothing_else(stage, beginnings, caplog):
    stage("pretrain_256")
    stage("pretrain_512", flags=("--checkpoint.every_n_steps=1",))
    check_handed_over("runs/t2i_256", beginnings[-1])
    assert sum("repa.projector" in key for key in beginnings[-1].state) == 6  # taken, too
    check_ramp(beginnings[-1].state, checkpoint("runs/t2i_512", 1)["state_dict"])
    check_resuming(stage)
    assert [beginning.step for beginning in beginnings] == [0, 0, 0, 2]
    stage("pretrain_1024")
    check_handed_over("runs/t2i_512", beginnings[-1])
    assert not any(key.startswith("loss.") for key in beginnings[-1].state)
    assert "; repa of the loss (6 tensors) is left out; optimizer" in caplog.text
    stage("pretrain_512", "sft_512", flags=("--model.init_from=runs/t2i_1024",))
    check_handed_over("runs/t2i_1024", beginnings[-1])
    rates = {"t2i_256": 2e-4, "t2i_512": 1e-4, "t2i_1024": 2e-5, "t2i_sft_512": 1e-5}
    for number, (name, rate) in enumerate(rates.items()):
        end = checkpoint(f"runs/{name}", STEPS)
        assert (end["global_step"], end["training"]["average_steps"]) == (STEPS, number * STEPS)
        assert end["optimizer_states"][0]["param_groups"][0]["initial_lr"] == rate
    back = ("--trainer.default_root_dir=back", "--trainer.max_steps=1")
    stage("pretrain_512", flags=("--model.init_from=runs/t2i_1024", *back))
    check_handed_over("runs/t2i_1024", beginnings[-1])
    assert caplog.text.count("; repa of the loss (6 tensors) starts anew; optimizer") == 1
