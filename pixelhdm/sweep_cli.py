"""The command sweep on the command line."""

import logging
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from pixelhdm.callbacks.evaluate import Evaluate
from pixelhdm.callbacks.image_facts import NOT_DRAWING
from pixelhdm.data.prompts import read_prompts
from pixelhdm.errors import UserError
from pixelhdm.sweeping.axes import Axes
from pixelhdm.sweeping.run import Asked, Sweeping
from pixelhdm.trainer_cli import USAGE, PixelHDMCLI

LOGGER = "lightning.pytorch.utilities.rank_zero"
REPEATED = ("Restoring states from the checkpoint", "Loaded model weights from the checkpoint")
NOT_SCORING = ("batch_size", "batch_tokens", "num_workers", "executor", "sampler", "seed", "val")


class SweepCLI(PixelHDMCLI):
    """The command sweep: takes what test takes, and settings to compare; test runs for each."""

    def subcommands(self) -> dict[str, set[str]]:
        return {"test": super().subcommands()["test"]}

    @classmethod
    def usages(cls) -> dict[str, dict[str, str]]:
        about = (
            "Evaluate a model with many settings and name the best by its scores. Takes all files "
            "and flags of test. To look at a few images with several settings: predict --sweep."
        )
        return {"test": {"usage": f"main.py sweep {USAGE}", "description": about}}

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(Axes, "sweep")
        super().add_default_arguments_to_parser(parser)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.set_defaults({"evaluate.keep_images": False})

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        if config.ckpt_path is None:
            raise UserError(
                "sweep needs a checkpoint, got no --ckpt_path. Give a file or last: the averages "
                "of the weights that it compares are those of one checkpoint."
            )
        if config.data.prompts is not None:
            own = [p for p in read_prompts(config.data.prompts).prompts if p.scale is not None]
            if own:
                raise UserError(
                    f"{own[0].place}: scale must be left out to sweep, got {own[0].scale}: the "
                    "settings of the sweep have scales of theirs."
                )
        super().before_instantiate_classes()

    def test(self, **_: Any) -> None:
        """Run test for each setting, in the place of Lightning's."""
        logging.getLogger(LOGGER).addFilter(lambda r: not r.getMessage().startswith(REPEATED))
        config = self.config[self.subcommand]
        parts = {type(callback): callback for callback in self.trainer.callbacks}
        Sweeping(
            self.trainer,
            self.model,
            self.datamodule,
            parts[Evaluate],
            self.config_init[self.subcommand].sweep,
            Path(config.ckpt_path),
            asked_of(config),
        ).run()


def asked_of(config: Namespace) -> Asked:
    """What the scores depend on beside weights and setting."""
    plain = config.as_dict()
    evaluate = {k: v for k, v in plain["evaluate"].items() if k not in ("folder", "keep_images")}
    settings = {
        "model": {k: v for k, v in plain["model"].items() if k not in NOT_DRAWING},
        "data": {k: v for k, v in plain["data"].items() if k not in NOT_SCORING},
        "evaluate": evaluate,
        "precision": plain["trainer"]["precision"],
    }
    named = evaluate["reference"], plain["data"]["prompts"]
    files = [Path(name) for name in named if isinstance(name, str) and Path(name).exists()]
    return Asked(settings, files)
