"""What draws, from a training's checkpoint and config."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from torch import Tensor

from pixelhdm.checkpoints import (
    CONVERTED,
    RECONSTRUCTION,
    Weights,
    choose_weights,
    last_checkpoint,
    read_checkpoint,
    trained_file,
)
from pixelhdm.errors import UserError, check_one_of, reason_of

CONFIG = "config.yaml"
Configs = str | Path | list[str | Path] | None


class Trained(NamedTuple):
    """What a training left.

    Attributes:
        file: the checkpoint.
        configs: contents of the config files; later ones go over earlier ones.
        weights: which of the checkpoint's weights.
        state: these weights.
        step: optimizer steps; None where the checkpoint does not say.
        sigma_rel: length of the average, where the command ema made it.
        origin: source and licence of published weights, where the command convert wrote them.
    """

    file: Path
    configs: list[dict[str, Any]]
    weights: Weights
    state: dict[str, Tensor]
    step: int | None
    sigma_rel: float | None
    origin: dict[str, str]

    def setting(self, name: str) -> Any:
        """A dotted setting as the last config that has it says; None where none has."""
        return setting_in(self.configs, name)

    @property
    def precision(self) -> str:
        """The trainer's precision."""
        return str(self.setting("trainer.precision") or "32-true")


def read_trained(ckpt_path: str | Path, config: Configs, weights: Weights) -> Trained:
    """Read a checkpoint and its config.

    Args:
        ckpt_path: checkpoint; folder of a run, for its checkpoint with the most steps; or last, for
            that of the config's run.
        config: YAML files; empty takes config.yaml of the checkpoint's run.
        weights: which weights of the checkpoint.

    Raises:
        UserError: one of them is missing or not readable.
    """
    check_one_of(Weights, weights=weights)
    configs = None if config is None else read_configs(config)
    if str(ckpt_path) == "last":
        if configs is None:
            raise UserError(
                "config must name the run's config.yaml where ckpt_path is last, got none. Give "
                "--config, or the folder of the run as --ckpt_path."
            )
        file = last_checkpoint(setting_in(configs, "trainer.default_root_dir") or ".")
    else:
        file = trained_file(ckpt_path, "ckpt_path")
    if configs is None:
        configs = read_configs(config_of(file))
    checkpoint = read_checkpoint(file)
    state = choose_weights(checkpoint["state_dict"], weights, file, "--weights raw")
    sigma_rel = checkpoint.get(RECONSTRUCTION, {}).get("sigma_rel")
    origin = checkpoint.get(CONVERTED, {})
    return Trained(file, configs, weights, state, checkpoint.get("global_step"), sigma_rel, origin)


def setting_in(configs: list[dict[str, Any]], name: str) -> Any:
    """A dotted setting as the last of several configs that has it says; None where none has."""
    found = None
    for config in configs:
        part: Any = config
        for key in name.split("."):
            part = part.get(key) if isinstance(part, Mapping) else None
        found = found if part is None else part
    return found


def config_of(file: Path) -> Path:
    """The config.yaml of a checkpoint's run."""
    for folder in (file.parent.parent, file.parent):
        if (folder / CONFIG).is_file():
            return folder / CONFIG
    raise UserError(
        f"config must be given where the run of the checkpoint has no {CONFIG}, got {file} alone. "
        "Give the training's YAML files with --config."
    )


def read_configs(config: str | Path | list[str | Path]) -> list[dict[str, Any]]:
    """The contents of YAML files."""
    found = []
    for file in config if isinstance(config, list) else [config]:
        try:
            content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(
                f"config must be a readable YAML file, got {file}: {reason_of(error)}."
            ) from error
        if not isinstance(content, dict) or not isinstance(content.get("model", {}), dict):
            raise UserError(f"config must hold a training's settings, got {file} without any.")
        found.append(content)
    return found
