"""Where a run's numbers, images and settings go: CSV, TensorBoard, Weights & Biases."""

import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from PIL import Image

from pixelhdm.checkpoints import step_of
from pixelhdm.errors import UserError
from pixelhdm.files import replacing

METRICS = ("train/total", "val/total")


@dataclass(frozen=True)
class Wandb:
    """What Weights & Biases is told of a run; `wandb: true` takes all as below, `wandb: {offline:
    true}` needs no account.

    Args:
        project: project that the run belongs to.
        name: name of the run; empty takes that of the run folder.
        entity: user or team; empty takes the account's own.
        offline: record into <run folder>/wandb alone, to be uploaded later by `wandb sync`.
        tags: words to find the run by.
    """

    project: str = "pixelhdm"
    name: str | None = None
    entity: str | None = None
    offline: bool = False
    tags: list[str] = field(default_factory=list)


def run_loggers(folder: str | Path, wandb: Wandb | None, resumed: str | None) -> list[Logger]:
    """The loggers of a training run: CSV, TensorBoard and, where asked for, Weights & Biases.

    Args:
        folder: the run folder.
        wandb: settings of Weights & Biases; none leaves it out.
        resumed: the checkpoint that the run goes on from, if it does. TensorBoard drops what was
            logged after it, so that the curves go on from there.

    Raises:
        UserError: a logger's package or API key is missing.
    """
    folder, step = Path(folder), step_of(Path(resumed)) if resumed else -1
    purge = {} if step < 0 else {"purge_step": step}
    try:
        board = TensorBoardLogger(folder, "tensorboard", "", default_hp_metric=False, **purge)
        loggers = [CSVLogger(folder, name="logs"), board]
        return loggers if wandb is None else [*loggers, RunWandb(wandb, folder, resumed)]
    except ModuleNotFoundError as error:
        name = "wandb" if "wandb" in str(error) else "tensorboard"
        raise UserError(
            f"{name} must be installed to log to it, got none. Run pip install {name}."
        ) from error


class RunWandb(WandbLogger):
    """Lightning's Weights & Biases logger without questions, advertisements and late failures.

    A resumed run continues the same W&B run, whose id stands in <run folder>/wandb/id.
    WANDB_MODE=offline and WANDB_MODE=disabled are respected.

    Args:
        settings: what the run is called and where it belongs.
        folder: the run folder.
        resumed: the checkpoint that the run goes on from, if it does.

    Raises:
        UserError: it shall go online and there is no API key.
    """

    def __init__(self, settings: Wandb, folder: Path, resumed: str | None):
        import wandb

        self.id_file = folder / "wandb" / "id"
        offline = settings.offline and os.environ.get("WANDB_MODE") != "disabled"
        super().__init__(
            project=settings.project,
            name=settings.name or folder.resolve().name,
            save_dir=folder,
            id=self.id_file.read_text() if resumed and self.id_file.exists() else None,
            entity=settings.entity,
            tags=settings.tags,
            mode="offline" if offline else None,
            settings=wandb.Settings(quiet=True),
        )
        del self._wandb_init["anonymous"]  # Lightning passes it always, W&B warns of it
        if rank_zero_only.rank == 0:
            self.prepare(offline)

    def prepare(self, offline: bool) -> None:
        """Silence what is not a warning or an error, and look for the API key."""
        import wandb

        try:
            shared = wandb.setup(wandb.Settings(show_info=False, quiet=True)).settings
        except ValueError as error:  # pydantic's, of a WANDB_ variable
            setting, rule = str(error).splitlines()[1:3]
            raise UserError(
                f"WANDB_{setting.upper()} must be valid for Weights & Biases, got: "
                f"{rule.strip()}. Mend or unset it."
            ) from error
        if offline or shared.mode in ("offline", "dryrun", "disabled"):
            return
        try:
            found, problem = wandb.login(prompt=False, verify=False), "got none"
        except wandb.errors.Error as error:
            found, problem = False, f"got: {error}"
        if not found:
            raise UserError(
                f"Weights & Biases must have an API key to go online, {problem.rstrip('.')}. Set "
                "WANDB_API_KEY, run `wandb login`, or record on this machine alone with "
                "wandb.offline: true."
            )

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, started when it is first asked for."""
        if self._experiment is not None:
            return self._experiment
        import wandb

        Path(self.save_dir).mkdir(parents=True, exist_ok=True)  # W&B warns where there is none
        try:
            run = super().experiment
        except wandb.errors.Error as error:
            text = f"Weights & Biases must start its run, got: {str(error).rstrip('.')}."
            if isinstance(error, wandb.errors.CommError):
                text += " Record on this machine alone with wandb.offline: true."
            raise UserError(text) from error
        if run.disabled:
            return run
        self.id_file.parent.mkdir(exist_ok=True)
        with replacing(self.id_file) as temporary:
            temporary.write_text(run.id)
        sync = shlex.join(["wandb", "sync", str(Path(run.dir).parent)])
        where = f"{sync} uploads it" if run.offline else run.url
        rank_zero_info(f"Weights & Biases: {where}")
        return run

    def finalize(self, status: str) -> None:
        """End the run now; left to the end of the process, W&B prints a summary of its own."""
        super().finalize(status)
        if self._experiment is not None:
            self._experiment.finish(exit_code=0 if status == "success" else 1)


def log_image(trainer: Trainer, key: str, image: Image.Image | np.ndarray) -> None:
    """Give a picture (uint8 H W 3) to every logger that can show one.

    Its step is that of the numbers logged with it: Lightning counts them from 0.
    """
    pixels, step = np.asarray(image), trainer.global_step - 1
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(key, pixels, step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(key, [pixels], step=step)


def log_config(trainer: Trainer, config: str) -> None:
    """Give the resolved config, a YAML text, to every logger; to TensorBoard also as
    hyperparameters that runs can be compared by.
    """
    settings = yaml.safe_load(config)
    log_settings(trainer, "config", settings)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            from torch.utils.tensorboard.summary import hparams

            for part in hparams(flattened(settings), dict.fromkeys(METRICS, 0.0)):
                logger.experiment.file_writer.add_summary(part)


def log_settings(trainer: Trainer, title: str, settings: dict[str, Any]) -> None:
    """Give settings to every logger as hyperparameters; to TensorBoard as a text."""
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    for logger in trainer.loggers:
        logger.log_hyperparams(settings)
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(title, f"```yaml\n{text}```", trainer.global_step)


def flattened(settings: dict[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Nested settings under dotted names; lists become text, empty values go."""
    flat = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= flattened(value, f"{prefix}{name}.")
        elif value is not None:
            flat[prefix + name] = value if isinstance(value, bool | int | float) else str(value)
    return flat
