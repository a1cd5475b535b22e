"""LightningCLI with the parts of PixelHDM: the commands fit, validate, predict and test."""

import logging
import re
import shlex
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace, set_parsing_settings
from jsonargparse.typing import PositiveInt
from lightning.fabric.plugins.environments import ClusterEnvironment, SLURMEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from pixelhdm.callbacks.bad_samples import BadSamples
from pixelhdm.callbacks.checkpoint import REQUEUE, Interrupted, RunCheckpoint
from pixelhdm.callbacks.ema import EMA
from pixelhdm.callbacks.evaluate import Evaluate
from pixelhdm.callbacks.non_finite import SkipNonFinite
from pixelhdm.callbacks.perceptual_balance import PerceptualBalance
from pixelhdm.callbacks.progress import StepProgress
from pixelhdm.callbacks.quality import Quality
from pixelhdm.callbacks.random_state import RandomState
from pixelhdm.callbacks.repa_early_stop import RepaEarlyStop
from pixelhdm.callbacks.run_record import RunRecord
from pixelhdm.callbacks.sample_images import SampleImages
from pixelhdm.callbacks.save_images import SaveImages
from pixelhdm.callbacks.save_trajectory import SaveTrajectory
from pixelhdm.callbacks.throughput import Throughput
from pixelhdm.callbacks.watch_processes import WatchProcesses
from pixelhdm.callbacks.zclip import ZClip
from pixelhdm.checkpoints import (
    AtomicCheckpointIO,
    check_new_run,
    check_resumed_run,
    checkpoints_of,
    last_checkpoint,
)
from pixelhdm.data.digits import Digits
from pixelhdm.data.image_folder import ImageFolder
from pixelhdm.data.mix import Mix
from pixelhdm.data.paintings import Paintings
from pixelhdm.data.samplers import BufferedShufflePlan, RandomPlan, SequentialPlan
from pixelhdm.data.shards import Shards
from pixelhdm.errors import UserError, check_at_least, one_line
from pixelhdm.evaluation.extractors.clip_features import ClipFeatures
from pixelhdm.evaluation.extractors.dino_features import DinoFeatures
from pixelhdm.evaluation.extractors.inception import InceptionFeatures
from pixelhdm.evaluation.extractors.lite_features import LiteFeatures
from pixelhdm.files import replacing
from pixelhdm.inference.guidance import Guidance
from pixelhdm.inference.samplers import (
    AdamsSampler,
    DPM2MSampler,
    DPM2SSampler,
    EulerSampler,
    HeunSampler,
    SDESampler,
)
from pixelhdm.inference.showing.trajectory import Trajectory
from pixelhdm.inference.sweep import Sweep
from pixelhdm.launching import by_slurm, check_launch, requeue_job, resuming_command
from pixelhdm.loggers import Wandb, log_config, run_loggers
from pixelhdm.memory_advice import advice, ran_out
from pixelhdm.models.conditioners.class_conditioner import ClassConditioner
from pixelhdm.models.conditioners.positioned_text_conditioner import (
    GemmaConditioner,
    PositionedTextConditioner,
)
from pixelhdm.models.conditioners.text_conditioner import Qwen3Conditioner, TextConditioner
from pixelhdm.models.encoders.dino import DINOv2, DINOv3
from pixelhdm.models.presets import NETWORKS
from pixelhdm.models.routing import TokenRouting
from pixelhdm.training.losses.frequency import FrequencyLoss
from pixelhdm.training.losses.perceptual import DinoPerceptualLoss, LpipsLoss
from pixelhdm.training.losses.repa import RepaLoss
from pixelhdm.training.losses.triple import TripleLoss
from pixelhdm.training.losses.velocity import VelocityLoss
from pixelhdm.training.optim.muon import MuonAdamW
from pixelhdm.training.optim.schedules import (
    ConstantSchedule,
    CosineSchedule,
    SteppedCosineRestart,
)

USAGE = "[-c FILE]... [--key=value]..."
WORD = re.compile(r"(?!null)\w+")
SUBCOMMANDS = ("fit", "validate", "predict", "test")
DRAWING = {"predict": SaveImages, "test": Evaluate}  # and what writes the images
TRAINING_ONLY = ("model.loss", "model.optimizer", "model.schedule", "data.train", "data.val")
# What all processes of a run must have alike.
SHARED = (
    *("seed_everything", "model.", "ema.", "zclip.", "trainer.max", "trainer.accumulate"),
    *("trainer.precision", "data.batch", "data.image_size", "data.buckets", "data.seed"),
)
PLACES = ("source", "weak", "init_from")  # of files, which may lie elsewhere on each node
REFERENCE = "data.train"  # test compares with it

# In the order of their hooks: a step is judged, clipped, averaged, timed, shown and saved.
CALLBACKS = {
    "repa_early_stop": RepaEarlyStop,
    "perceptual_balance": PerceptualBalance,
    "bad_samples": BadSamples,
    "skip_non_finite": SkipNonFinite,
    "zclip": ZClip,
    "ema": EMA,
    "throughput": Throughput,
    "sample_images": SampleImages,
    "quality": Quality,
    "save_images": SaveImages,
    "evaluate": Evaluate,
    "checkpoint": RunCheckpoint,
}
# Imported so that a config may call them by their bare names and --help lists them.
BY_NAME = (
    *NETWORKS,
    AdamsSampler,
    BufferedShufflePlan,
    ClassConditioner,
    ClipFeatures,
    ConstantSchedule,
    CosineSchedule,
    DINOv2,
    DINOv3,
    DPM2MSampler,
    DPM2SSampler,
    Digits,
    DinoFeatures,
    DinoPerceptualLoss,
    EulerSampler,
    FrequencyLoss,
    GemmaConditioner,
    Guidance,
    HeunSampler,
    ImageFolder,
    InceptionFeatures,
    LiteFeatures,
    LpipsLoss,
    Mix,
    MuonAdamW,
    Paintings,
    PositionedTextConditioner,
    Qwen3Conditioner,
    RandomPlan,
    RepaLoss,
    SDESampler,
    SequentialPlan,
    Shards,
    SteppedCosineRestart,
    TextConditioner,
    TokenRouting,
    TripleLoss,
    VelocityLoss,
)
HELP = {
    "ckpt_path": "checkpoint, or last: the run folder's checkpoint with the most steps. fit "
    "resumes everything from it, and with auto does so where there is one and else starts anew; "
    "validate, predict and test take its weights.",
    "trainer.strategy": "how processes share the work: auto, ddp (each has the whole model), fsdp2 "
    "(each has a part of it), or a class with its settings.",
    "trainer.logger": "loggers in the place of the run's own, CSV and TensorBoard; false for none. "
    "For Weights & Biases beside them use wandb.",
    "weights_only": "has no effect: checkpoints are always read without running code in them.",
}
QUIET = (
    "module\\(s\\) in eval mode",  # the EMA copy is meant to be
    "your dataloader is not resumable",  # the data module keeps the position
    "Total length of `DrawLoader` across ranks is zero",  # all images are there already
    "Total length of `ChunkLoader` across ranks is zero",
    "Total length of `list` across ranks is zero",  # no held-out images
    "FSDP2-wrapped module .* returned a view tensor",  # nothing here changes one in place
    "isinstance\\(treespec, LeafSpec\\)",  # Lightning against a newer torch
)

for message in QUIET:
    warnings.filterwarnings("ignore", f".*{message}")
logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
    lambda record: "litlogger" not in record.getMessage()  # an advertisement
)
set_parsing_settings(import_path_denylist=["shutil"], instantiate_subclass_spec_in_any=False)


class SaveConfig(SaveConfigCallback):
    """Write the resolved config of a training run to <run folder>/config.yaml and the loggers.

    It is that of the run, not of one start: without the checkpoint that it goes on from. It is
    written when training starts, so that a start which is refused leaves it alone.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Do not write yet, as SaveConfigCallback would."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.save_config(trainer, pl_module, "fit")

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        file = Path(trainer.default_root_dir) / "config.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        text = self.parser.dump(self.config, skip_none=False)
        with replacing(file) as temporary:
            temporary.write_text(text, encoding="utf-8")
        log_config(trainer, text)


def asked_for() -> tuple[str, ...]:
    """The subcommand of the command line, or all where it has none: each parser takes a third of a
    second.
    """
    return tuple(sys.argv[1:2]) if sys.argv[1:2] and sys.argv[1] in SUBCOMMANDS else SUBCOMMANDS


class PixelHDMCLI(LightningCLI):
    """LightningCLI with fixed module and data module, named callbacks and safe checkpoints."""

    builds_all = False

    def subcommands(self) -> dict[str, set[str]]:
        chosen = SUBCOMMANDS if self.builds_all else asked_for()
        return {name: skip for name, skip in LightningCLI.subcommands().items() if name in chosen}

    @classmethod
    def usages(cls) -> dict[str, dict[str, str]]:
        """How the help of each subcommand begins."""
        return {name: {"usage": f"%(prog)s {USAGE}"} for name in asked_for()}

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        super()._add_subcommands(parser, **kwargs)
        parser.other_parsers = self.other_parsers

    def other_parsers(self) -> dict[str, LightningArgumentParser]:
        """The parsers of the subcommands that were not asked for."""
        self.builds_all = True
        others = self.subcommands().keys() - self._subcommand_parsers.keys()
        return {name: self._prepare_subcommand_parser(Trainer, name) for name in others}

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(spelled_out(sys.argv[1:] if args is None else args))

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--cpu_threads",
            type=PositiveInt | None,
            default=None,
            help="threads of a process's CPU arithmetic; empty takes one per core. Small networks "
            "run best on 1.",
        )
        parser.add_argument(
            "--wandb",
            type=Wandb | bool | None,
            default=None,
            help="log to Weights & Biases too: true, {project: my-project}, or {offline: true} for "
            "a record on this machine that needs no account.",
        )
        for name, callback in CALLBACKS.items():
            parser.add_lightning_class_args(callback, name)

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "predict":
            parser.add_argument(
                "--save_npz",
                type=bool,
                default=False,
                help="write all images as one array too, arr_0 in samples_….npz, with their "
                "classes, arr_1, as guided-diffusion's evaluator reads them; they must have one "
                "size.",
            )
            parser.add_argument(
                "--trajectory",
                type=Trajectory | None,
                default=None,
                help="store the way from noise to image: gif, webp, mp4 or strip (a PNG of a few "
                "moments); or settings, as {format: gif, layout: image | grid | both, show: noisy "
                "| clean, num_frames: 30, duration: 3}, the only way in a YAML file, or "
                "--trajectory.layout grid.",
            )
            parser.add_argument(
                "--sweep",
                type=Sweep | None,
                default=None,
                help="draw each image with several settings and compare them on sheets: {scales: "
                "[1, 2, 4], steps: [5, 25], samplers: [EulerSampler, HeunSampler]}, each of which "
                "may be left out; samplers without steps take their own, 50 by default. "
                "It is for looking; main.py sweep decides by scores.",
            )
        for action in parser._actions:
            action.help = HELP.get(action.dest, action.help)
        return parser

    def _set_seed(self) -> None:
        check_at_least(0, seed_everything=self.config[self.subcommand].seed_everything)
        super()._set_seed()

    def _dump_config(self) -> None:
        """Give no hyperparameters to keep: no part does, and Lightning would write out the whole
        config for them.
        """
        self.config_dump = {}

    def _parse_ckpt_path(self) -> None:
        """Do nothing: a checkpoint never changes the config (Lightning's own would merge its
        hyperparameters).
        """

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        config.weights_only = True
        set_threads(config)
        self.run_config = config.clone()
        self.run_config.ckpt_path = None
        folder = config.trainer.default_root_dir or "."
        check_trainer(config.trainer, self.subcommand)
        if config.ckpt_path == "":
            raise UserError(
                "--ckpt_path must be a file or last, got nothing. Leave it out or set it."
            )
        self.resuming_command = resuming_command(sys.argv)
        self.goes_on_itself = config.ckpt_path == "auto"
        if self.goes_on_itself:
            if self.subcommand != "fit":
                raise UserError(
                    f"--ckpt_path must be a file or last to {self.subcommand}, got auto, which is "
                    "for fit. Give last."
                )
            config.ckpt_path = "last" if checkpoints_of(folder) else None
        if config.ckpt_path == "last":
            config.ckpt_path = str(last_checkpoint(folder))
        if config.ckpt_path is not None:
            config.model.init_from = None
        if self.subcommand == "fit":
            if config.ckpt_path is None:
                check_new_run(folder)
            else:
                check_resumed_run(folder, config.ckpt_path)
            return
        self.check_weights(config.ckpt_path, config.model.init_from, folder)
        if self.subcommand in DRAWING:
            self.run_config.ckpt_path = config.ckpt_path  # with what the images are drawn
            self.run_config.model.init_from = config.model.init_from
            for key in TRAINING_ONLY:
                if key != REFERENCE or self.subcommand == "predict":
                    config[key] = None
        if self.subcommand == "predict":
            config.return_predictions = False

    def check_weights(self, ckpt_path: str | None, init_from: str | None, folder: str) -> None:
        """Raise a UserError unless it is clear which weights validate, predict and test are to
        take: the config of a later stage names the stage before it.
        """
        if ckpt_path is not None:
            return
        if init_from is None:
            raise UserError(
                f"{self.subcommand} needs trained weights, got no --ckpt_path. Give a file or last."
            )
        own, given = Path(folder).resolve(), Path(init_from).resolve()
        if checkpoints_of(folder) and own not in (given, *given.parents):
            raise UserError(
                f"{self.subcommand} must be told which weights to take, got no --ckpt_path, where "
                f"{folder} has checkpoints of its own and model.init_from is {init_from}. Give "
                "--ckpt_path last, or another --trainer.default_root_dir."
            )

    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        config = self.config[self.subcommand]
        if config.data.seed is None:
            self.datamodule.seed = int(config.seed_everything)
        sweep = self.config_init[self.subcommand].get("sweep")
        if self.subcommand == "predict" and sweep is not None:
            self.model.samplers = sweep.by_name(self.model.sampler)
            self.datamodule.variants = sweep.variants(self.model.sampler)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self._get(self.config_init, "trainer")
        whole = self.config[self.subcommand]
        watch = WatchProcesses(whole.ckpt_path, self.remedy, shared_settings(whole))
        own = [RandomState(), RunRecord()]
        if config.enable_progress_bar is not False:
            own.append(StepProgress())
        given = self.config_init[self.subcommand]
        if self.subcommand == "predict" and given.trajectory is not None:
            own.append(SaveTrajectory(given.trajectory))
        wandb = Wandb() if given.wandb is True else given.wandb or None
        check_callbacks(as_list(config.callbacks))
        if config.logger is not None and wandb is not None:
            raise UserError(
                "wandb must be empty where trainer.logger is given, got both. Leave trainer.logger "
                "out: the run logs to CSV, TensorBoard and Weights & Biases then."
            )
        if config.logger is None:
            root = config.default_root_dir or "."
            is_fit = self.subcommand == "fit" and not config.fast_dev_run
            kwargs["logger"] = is_fit and run_loggers(root, wandb, given.ckpt_path)
        try:
            trainer = super().instantiate_trainer(
                callbacks=[watch, *as_list(config.callbacks), *own],
                plugins=[*with_slurm(as_list(config.plugins)), AtomicCheckpointIO()],
                **kwargs,
            )
        except (ValueError, TypeError, RuntimeError) as error:
            reason = one_line(error).rstrip(".")
            raise UserError(f"trainer settings must be valid, got: {reason}.") from error
        check_launch(trainer.num_devices, trainer.num_nodes)
        watch.begin(trainer)
        for callback in trainer.callbacks:
            if isinstance(callback, SaveConfig):
                callback.config = self.run_config
            if isinstance(callback, DRAWING.get(self.subcommand, ())):
                parser = self._parser(self.subcommand)
                callback.config = parser.dump(self.run_config, skip_none=False)
            if isinstance(callback, SaveImages) and self.subcommand == "predict":
                callback.writes_npz = given.save_npz
        return trainer

    def remedy(self) -> str:
        """What a person is to do after one of the run's processes was lost."""
        config = self.config[self.subcommand]
        if self.subcommand != "fit" or self.goes_on_itself:
            return "Run the same command again: it goes on where it can."
        if not checkpoints_of(config.trainer.default_root_dir or "."):
            return "Nothing is saved yet: run the same command again."
        return f"Go on with: {self.resuming_command}"

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        except Interrupted as stop:
            requeues = by_slurm() and self.goes_on_itself and stop.signum == REQUEUE
            if requeues and self.trainer.is_global_zero:
                requeue_job()
            raise
        except RuntimeError as error:
            if not ran_out(error):
                raise
            text = advice(self.config[subcommand], subcommand, self.model.image_size)
            raise UserError(text) from error

    def after_fit(self) -> None:
        """Say where everything lies and how to draw more."""
        if not self.trainer.is_global_zero or self.trainer.fast_dev_run:
            return
        config = Path(self.trainer.default_root_dir) / "config.yaml"
        parts = {type(callback): callback for callback in self.trainer.callbacks}
        checkpoint, grid = parts[RunCheckpoint].latest, parts[SampleImages].latest
        if checkpoint is None:
            print(
                f"\nNothing was trained: step {self.trainer.global_step} is the end that the "
                "trainer was given. Raise its max_steps, max_epochs or max_time."
            )
            return
        print(f"\nTraining ended at step {self.trainer.global_step}.")
        print(f"  samples     {grid or 'none drawn'}")
        print(f"  checkpoint  {checkpoint}")
        print(f"  config      {config}")
        call = ["python", sys.argv[0], "predict", "-c", str(config), "--ckpt_path", str(checkpoint)]
        print(f"Draw more:    {shlex.join(call)}")
        demo = ["python", sys.argv[0], "demo", "--model", self.trainer.default_root_dir]
        print(f"Or in the browser (pip install gradio):  {shlex.join(demo)}")


def spelled_out(arguments: list[str]) -> list[str]:
    """Arguments in which a word alone that follows --trajectory is its format, and --save_npz alone
    means true.
    """
    found = []
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        name, equals, value = argument.partition("=")
        if name == "--trajectory" and WORD.fullmatch(value if equals else following):
            name += ".format"
        if argument == "--save_npz" and following.lower() not in ("true", "false"):
            equals, value = "=", "true"
        found.append(name + equals + value)
    return found


def check_trainer(trainer: Namespace, subcommand: str) -> None:
    """Raise a UserError for settings of the trainer that cannot be meant."""
    if trainer.enable_checkpointing is False:
        raise UserError(
            "trainer.enable_checkpointing must be left out, got false: every run saves its end. "
            "Set checkpoint.every_n_steps to 0 to save nothing else."
        )
    if trainer.val_check_interval == 0:
        raise UserError(
            "trainer.val_check_interval must be above 0, got 0. Set trainer.limit_val_batches to 0 "
            "to switch validation off."
        )
    if subcommand == "fit" and trainer.limit_train_batches == 0:
        raise UserError("trainer.limit_train_batches must be above 0 to train, got 0.")


def check_callbacks(callbacks: list[Callback]) -> None:
    """Raise a UserError for a callback of a person's that would upset those of every run."""
    keys = {callback: key for key, callback in CALLBACKS.items()}
    for callback in callbacks:
        if key := keys.get(type(callback)):
            raise UserError(
                f"trainer.callbacks must not hold {type(callback).__name__}, which every run has, "
                f"got another one. Set it by its key {key}."
            )
        if isinstance(callback, GradientAccumulationScheduler):
            raise UserError(
                "trainer.callbacks must not hold GradientAccumulationScheduler: all steps of a run "
                "have as many batches. Set trainer.accumulate_grad_batches."
            )


def set_threads(config: Namespace) -> None:
    """Compute with as many threads as a config asks for."""
    if config.cpu_threads is not None:
        torch.set_num_threads(config.cpu_threads)


def shared_settings(config: Namespace) -> dict[str, str]:
    """What all processes of a run must have alike: what decides what is trained, not where files
    lie.
    """
    flat = vars(config.as_flat())
    kept = {name: str(value) for name, value in flat.items() if name.startswith(SHARED)}
    return {name: value for name, value in kept.items() if not name.endswith(PLACES)}


def with_slurm(plugins: list[Any]) -> list[Any]:
    """Plugins with that for SLURM's jobs, where this is one: Lightning's own would save in the
    middle of a step when it is to make room.
    """
    if by_slurm() and not any(isinstance(plugin, ClusterEnvironment) for plugin in plugins):
        return [*plugins, SLURMEnvironment(auto_requeue=False)]
    return plugins


def as_list(value: Any) -> list[Any]:
    """A value that may be none, one or a list, as a list."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
