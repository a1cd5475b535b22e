"""What RunRecord writes at each start of a run."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from pixelhdm.callbacks import run_record
from pixelhdm.callbacks.run_record import RunRecord, git_state, installed_version
from pixelhdm.inference.exports.training_facts import ENVIRONMENT


class Line(LightningModule):
    """The smallest thing that trains."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Data(LightningDataModule):
    seed = 17

    def train_dataloader(self):
        return DataLoader(torch.ones(8, 1), batch_size=2)


def start(folder, steps: int, ckpt_path=None, **flags) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        log_every_n_steps=1,
        logger=CSVLogger(folder, name="logs"),
        default_root_dir=folder,
        callbacks=[RunRecord()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **flags,
    )
    trainer.fit(Line(), Data(), ckpt_path=ckpt_path)
    return trainer


def test_every_start_and_resume_is_one_entry(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main.py", "fit", "-c", "a file.yaml"])
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    last = tmp_path / "step_00000002.ckpt"
    start(tmp_path, 2).save_checkpoint(last)
    trainer = start(tmp_path, 3, last)

    first, second = yaml.safe_load((tmp_path / ENVIRONMENT).read_text())
    assert first["command"] == "python main.py fit -c 'a file.yaml'"
    assert (first["resumed_from"], first["step"]) == (None, 0)
    assert (second["resumed_from"], second["step"]) == (str(last), 2)
    assert (first["seed_everything"], first["data_seed"]) == (3, 17)
    assert (first["precision"], first["processes"], len(first["devices"])) == ("32-true", 1, 1)
    assert torch.__version__.startswith(first["packages"]["torch"])
    hparams = Path(trainer.logger.log_dir) / "hparams.yaml"
    assert yaml.safe_load(hparams.read_text()) == {"environment": second}


def test_a_run_that_is_only_tried_leaves_nothing(tmp_path):
    start(tmp_path, 2, fast_dev_run=True)
    assert not list(tmp_path.iterdir())


def git(folder, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_git_commit_and_changes(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    file = package / "code.py"
    file.write_text("1")
    assert git_state(package) is None
    git(tmp_path, "init", "-q")
    assert git_state(package) is None  # the repository does not track it
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    head = git(tmp_path, "rev-parse", "HEAD")
    (package / "new.py").write_text("2")
    assert git_state(package) == {"commit": head, "dirty": False}
    file.write_text("3")
    assert git_state(package) == {"commit": head, "dirty": True}


def test_without_git_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) is None


def test_a_package_that_is_not_installed_has_no_version():
    assert installed_version("no-such-package-anywhere") is None
    assert all(installed_version(name) for name in ("torch", "lightning", "numpy"))
    assert len(set(run_record.PACKAGES)) == len(run_record.PACKAGES)


@pytest.mark.parametrize(("type_", "name"), [("cpu", "CPU"), ("meta", "meta")])
def test_device_names(type_, name):
    assert name in run_record.device_name(torch.device(type_))
