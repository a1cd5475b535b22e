"""What a run was made with."""

import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

import pixelhdm
from pixelhdm.files import replacing
from pixelhdm.inference.exports.training_facts import ENVIRONMENT
from pixelhdm.loggers import log_settings
from pixelhdm.processes import gather_objects

PACKAGES = (
    "torch",
    "lightning",
    "jsonargparse",
    "torchmetrics",
    "torchvision",
    "transformers",
    "timm",
    "safetensors",
    "einops",
    "jaxtyping",
    "numpy",
    "pillow",
    "scikit-learn",
    "tensorboard",
    "wandb",
    "bitsandbytes",
    "torchao",
)


class RunRecord(Callback):
    """Record each start of a run: append it to <run folder>/environment.yaml, tell the loggers.

    An entry holds time, command, git commit, package versions, devices, precision, seeds, and the
    checkpoint and step that it went on from.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        devices = gather_objects(device_name(pl_module.device))
        if trainer.fast_dev_run or not trainer.is_global_zero:
            return
        entry = record(trainer, devices)
        file = Path(trainer.default_root_dir) / ENVIRONMENT
        file.parent.mkdir(parents=True, exist_ok=True)
        earlier = file.read_text(encoding="utf-8") if file.exists() else ""
        with replacing(file) as temporary:
            temporary.write_text(
                earlier + yaml.safe_dump([entry], sort_keys=False, allow_unicode=True),
                encoding="utf-8",
            )
        log_settings(trainer, "environment", {"environment": entry})


def record(trainer: Trainer, devices: list[str]) -> dict[str, Any]:
    """The entry of this start."""
    seed = os.environ.get("PL_GLOBAL_SEED")  # where Lightning's seed_everything leaves it
    return {
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]),
        "resumed_from": None if trainer.ckpt_path is None else str(trainer.ckpt_path),
        "step": trainer.global_step,
        "git": git_state(Path(pixelhdm.__file__).parent),
        "seed_everything": None if seed is None else int(seed),
        "data_seed": trainer.datamodule.seed,
        "precision": trainer.precision,
        "processes": trainer.world_size,
        "devices": devices,
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "packages": {name: installed_version(name) for name in PACKAGES},
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the repository that `folder` belongs to, and whether a tracked file differs.

    None where there is no git, no repository, or one that does not track the folder.
    """
    try:
        tracked = run_git(folder, "ls-files", "--", ".")
        if not tracked:
            return None
        changes = run_git(folder, "status", "--porcelain", "--untracked-files=no")
        return {"commit": run_git(folder, "rev-parse", "HEAD"), "dirty": bool(changes)}
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None


def run_git(folder: Path, *arguments: str) -> str:
    """What a git command prints."""
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def installed_version(package: str) -> str | None:
    """A package's version, none where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def device_name(device: torch.device) -> str:
    """What a person would call the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"{platform.machine()} CPU, {torch.backends.cpu.get_cpu_capability()}"
    return device.type
