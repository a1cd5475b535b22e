"""The LightningModule: what is trained, one training step, one held-out step, one that draws."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed
from jaxtyping import Float, UInt8
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer

from pixelhdm.checkpoint_files import full
from pixelhdm.checkpoints import (
    Weights,
    check_whole,
    choose_weights,
    read_checkpoint,
    trained_file,
)
from pixelhdm.compiling import warm_up
from pixelhdm.data.draws import DrawItem
from pixelhdm.errors import UserError, check_one_of
from pixelhdm.inference.draw import Drawing, draw_images
from pixelhdm.inference.guidance import Guidance
from pixelhdm.inference.listed import drawing_for, request_for
from pixelhdm.inference.model import Model
from pixelhdm.inference.pixels import to_pixels
from pixelhdm.inference.request import Request
from pixelhdm.inference.samplers import Image, Sampler, Step, go_on
from pixelhdm.inference.time_grid import TimeGrid
from pixelhdm.initial_weights import fitting, start_from
from pixelhdm.mismatch import check_fit
from pixelhdm.models.attention_kernels import AttentionKernel
from pixelhdm.models.attention_report import attention_report
from pixelhdm.models.compiling import compile_blocks
from pixelhdm.models.conditioners.conditioner import Conditioner
from pixelhdm.models.network import Network
from pixelhdm.models.pixel_kernel import PixelKernel, choose_pixel_kernel
from pixelhdm.models.precision import training_dtype
from pixelhdm.processes import are_several
from pixelhdm.sharding import check_strategy, is_sharded, shard
from pixelhdm.training.average import Average
from pixelhdm.training.draws import SeededRoutes, draw
from pixelhdm.training.flow import FlowMatching
from pixelhdm.training.losses.triple import TripleLoss
from pixelhdm.training.optim.groups import parameter_groups
from pixelhdm.training.optim.schedules import ConstantSchedule, Schedule
from pixelhdm.training.optim.settings import class_name, describe, keep_settings
from pixelhdm.training.time_bins import TimeBins


class PixelHDMModule(LightningModule):
    """A diffusion model: network, condition, flow, loss, and how images are drawn.

    Args:
        network: maps noisy image, time and context to a prediction.
        conditioner: embeds the condition; its width is the network's hidden_dim.
        sampler: solver that draws images.
        guidance: how conditional and empty predictions are combined when drawing.
        time_grid: the times at which the sampler stops.
        flow: path from noise to image and meaning of the prediction.
        loss: what training minimises; not built by predict and test.
        optimizer: class and settings of the optimizer over all trained parameters; not built by
            predict and test. Norms, biases and embeddings get no weight decay.
        schedule: factor of the learning rate at each step; empty keeps the rate.
        weights: which weights of a checkpoint validate, predict and test take, and which the sample
            grids of fit show: ema (the average) or raw.
        init_from: what a new run starts from: a checkpoint, or the folder of a run, whose
            checkpoint with the most steps is meant. Its weights and its average are taken, not its
            optimizer, steps, schedule and position in the data. Not used when a run is resumed with
            --ckpt_path. validate, predict and test take from it what `weights` says.
        init_weights: which weights of init_from training goes on from: raw, or ema (the average).
        init_ema: whether the average goes on from that of init_from; false starts it from the
            weights that training starts from.
        compile: let torch.compile make the network's blocks faster. fit compiles before its first
            step, for all sizes of images that it will meet; whatever is compiled later on, for
            drawing for instance, is reported.
        pixel_kernel: what computes the modulated norms of the path of pixels: plain, PyTorch's
            operators, or triton, one kernel in their place on a GPU, meant for runs without
            compile, which fuses them by itself.
        attention: what computes attention: auto (flash-attn where it is installed and can, which
            takes a GPU and half precision; else PyTorch's kernels), sdpa (PyTorch's
            F.scaled_dot_product_attention always) or flash (flash-attn or an error). The start
            says which one it is.

    Attributes:
        ema: the averaged copy of network and conditioner, where the EMA callback asked for one.
        profiles: further averages of the EMA callback, by profile.
        average_steps: optimizer steps of earlier runs that the average has seen.
        has_trained: whether fit has taken its initial weights.
        step_skipped: whether the last optimizer step changed nothing, as SkipNonFinite or ZClip
            decides.
        image_size: height and width of the last images, trained on or drawn.
        on_step: sees each step of a solver that draws, see draw_images.
        on_losses: sees the mean of every term of a training batch, without its weight and with its
            graph.
        samplers: solvers beside its own that images of a list ask for, by name.
        step_losses: losses of the batches since the last optimizer step, summed up.
    """

    def __init__(
        self,
        network: Network,
        conditioner: Callable[[int], Conditioner],
        sampler: Sampler,
        guidance: Guidance,
        flow: FlowMatching = FlowMatching(),
        loss: TripleLoss | None = None,
        optimizer: OptimizerCallable | None = None,
        schedule: Schedule | None = None,
        weights: Weights = "ema",
        init_from: str | None = None,
        init_weights: Weights = "raw",
        init_ema: bool = True,
        time_grid: TimeGrid = TimeGrid(),
        compile: bool = False,
        pixel_kernel: PixelKernel = "plain",
        attention: AttentionKernel = "auto",
    ):
        super().__init__()
        check_one_of(Weights, weights=weights, init_weights=init_weights)
        try:
            self.network, self.conditioner = network, conditioner(network.hidden_dim)
        except TypeError as error:
            if "abstract" not in str(error):
                raise
            raise UserError(
                f"conditioner must be a class that can be built, got: {error}."
            ) from error
        self.sampler, self.guidance, self.time_grid = sampler, guidance, time_grid
        self.flow, self.loss = flow, loss
        self.network.choose_attention(attention)
        self.compiles, self.is_compiled = compile, False
        if not choose_pixel_kernel(network, pixel_kernel):
            rank_zero_info("pixel_kernel triton needs a GPU with Triton: plain computes the same.")
        self.on_step: Callable[[Step], Image] = go_on
        self.on_losses: Callable[[dict[str, Tensor]], None] = ignore
        self.samplers: dict[str, Sampler] = {}
        self.optimizer, self.schedule = optimizer, schedule or ConstantSchedule()
        self.weights, self.init_weights, self.init_ema = weights, init_weights, init_ema
        self.init_from = None if init_from is None else trained_file(init_from)
        if loss is not None:
            loss.connect(network)
        self.ema: Average | None = None
        self.profiles: nn.ModuleDict | None = None
        self.step_skipped = False
        self.norm: Tensor | None = None
        self.step_losses: dict[str, Tensor] = {}
        self.total_steps: int | None = None
        self.resumed_schedule: str | None = None
        self.image_size: tuple[int, int] | None = None
        self.val_means: dict[str, TimeBins] = {}
        self.average_steps, self.has_trained = 0, False

    # What is trained, averaged and loaded ---------------------------------------------------------

    def add_average(self, on_cpu: bool = False) -> None:
        """Register a copy of what draws images, for the EMA callback to update."""
        parts = {"network": self.network, "conditioner": self.conditioner}
        self.ema = Average(parts, on_cpu)

    def averaged(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Pairs of averaged and raw parameter."""
        for part in ("network", "conditioner"):
            yield from zip(
                self.ema[part].parameters(), getattr(self, part).parameters(), strict=True
            )

    def take_initial_weights(self, stage: str) -> None:
        """Take the weights of init_from, nothing else of it.

        Raises:
            UserError: it is torn, does not fit, or lacks the average that is asked for.
        """
        is_fit, path = stage == "fit", str(self.init_from)
        flag, carry = ("init_weights", self.init_ema) if is_fit else ("weights", False)
        carry = carry and self.ema is not None
        own, weights = self.state_dict(), getattr(self, flag)
        start = start_from(read_checkpoint(path), own, weights, flag, carry, path)
        self.load_state_dict(start.state)
        self.average_steps = start.average_steps
        rank_zero_info(
            f"Took {start.report}{'; optimizer, steps, schedule and data start anew' * is_fit}."
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that a checkpoint fits before anything of it is used; outside of fit, pick the
        weights asked for.
        """
        source = str(self.trainer.ckpt_path)
        if self.trainer.state.fn == "fit":
            check_whole(checkpoint, source)
            self.trainer.datamodule.regroup(checkpoint)
            check_fit(self.state_dict(), checkpoint["state_dict"], source)
            self.resumed_schedule = checkpoint["training"]["schedule"]
            self.average_steps = checkpoint["training"].get("average_steps", 0)
            (state,), fresh = checkpoint["optimizer_states"], self.configure_optimizers()
            keep_settings(state, checkpoint["training"]["optimizer"], fresh)
        else:
            chosen = choose_weights(checkpoint["state_dict"], self.weights, source)
            checkpoint["state_dict"] = fitting(self.state_dict(), chosen, source)

    # Training and validation ----------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        if self.loss is None and stage in ("fit", "validate"):
            raise UserError("loss must be given to fit and to validate, got none. Set model.loss.")
        if self.init_from is not None and not self.has_trained:
            self.take_initial_weights(stage)
            self.has_trained = stage == "fit"

    @property
    def is_sharded(self) -> bool:
        """Whether each process has a part of the weights, so that all must compute together."""
        return is_sharded(self.network)

    def configure_model(self) -> None:
        """Say what computes attention; shard what is trained and averaged, where the strategy asks
        for it.
        """
        device, dtype = self.trainer.strategy.root_device, training_dtype(self.trainer.precision)
        if (line := attention_report(self.network, device, dtype)) is not None:
            rank_zero_info(line)
        if self.device_mesh is None:
            return
        check_strategy(self.trainer.strategy)
        if self.trainer.state.fn == "fit" and not self.is_sharded:
            if self.guidance.weaker is not None:
                self.guidance.weaker.model_like(self.model())  # a copy of a whole network
            shard(self, self.device_mesh["data_parallel"])

    def compile_networks(self) -> None:
        """Let torch.compile make what trains and what draws faster, where it is asked for."""
        if not self.compiles or self.is_compiled:
            return
        self.is_compiled = True
        compile_blocks(self.network)
        if self.ema is not None:
            compile_blocks(self.ema["network"])

    def on_fit_start(self) -> None:
        self.loss.start(self.device)
        self.compile_networks()
        if self.compiles:
            shapes, precision = self.trainer.datamodule.shapes, self.trainer.precision_plugin
            self.image_size = shapes[0][1:]  # the largest, should memory run out
            warm_up(self.network, self.conditioner, shapes, precision.train_step_context)
        if self.network.routing is not None:
            name_idle_routing(self.network, self.trainer.datamodule.buckets.table)

    def on_train_start(self) -> None:
        mend_progress(self.trainer.fit_loop)
        total = self.trainer.estimated_stepping_batches
        self.total_steps = None if math.isinf(total) else int(total)
        if self.resumed_schedule is not None:
            now = describe(self.schedule, self.total_steps)
            was = "" if self.resumed_schedule == now else f" (was {self.resumed_schedule})"
            rank_zero_info(f"Resuming with {now}{was}.")

    def losses(
        self, batch: dict[str, Tensor], network: Network, conditioner: Conditioner
    ) -> tuple[dict[str, Float[Tensor, "B"]], Float[Tensor, "B"]]:
        """All loss terms by name, one number per image, and the images' times.

        Held-out images keep their condition and have evenly spread times, the same in every run.
        """
        self.image_size = tuple(batch["image"].shape[1:3])
        image = batch["image"].float() / 127.5 - 1
        draws = draw(batch["seed"], *self.image_size, image.device)
        if self.training:
            null = draws.null < conditioner.null_prob
            t = self.flow.time(draws.time, *self.image_size)
        else:
            null, t = None, self.flow.even_time(batch["index"]).to(image.device)
        sample = self.flow.sample(image, draws.noise, t)._replace(weight=batch["weight"])
        context = conditioner(batch["condition"], null)
        if self.training and network.routing is not None:
            routes = SeededRoutes(batch["seed"].tolist())
            context = context._replace(route=routes.fresh(network, *self.image_size, image.device))
        prediction = network(sample.z_t, sample.t, context)
        return self.loss(self.flow.velocity(prediction, sample.z_t, sample.t), sample), t

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Float[Tensor, ""]:
        values, _ = self.losses(batch, self.network, self.conditioner)
        weight = batch["weight"] / mean_total(batch["weight"]) * batch["share"]
        means = {name: (weight * value).sum() for name, value in values.items()}
        self.on_losses(means)
        for name, value in means.items():
            part = value.detach() / self.trainer.accumulate_grad_batches
            self.step_losses[name] = self.step_losses.get(name, 0.0) + part
        return means["total"]

    def on_validation_start(self) -> None:
        self.compile_networks()
        self.val_means = defaultdict(lambda: TimeBins().to(self.device))

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        for weights in ("ema", "raw") if self.ema is not None else (self.weights,):
            values, t = self.losses(batch, *self.drawing_parts(weights))
            stage = "val" if weights == self.weights else f"val_{weights}"
            for name, value in values.items():
                self.val_means[f"{stage}/{name}"].update(value, t, batch["weight"])

    def on_validation_epoch_end(self) -> None:
        for name, mean in self.val_means.items():
            stage, term = name.split("/", maxsplit=1)
            for times, value in mean.compute().items():
                name_t = f"{stage}_t/{term}/{times}"
                self.log(name_t if times else name, value, sync_dist=True)

    # Optimizer ------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Optimizer:
        if self.optimizer is None:
            raise UserError("optimizer must be given to train, got none. Set model.optimizer.")
        stored = {parameter.dtype for parameter in self.parameters()}
        if stored != {torch.float32}:
            names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in stored))
            raise UserError(
                f"weights must be stored in float32 to train, got {names}. "
                "Use --trainer.precision bf16-mixed or 32-true."
            )
        try:
            optimizer = self.optimizer(parameter_groups(self))
        except UserError:
            raise
        except (ValueError, RuntimeError) as error:
            reason = str(error).rstrip(".")
            raise UserError(f"optimizer settings must be valid, got: {reason}.") from error
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        return optimizer

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Set the learning rates of this step; log them and its losses.

        Where the groups' rates differ, each is logged with its role.
        """
        factor = self.schedule.factor(self.trainer.global_step, self.total_steps)
        differ = len({float(group["initial_lr"]) for group in optimizer.param_groups}) > 1
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        self.log_dict(
            {
                f"train/lr_{group['role']}" if differ else "train/lr": float(group["lr"])
                for group in optimizer.param_groups
            }
        )
        self.log_losses()

    def log_losses(self) -> None:
        """Log the losses of a step, of all its batches and processes."""
        own, self.step_losses = self.step_losses, {}
        if not own:  # a training_step of a subclass
            return
        means = self.trainer.strategy.reduce(torch.stack(list(own.values())))
        self.log_dict({f"train/{name}": mean for name, mean in zip(own, means, strict=True)})
        self.forget(f"train/{name}" for name in self.loss.terms.keys() - own.keys())

    def forget(self, names: Iterable[str]) -> None:
        """Log these numbers of earlier steps no more; Lightning repeats the last of each to the end
        of the epoch.
        """
        for name in names:
            self.trainer._results.pop(f"on_before_optimizer_step.{name}", None)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        optimizer = self.optimizers(use_pl_optimizer=False)
        checkpoint["training"] = {
            "optimizer": class_name(optimizer),
            "schedule": describe(self.schedule, self.total_steps),
            "average_steps": self.average_steps,
        }

    # Gradients ------------------------------------------------------------------------------------

    def on_before_backward(self, loss: Tensor) -> None:
        self.norm = None

    def gradient_norm(self, optimizer: Optimizer) -> Float[Tensor, ""]:
        """Euclidean norm of all gradients that `optimizer` is about to use, over all processes.

        It is computed once a step, for all callbacks that ask before the step; afterwards they may
        scale the gradients.
        """
        if self.norm is None:
            self.norm = full(torch.nn.utils.get_total_norm(gradients(optimizer)))
        return self.norm

    def skip_step(self, optimizer: Optimizer) -> None:
        """Let this step change nothing: without gradients every optimizer leaves weights and
        moments alone.
        """
        self.step_skipped = True
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    # Drawing --------------------------------------------------------------------------------------

    def drawing_parts(self, weights: Weights | None = None) -> tuple[Network, Conditioner]:
        """Network and conditioner to draw with: the average where there is one and it is asked
        for; by default what `weights` of the module asks for.
        """
        if self.ema is not None and (weights or self.weights) == "ema":
            parts = self.ema.on(self.device)
            return parts["network"], parts["conditioner"]
        return self.network, self.conditioner

    def draw(
        self, request: Request, weights: Weights | None = None, drawing: Drawing | None = None
    ) -> UInt8[Tensor, "B H W 3"]:
        """Draw what is asked for, on the CPU; the same pictures at any batch size.

        `drawing` takes the place of the module's own solver, guidance and times.
        """
        model = self.model(weights)
        model.network.check_size(request.height, request.width)
        self.image_size = request.height, request.width
        was_training = model.network.training
        for part in model[:2]:
            part.eval()
        images = draw_images(model, drawing or self.drawing, request, self.on_step)
        for part in model[:2]:
            part.train(was_training)
        return to_pixels(images).cpu()

    def model(self, weights: Weights | None = None) -> Model:
        """What draws, see drawing_parts."""
        return Model(*self.drawing_parts(weights), self.flow)

    @property
    def drawing(self) -> Drawing:
        """How images are drawn."""
        return Drawing(self.sampler, self.guidance, self.time_grid)

    def draw_batch(
        self, batch: dict[str, Any], weights: Weights | None = None
    ) -> UInt8[Tensor, "B H W 3"]:
        """Draw a batch of DrawLoader."""
        return self.draw(request_for(batch), weights, self.drawing_of(batch["items"][0]))

    def drawing_of(self, item: DrawItem) -> Drawing:
        """How an image of a list is drawn."""
        return drawing_for(item, self.drawing, self.samplers)

    def on_predict_start(self) -> None:
        self.compile_networks()

    def on_test_start(self) -> None:
        self.compile_networks()

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> UInt8[Tensor, "B H W 3"]:
        return self.draw_batch(batch)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> UInt8[Tensor, "B H W 3"]:
        return self.draw_batch(batch)


def ignore(means: dict[str, Tensor]) -> None:
    """Do nothing with the means of a batch."""


def name_idle_routing(network: Network, sizes: Iterable[tuple[int, int]]) -> None:
    """Say that routing does nothing in a run, where no image is large enough."""
    if any(network.num_kept(*size) is not None for size in sizes):
        return
    largest = max(height * width for height, width in sizes) // network.patch_size**2
    rank_zero_info(
        f"Warning: routing leaves no tokens out in this run, whose images have at most {largest}, "
        f"below min_tokens={network.routing.min_tokens}. Train at a larger size, lower "
        "model.network.init_args.routing.init_args.min_tokens, or set routing to null."
    )


def mend_progress(loop: _FitLoop) -> None:
    """Count an epoch as begun that a run goes on with after the end of the one before.

    Lightning counts that one as done then and forgets to count the new one, which the next resume
    would take for a finished epoch.
    """
    for counts in (loop.epoch_progress.current, loop.epoch_progress.total):
        if loop.restarted_mid_epoch and counts.ready == counts.completed:
            counts.ready = counts.started = counts.completed + 1


def gradients(optimizer: Optimizer) -> list[Tensor]:
    """The gradients that an optimizer is about to use."""
    parameters = (value for group in optimizer.param_groups for value in group["params"])
    return [value.grad for value in parameters if value.grad is not None]


def mean_total(weight: Float[Tensor, "B"]) -> Float[Tensor, ""]:
    """The sum of the weights over all processes, 1 where it is 0, divided by their number.

    Divided by it, each process's weighted sum averages over processes to the weighted mean of the
    global batch.
    """
    total = weight.sum()
    if are_several():
        torch.distributed.all_reduce(total)
    total = torch.where(total > 0, total, 1.0)
    return total / torch.distributed.get_world_size() if are_several() else total
