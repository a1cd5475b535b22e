"""What a config trains: its parts without numbers, and how they are trained."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jsonargparse import Namespace
from lightning.pytorch.cli import OptimizerCallable
from torch import nn

from pixelhdm.data.buckets import Buckets
from pixelhdm.errors import UserError
from pixelhdm.models.conditioners.conditioner import Conditioner
from pixelhdm.models.conditioners.text_conditioner import TextConditioner
from pixelhdm.models.encoders.frozen import Frozen
from pixelhdm.models.encoders.text_encoder import TextEncoder
from pixelhdm.models.network import Network
from pixelhdm.models.precision import training_dtype
from pixelhdm.parser import Parser
from pixelhdm.planning.standins import known_text
from pixelhdm.training.flow import FlowMatching
from pixelhdm.training.losses.triple import TripleLoss


class Parts(NamedTuple):
    """The parts of a config on the meta device."""

    network: Network
    conditioner: Conditioner
    flow: FlowMatching
    loss: TripleLoss
    optimizer: OptimizerCallable

    @property
    def trained(self) -> nn.ModuleDict:
        """All that is trained and saved."""
        return nn.ModuleDict(
            {"network": self.network, "conditioner": self.conditioner, "loss": self.loss}
        )

    @property
    def averaged(self) -> nn.ModuleDict:
        """What an average is kept of."""
        return nn.ModuleDict({"network": self.network, "conditioner": self.conditioner})

    def frozen(self) -> Iterator[tuple[str, Frozen]]:
        """The frozen networks of the active terms, with the terms' names."""
        for name, term in self.loss.terms.items():
            if term.active:
                for value in {id(v): v for v in vars(term).values()}.values():
                    if isinstance(value, Frozen):
                        yield name, value


class Shape(NamedTuple):
    """A batch of one process.

    Attributes:
        num: images.
        height: of each, in pixels.
        width: of each, in pixels.
        text_len: context tokens of a caption; 0 where conditions are no texts.
    """

    num: int
    height: int
    width: int
    text_len: int


class Job(NamedTuple):
    """How the parts of a config are trained.

    Attributes:
        parts: what is trained.
        shapes: batches of the largest and the smallest size that training meets.
        num_sizes: how many sizes there are.
        dtype: type of the matrix products.
        accumulate: batches of a step.
        max_steps: optimizer steps of the run; None where the config does not say.
        num_averages: copies of the averaged weights.
        average_on_cpu: whether they lie in the CPU's memory.
        optimizer_name: class of the optimizer.
        is_compiled: whether blocks are compiled.
        is_sharded: whether weights are shared out over the processes.
        can_shard: whether they could be, with all else as it is.
        num_processes: devices times nodes, 1 where the config leaves them open.
        encoder: the text encoder that trains along; None without, or where texts are cached.
        on_cpu: whether the config asks for a CPU.
        repa_steps: optimizer steps with REPA; None to the end.
    """

    parts: Parts
    shapes: tuple[Shape, ...]
    num_sizes: int
    dtype: torch.dtype
    accumulate: int
    max_steps: int | None
    num_averages: int
    average_on_cpu: bool
    optimizer_name: str
    is_compiled: bool
    is_sharded: bool
    can_shard: bool
    num_processes: int
    encoder: str | None
    on_cpu: bool
    repa_steps: int | None


def built(config: Namespace) -> Parts:
    """The parts of a config of fit, on the meta device; no file of data or weights is read.

    Raises:
        UserError: a part is missing or cannot be built.
    """
    for name in ("loss", "optimizer"):
        if config.model.get(name) is None:
            raise UserError(f"model.{name} must be given to plan a training, got none.")
    parser, given = Parser(allow_abbrev=False), Namespace()
    types = {
        "network": Network,
        "conditioner": Callable[[int], Conditioner],
        "flow": FlowMatching,
        "loss": TripleLoss,
        "optimizer": OptimizerCallable,
    }
    for name, kind in types.items():
        parser.add_argument(f"--model.{name}", type=kind)
        given[f"model.{name}"] = with_width(config.model[name])
    with torch.device("meta"):
        model = parser.instantiate_classes(given).model
        conditioner = model.conditioner(model.network.hidden_dim)
        model.loss.connect(model.network)
    if config.repa_early_stop.step == 0 and "repa" in model.loss.terms:
        model.loss.terms["repa"].stop()
    return Parts(model.network, conditioner, model.flow, model.loss, model.optimizer)


def with_width(settings: Namespace) -> Namespace:
    """Settings of a conditioner with the width of its text encoder, where that is known and not
    given: its files need not be here.
    """
    own = settings.get("init_args")
    if own is None or "width" not in own or own.width or not own.get("source"):
        return settings
    model = known_text(own.source)
    if model is not None:
        settings = settings.clone()
        settings.init_args.width = model.width
    return settings


def job_of(config: Namespace, num_gpus: int | None, text_len: int | None) -> Job:
    """What a config of fit trains, and how.

    Args:
        config: all settings of fit.
        num_gpus: processes in the place of the config's.
        text_len: tokens of a caption; empty takes the most that the conditioner takes.
    """
    parts, trainer, ema = built(config), config.trainer, config.ema
    buckets = config.data.buckets
    table = [(config.data.image_size, config.data.image_size)]
    if buckets is not None:
        table = Buckets(**buckets.as_dict()).table
    length = caption_len(parts.conditioner, text_len)
    ends = dict.fromkeys((table[0], table[-1]))
    strategy = str(trainer.strategy)
    return Job(
        parts,
        tuple(batch_of(config, parts.network.patch_size, *size, length) for size in ends),
        len(table),
        training_dtype(str(trainer.precision)),
        trainer.accumulate_grad_batches,
        trainer.max_steps if (trainer.max_steps or -1) > 0 else None,
        1 + len(ema.sigma_rel or []),
        ema.get("device") == "cpu",
        config.model.optimizer.class_path,
        bool(config.model.get("compile")),
        "ModelParallel" in strategy or "fsdp" in strategy.lower(),
        can_be_sharded(config),
        num_gpus or num_processes(trainer),
        None if is_cached(config) else getattr(encoder_of(parts.conditioner), "source", None),
        trainer.accelerator == "cpu",
        config.repa_early_stop.step if "repa" in parts.loss.terms else None,
    )


def can_be_sharded(config: Namespace) -> bool:
    """Whether nothing in a config asks for whole weights in each process."""
    name = config.model.optimizer.class_path
    is_whole = "Muon" in name or "8bit" in name.lower() or config.ema.get("device") == "cpu"
    balances = config.perceptual_balance.start_step is not None
    return not (is_whole or balances or config.quality.every_n_steps)


def batch_of(config: Namespace, patch_size: int, height: int, width: int, text_len: int) -> Shape:
    """A batch of images of this size."""
    tokens, num = config.data.batch_tokens, config.data.batch_size
    if tokens is not None:
        num = max(1, tokens // (height * width // patch_size**2))
    return Shape(num, height, width, text_len)


def num_processes(trainer: Namespace) -> int:
    """Processes of a trainer; one a node where it takes what it finds."""
    devices = trainer.devices
    if isinstance(devices, list):
        devices = len(devices)
    each = int(devices) if str(devices).isdecimal() and int(devices) > 0 else 1
    return each * trainer.num_nodes


def encoder_of(conditioner: Conditioner) -> TextEncoder | None:
    """The text encoder of a conditioner, where it has one."""
    return conditioner.encoder if isinstance(conditioner, TextConditioner) else None


def caption_len(conditioner: Conditioner, text_len: int | None) -> int:
    """Tokens of a caption: those asked for, at most as many as the encoder takes."""
    encoder = encoder_of(conditioner)
    if encoder is None:
        return 0
    return min(text_len or encoder.max_length, encoder.max_length)


def is_cached(config: Namespace) -> bool:
    """Whether training reads its texts from a cache."""
    return bool((config.data.train.get("init_args") or {}).get("cached_text"))
