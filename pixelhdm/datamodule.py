"""The LightningDataModule: sources to loaders, and the exact position in the data."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from pixelhdm.data.batches import Batch, Executor
from pixelhdm.data.buckets import DROPPED, Assignment, Buckets
from pixelhdm.data.coverage import coverage_table
from pixelhdm.data.decode import DECODERS
from pixelhdm.data.draw_list import class_draws, prompt_draws
from pixelhdm.data.draw_loader import DrawLoader
from pixelhdm.data.draws import DrawItem, DrawList, Draws
from pixelhdm.data.loader import Bucketed, EpochLoader, Sharing
from pixelhdm.data.prompts import read_prompts
from pixelhdm.data.samplers import BufferedShufflePlan, Plan, SequentialPlan
from pixelhdm.data.shards import Shards
from pixelhdm.data.source import ImageSource
from pixelhdm.data.variants import Variant, varied
from pixelhdm.errors import UserError, check_at_least, check_one_of
from pixelhdm.evaluation.draws import ChunkLoader
from pixelhdm.models.conditioners.class_conditioner import ClassConditioner
from pixelhdm.processes import gather_objects

HOST_SIDE = ("seed", "index")
PART = "limit_train_batches"


class PixelHDMDataModule(LightningDataModule):
    """Training and held-out images, and the list of images to draw.

    Its state is the position in the data: a resumed run goes on with the next batch. With batches
    of another size, or shared by other numbers of processes, each image that is left of the epoch
    still comes exactly once.

    predict draws those images alone that find_drawn does not name, each with all variants; test
    draws the chunks of images that find_chunks gives, in the order of Evaluate.

    Args:
        image_size: side in pixels of the square training images, where there are no buckets, and
            of drawn images.
        batch_size: images per process and step.
        draw: which classes predict and the sample grids draw, and with which seeds and sizes; test
            draws all classes, of its own seeds.
        train: source of training images; not built by predict.
        val: source of held-out images; none switches validation off; not built by predict and test.
        prompts: what predict, test and the sample grids draw in the place of draw.classes: a .txt
            with a prompt on each line; a .jsonl with objects of prompt, negative_prompt, seed,
            height, width (or size), scale, file_name and, to begin from an image, image, mask,
            strength, source_prompt and source_scale as in draw; GenEval's metadata; a folder of
            .txt with a prompt in each, as DPG has; or a list of texts and such objects.
        buckets: sizes to train at, each image at the one that suits it; none takes image_size
            alone, every image resized and cut to it.
        batch_tokens: patches per process and step, in place of batch_size: each bucket has as many
            images as fit.
        sampler: the order of the training images.
        seed: seed of the data's order, flips, crops, captions, noise and time; empty takes
            seed_everything.
        num_workers: threads or processes that load images ahead of training; 0 loads in the
            training thread.
        executor: thread or process.
    """

    def __init__(
        self,
        image_size: int,
        batch_size: int,
        draw: Draws = Draws(),
        train: ImageSource | None = None,
        val: ImageSource | None = None,
        prompts: str | list[Any] | None = None,
        buckets: Buckets | None = None,
        batch_tokens: int | None = None,
        sampler: Plan = BufferedShufflePlan(),
        seed: int | None = None,
        num_workers: int = 4,
        executor: Executor = "thread",
    ):
        super().__init__()
        # There may be fewer images to draw than processes.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        check_at_least(1, image_size=image_size, batch_size=batch_size)
        check_at_least(1, batch_tokens=1 if batch_tokens is None else batch_tokens)
        check_at_least(0, num_workers=num_workers, seed=seed or 0)
        check_one_of(Executor, executor=executor)
        if (seed or 0) >= 2**63:
            raise UserError(f"seed must be below 2^63, got {seed}.")
        if prompts is not None and draw.classes is not None:
            raise UserError(
                "data.prompts must be empty where data.draw.classes is given, got both. Set one of "
                "them to null."
            )
        self.image_size, self.batch_size = image_size, batch_size
        self.draw, self.prompts = draw, prompts
        self.sources = {"train": train, "val": val}
        self.buckets = buckets or Buckets.square(image_size)
        self.batch_tokens, self.sampler, self.seed = batch_tokens, sampler, seed or 0
        self.num_workers, self.executor = num_workers, executor
        self.draw_list = DrawList([], "classes", "", [])
        self.variants: list[Variant] = []
        self.find_drawn: Callable[[], set[str]] = set
        self.find_chunks: Callable[[], list[list[DrawItem]]] = list
        self.drawn: set[str] = set()
        self.bucketed: dict[str, Bucketed] = {}
        self.num_images: dict[str, int] = {}
        self.loader: EpochLoader | None = None
        self.restored: dict[str, Any] | None = None
        self.changed_part = False

    @property
    def draw_size(self) -> tuple[int, int]:
        """Height and width of the images to draw, where a prompt has none of its own."""
        return self.draw.height or self.image_size, self.draw.width or self.image_size

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """Batch size, height and width of all batches that training can meet."""
        return [
            (num, *size) for num, size in zip(self.batch_sizes(), self.buckets.table, strict=True)
        ]

    def batch_sizes(self) -> list[int]:
        """Images per process and step of each bucket."""
        if self.batch_tokens is None:
            return [self.batch_size] * len(self.buckets.table)
        patch = self.trainer.lightning_module.network.patch_size
        tokens = [height * width // patch**2 for height, width in self.buckets.table]
        if max(tokens) > self.batch_tokens:
            raise UserError(
                f"batch_tokens must hold one image of the largest bucket, which has {max(tokens)} "
                f"patches, got {self.batch_tokens}."
            )
        return [self.batch_tokens // number for number in tokens]

    # Sources --------------------------------------------------------------------------------------

    def used(self, stage: str) -> dict[str, ImageSource]:
        """The sources that a stage needs."""
        names = {"fit": ("train", "val"), "validate": ("val",)}.get(stage, ())
        return {name: self.sources[name] for name in names if self.sources[name] is not None}

    def prepare_data(self) -> None:
        for source in self.used(self.trainer.state.fn).values():
            source.prepare()

    def setup(self, stage: str) -> None:
        needed = {"fit": "train", "validate": "val"}.get(stage)
        if needed is not None and self.sources[needed] is None:
            raise UserError(f"{needed} must be a source of images, got none. Set data.{needed}.")
        if stage in ("fit", "predict"):
            self.draw_list = self.to_draw()
        if stage == "test":
            self.draw_list = self.to_test()
        if stage == "fit":
            check_at_least(1, accumulate_grad_batches=self.trainer.accumulate_grad_batches)
        self.bucketed = {name: self.opened(name) for name in self.used(stage)}
        sources = [data.source for data in self.bucketed.values()]
        if len({type(source.empty) for source in sources}) > 1:
            raise UserError("train and val must both have classes or both captions, got one each.")
        if len(sources) == 2 and sources[0].classes != sources[1].classes:
            raise UserError(
                "train and val must have the same classes in the same order, got "
                f"{len(sources[0].classes)} and {len(sources[1].classes)}, different ones: "
                f"{sorted(set(sources[0].classes) ^ set(sources[1].classes))[:5]}."
            )
        self.use_cached_text(sources)
        self.loader = None

    def use_cached_text(self, sources: list[ImageSource]) -> None:
        """Take the states of single texts from the caches, and check that all are of the training's
        encoder.
        """
        leaves = [leaf for source in sources for leaf in source.leaves()]
        caches = [leaf.text_cache for leaf in leaves if isinstance(leaf, Shards)]
        caches = [cache for cache in caches if cache is not None]
        if not caches:
            return
        encoder = getattr(self.trainer.lightning_module.conditioner, "encoder", None)
        if encoder is None:
            raise UserError(
                "cached_text must be false for a conditioner without text encoder, got true. "
                "Set model.conditioner to Qwen3Conditioner, for example."
            )
        settings, files = encoder.settings(), encoder.files_digest()
        for cache in caches:
            known = cache.single_texts()
            cache.check_encoder(settings, files)
            encoder.known.update(known)
        texts = {text for item in self.draw_list.items for text in item.texts}
        if new := sorted(texts - encoder.known.keys()):
            rank_zero_info(
                f"The text encoder is needed for {len(new)} prompts that the text cache lacks, "
                f"such as {new[0]!r}. Run main.py cache-text with this config to do without."
            )

    def to_draw(self) -> DrawList:
        """The images that predict and the sample grids draw."""
        if self.prompts is None:
            drawn = class_draws(self.draw, self.draw_size)
        else:
            drawn = prompt_draws(read_prompts(self.prompts), self.draw, self.draw_size)
        return varied(drawn, self.variants) if self.variants else drawn

    def to_test(self) -> DrawList:
        """One image of each class that the model knows, or of each prompt."""
        draw = replace(self.draw, num_images=1)
        if self.prompts is not None:
            return prompt_draws(read_prompts(self.prompts), draw, self.draw_size)
        conditioner = self.trainer.lightning_module.conditioner
        if not isinstance(conditioner, ClassConditioner):
            raise UserError(
                "data.prompts must say what to draw where the condition is text, got none. Set "
                "--data.prompts to a file with a prompt on each line."
            )
        classes = list(range(conditioner.num_classes))
        return class_draws(replace(draw, classes=classes), self.draw_size)

    def opened(self, name: str) -> Bucketed:
        """A source, opened, with the bucket of each of its images."""
        source, buckets = self.sources[name], self.buckets
        for height, width in buckets.table:
            self.trainer.lightning_module.network.check_size(height, width)
        source.open()
        seen = sorted(set(gather_objects(source.fingerprint())))
        if len(seen) > 1:
            raise UserError(
                f"data.{name} must be the same for all processes, got {' and '.join(seen)}. "
                "Let all of them reach the same shards."
            )
        if buckets.takes_all and not source.knows_sizes:
            return Bucketed(source, buckets.table, np.zeros(len(source), dtype=np.int16))
        sizes = source.sizes()
        assignment = buckets.assign(sizes)
        self.check_coverage(name, source, sizes, assignment)
        return Bucketed(source, buckets.table, assignment.bucket)

    def check_coverage(
        self, name: str, source: ImageSource, sizes: np.ndarray, assignment: Assignment
    ) -> None:
        """Say what training will see; raise where that is nothing."""
        world = self.trainer.world_size
        rows = source.rows(assignment.bucket, self.seed, 0)
        if rows is not None:  # what an epoch shows of them
            seen = rows % len(source)
            sizes, assignment = sizes[seen], Assignment(*(part[seen] for part in assignment))
        table = coverage_table(self.buckets, sizes, assignment, self.batch_sizes(), world)
        rank_zero_info("\n".join([f"Images of data.{name}:", *table, *source.problems()]))
        if (assignment.bucket == DROPPED).all():
            raise UserError(
                f"data.{name} must have images that fit a bucket, got {len(sizes)} images and none "
                "that does. Lower buckets.min_side, or set buckets.too_small to upscale."
            )

    # Loaders --------------------------------------------------------------------------------------

    def build_loader(self, name: str, seed: int, sampler: Plan, endless: bool) -> EpochLoader:
        """The loader of a source for this process."""
        trainer = self.trainer
        pin = trainer.strategy.root_device.type == "cuda"
        sharing = Sharing(
            trainer.global_rank, trainer.world_size, self.num_workers, self.executor, pin
        )
        accumulate = trainer.accumulate_grad_batches
        data, sizes = self.bucketed[name], self.batch_sizes()
        loader = EpochLoader(data, sizes, sampler, seed, endless, sharing, accumulate)
        self.num_images[name] = loader.num_images
        return loader

    def train_dataloader(self) -> EpochLoader:
        earlier, self.loader = self.loader, self.training_loader()
        if earlier is not None:
            earlier.close()
            self.loader.restore(*earlier.position())
        if self.restored is not None:
            self.check_restored(self.restored, self.loader)
            self.changed_part = self.restored[PART] != self.part
            self.go_to(self.restored, self.loader)
            if self.restored["images per batch"] != self.loader.slots.tolist():
                rank_zero_info(
                    f"The batches are of other sizes than the checkpoint's: what is left of epoch "
                    f"{self.loader.epoch} is planned anew, each image that is left once."
                )
            if self.restored["decoders"] != DECODERS:
                rank_zero_info(
                    f"Images are decoded by {DECODERS}, the checkpoint's were by "
                    f"{self.restored['decoders']}: pixels may differ in their last bits."
                )
            self.restored = None
        return self.loader

    def training_loader(self) -> EpochLoader:
        """A loader of the training images, at the start."""
        endless = not self.trainer.overfit_batches  # else each epoch has the same few batches
        loader = self.build_loader("train", self.seed, self.sampler, endless)
        limit, batches = self.trainer.limit_train_batches, len(loader)
        part = min(limit, batches) if isinstance(limit, int) else int(limit * batches)
        loader.trainer_epoch = max(part, 1)
        return loader

    def val_dataloader(self) -> EpochLoader | list:
        """Held-out images with the same noise in every run, whatever its seed."""
        if self.sources["val"] is None:
            return []
        return self.build_loader("val", 0, SequentialPlan(), endless=False)

    def predict_dataloader(self) -> DrawLoader:
        self.drawn = self.find_drawn()
        items = [item for item in self.draw_list.items if item.file not in self.drawn]
        trainer = self.trainer
        return DrawLoader(items, self.batch_size, trainer.global_rank, trainer.world_size)

    def test_dataloader(self) -> ChunkLoader:
        return ChunkLoader(self.find_chunks(), self.batch_size)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        self.trainer.lightning_module.conditioner.check(batch["condition"])
        return batch

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Move what the device computes with; what the host reads stays, so that reading it does
        not wait for the device.
        """
        return {
            name: value.to(device, non_blocking=True)
            if isinstance(value, Tensor) and name not in HOST_SIDE
            else value
            for name, value in batch.items()
        }

    def teardown(self, stage: str) -> None:
        if self.loader is not None:
            self.loader.close()

    def on_exception(self, exception: BaseException) -> None:
        """Stop loading ahead: what is under way would keep the process from ending."""
        self.teardown("fit")

    # Position -------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Position (epoch, steps given out) and what it belongs to; equal on all processes."""
        if self.loader is None:
            return {}
        epoch, step, history = self.loader.position()
        return {
            "epoch": epoch,
            "step": step,
            "images per batch": self.loader.slots.tolist(),
            "history": [list(part) for part in history],
            "decoders": DECODERS,
            PART: "several" if self.changed_part else self.part,
            **self.identity(),
        }

    @property
    def part(self) -> int | Literal["all"]:
        """Batches of an epoch that the trainer takes."""
        taken = self.loader.trainer_epoch
        return taken if taken < len(self.loader) else "all"

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.restored = state_dict or None

    def go_to(self, state: dict[str, Any], loader: EpochLoader) -> None:
        """Set a loader to a saved position, in batches of its own sizes."""
        step, history = state["step"], [tuple(part) for part in state["history"]]
        if state["images per batch"] != loader.slots.tolist():
            history.append((state["images per batch"], step))
            step = 0
        loader.restore(state["epoch"], step, history)

    def regroup(self, checkpoint: dict[str, Any]) -> None:
        """Count a checkpoint's batches in those of this run, which may be of other sizes."""
        state = checkpoint[type(self).__qualname__]
        loader = self.training_loader()
        if state["images per batch"] == loader.slots.tolist():
            return
        self.loader = loader
        self.check_restored(state, loader)
        self.go_to(state, loader)
        self.loader = None
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        done = {"current": loader.step, "total": loader.epoch * len(loader) + loader.step}
        for name, number in done.items():
            counts = progress[name]
            open_batches = counts["ready"] - counts["completed"]
            counts |= dict.fromkeys(("ready", "started", "processed"), number)
            counts["completed"] = number - open_batches

    def identity(self) -> dict[str, Any]:
        """What a position is only valid for."""
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self.sampler).items())
        return {
            "data": self.bucketed["train"].source.fingerprint(),
            "buckets": self.buckets.described(),
            "sampler": f"{type(self.sampler).__name__}({settings})",
            "seed": self.seed,
        }

    def check_restored(self, state: dict[str, Any], loader: EpochLoader) -> None:
        """Raise unless a saved position belongs to these data."""
        own, regrouped = self.identity(), state["images per batch"] != loader.slots.tolist()
        if not self.trainer.fast_dev_run:  # it saves nothing
            if regrouped or loader.accumulate > 1:  # the trainer's epoch's end ends a step
                own[PART] = self.part
            if regrouped and self.part != "all":
                own["images per batch"] = loader.slots.tolist()
        for name, value in own.items():
            if state[name] != value:
                raise UserError(
                    f"a resumed run must keep its {name}, got {value} where the checkpoint has "
                    f"{state[name]}. "
                    "Restore it, or start a new run from the weights with --model.init_from."
                )
