"""The LightningDataModule: sources to loaders, and the exact position in the data."""

from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule

from pixelhdm.data.draws import ClassDraws, DrawLoader
from pixelhdm.data.loader import Batch, EpochLoader
from pixelhdm.data.source import ImageSource
from pixelhdm.errors import UserError, check_at_least

HOST_SIDE = ("seed", "index")
PART = "limit_train_batches"


class PixelHDMDataModule(LightningDataModule):
    """Training and held-out images, and the list of images to draw.

    Its state is the position in the data: a resumed run goes on with the next batch, on the same
    number of images per optimizer step, whatever processes and accumulated batches share them.

    Args:
        image_size: side of the square training images in pixels.
        batch_size: images per process and step.
        draw: which images predict and the sample grids draw.
        train: source of training images; not built by predict.
        val: source of held-out images; none switches validation off; not built by predict.
        seed: seed of the data's order, flips, noise and time; empty takes seed_everything.
        num_threads: threads that load images ahead of training; 0 loads in the training thread.
    """

    def __init__(
        self,
        image_size: int,
        batch_size: int,
        draw: ClassDraws,
        train: ImageSource | None = None,
        val: ImageSource | None = None,
        seed: int | None = None,
        num_threads: int = 4,
    ):
        super().__init__()
        # There may be fewer images to draw than processes.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        check_at_least(1, image_size=image_size, batch_size=batch_size)
        check_at_least(0, num_threads=num_threads, seed=seed or 0)
        self.image_size, self.batch_size, self.draw, self.num_threads = (
            image_size,
            batch_size,
            draw,
            num_threads,
        )
        self.sources = {"train": train, "val": val}
        self.seed = seed or 0
        self.loader: EpochLoader | None = None
        self.restored: dict[str, Any] | None = None
        self.changed_part = False

    @property
    def draw_size(self) -> tuple[int, int]:
        """Height and width of the images to draw."""
        return self.draw.height or self.image_size, self.draw.width or self.image_size

    @property
    def global_batch(self) -> int:
        """Images of a batch, over all processes."""
        return self.batch_size * self.trainer.world_size

    def used(self, stage: str) -> list[ImageSource]:
        """The sources that a stage needs."""
        names = {"fit": ("train", "val"), "validate": ("val",)}.get(stage, ())
        return [self.sources[name] for name in names if self.sources[name] is not None]

    def prepare_data(self) -> None:
        for source in self.used(self.trainer.state.fn):
            source.prepare()

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.sources["train"] is None:
            raise UserError("train must be a source of images, got none. Set data.train.")
        if stage == "fit":
            check_at_least(1, accumulate_grad_batches=self.trainer.accumulate_grad_batches)
        if stage == "validate" and self.sources["val"] is None:
            raise UserError("val must be a source of images, got none. Set data.val.")
        sources = self.used(stage)
        for source in sources:
            source.open(self.image_size)
        if len(sources) == 2 and sources[0].classes != sources[1].classes:
            raise UserError(
                "train and val must have the same classes in the same order, got "
                f"{len(sources[0].classes)} and {len(sources[1].classes)}, different ones: "
                f"{sorted(set(sources[0].classes) ^ set(sources[1].classes))[:5]}."
            )
        self.loader = None

    def build_loader(self, name: str, seed: int, shuffle: bool) -> EpochLoader:
        """The loader of a source for this process."""
        rank, world = self.trainer.global_rank, self.trainer.world_size
        source = self.sources[name]
        accumulate = self.trainer.accumulate_grad_batches
        return EpochLoader(
            source, self.batch_size, seed, shuffle, rank, world, self.num_threads, accumulate
        )

    def train_dataloader(self) -> EpochLoader:
        earlier, self.loader = self.loader, self.build_loader("train", self.seed, shuffle=True)
        limit, batches = self.trainer.limit_train_batches, len(self.loader)
        part = min(limit, batches) if isinstance(limit, int) else int(limit * batches)
        self.loader.trainer_epoch = max(part, 1)
        if earlier is not None:
            self.loader.epoch, self.loader.step = earlier.epoch, earlier.step
        if self.restored is not None:
            self.check_restored(self.restored)
            self.changed_part = self.restored[PART] != self.part
            self.loader.epoch = self.restored["epoch"]
            self.loader.step = self.regrouped(self.restored, self.restored["step"])
            self.restored = None
        return self.loader

    def val_dataloader(self) -> EpochLoader | list:
        """Held-out images with the same noise in every run, whatever its seed."""
        if self.sources["val"] is None:
            return []
        return self.build_loader("val", seed=0, shuffle=False)

    def predict_dataloader(self) -> DrawLoader:
        return DrawLoader(
            self.draw, self.batch_size, self.trainer.global_rank, self.trainer.world_size
        )

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        self.trainer.lightning_module.conditioner.check(batch["condition"])
        return batch

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Move what the device computes with; numbers that the host reads stay, so that reading
        them does not wait for the device.
        """
        return {
            name: value if name in HOST_SIDE else value.to(device, non_blocking=True)
            for name, value in batch.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Position (epoch, steps given out) and what it belongs to; equal on all processes."""
        if self.loader is None:
            return {}
        return {
            "epoch": self.loader.epoch,
            "step": self.loader.step,
            "images per batch": self.loader.global_batch,
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

    def regrouped(self, state: dict[str, Any], batches: int) -> int:
        """As many batches of this run as hold the images of some batches of the saved run."""
        return -(-batches * state["images per batch"] // self.global_batch)

    def regroup(self, checkpoint: dict[str, Any]) -> None:
        """Count a checkpoint's batches in those of this run, which may be others of a step's."""
        state = checkpoint[type(self).__qualname__]
        if state["images per batch"] == self.global_batch:
            return
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            open_batches = counts["ready"] - counts["completed"]
            done = self.regrouped(state, counts["ready"])
            counts |= dict.fromkeys(("ready", "started", "processed"), done)
            counts["completed"] = done - open_batches

    def identity(self) -> dict[str, Any]:
        """What a position is only valid for."""
        return {
            "data": self.loader.source.fingerprint(),
            "seed": self.seed,
            "images per optimizer step": self.loader.global_batch * self.loader.accumulate,
        }

    def check_restored(self, state: dict[str, Any]) -> None:
        """Raise unless the restored position belongs to these data."""
        own, regrouped = self.identity(), state["images per batch"] != self.loader.global_batch
        if not self.trainer.fast_dev_run:  # it saves nothing
            if regrouped or self.loader.accumulate > 1:  # the trainer's epoch's end ends a step
                own[PART] = self.part
            if regrouped and self.part != "all":
                own["images per batch"] = self.loader.global_batch
        for name, value in own.items():
            if state[name] != value:
                raise UserError(
                    f"a resumed run must keep its {name}, got {value} where the checkpoint has "
                    f"{state[name]}. "
                    "Restore it, or start a new run from the weights with --model.init_from."
                )
