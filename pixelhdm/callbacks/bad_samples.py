"""What happens when samples cannot be read."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from pixelhdm.errors import UserError, check_at_least
from pixelhdm.files import append_once
from pixelhdm.processes import gather_objects

FILE = "bad_samples.jsonl"


class BadSamples(Callback):
    """Name every image that could not be read, and end the run when there are too many.

    Such an image has weight 0: losses, shapes and the number of steps are as if it were not there.
    Each is written with where it lies and the reason (missing, torn, unreachable, crc, decode,
    size, text) to <run folder>/bad_samples.jsonl. All processes stop together.

    Args:
        max_bad_fraction: share of an epoch's images that may be bad, 0 … 1.
        max_in_a_row: number of bad images in a row, in batches of one process without a good one.
        check_every_n_batches: how often the processes tell each other.
    """

    def __init__(
        self,
        max_bad_fraction: float = 0.01,
        max_in_a_row: int = 100,
        check_every_n_batches: int = 50,
    ):
        check_at_least(1, max_in_a_row=max_in_a_row, check_every_n_batches=check_every_n_batches)
        if not 0 <= max_bad_fraction <= 1:
            raise UserError(f"max_bad_fraction must lie in 0 … 1, got {max_bad_fraction}.")
        self.max_bad_fraction, self.max_in_a_row = max_bad_fraction, max_in_a_row
        self.check_every_n_batches = check_every_n_batches
        self.found: list[dict[str, Any]] = []
        self.in_a_row, self.longest = 0, 0
        self.epoch, self.bad = 0, {"train": 0, "val": 0}

    # Collecting -----------------------------------------------------------------------------------

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.note("train", batch)

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.note("val", batch)

    def note(self, split: str, batch: dict[str, Any]) -> None:
        """Remember the bad samples of a batch."""
        self.found += [{"split": split, **entry} for entry in batch["bad"]]
        is_all_bad = bool(batch["bad"]) and not batch["weight"].any()
        self.in_a_row = self.in_a_row + len(batch["bad"]) if is_all_bad else 0
        self.longest = max(self.longest, self.in_a_row)

    # State ----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, int]:
        """How many samples of which epoch were bad."""
        return {"epoch": self.epoch, "bad": self.bad["train"]}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.epoch, self.bad["train"] = state_dict["epoch"], state_dict["bad"]

    # Telling --------------------------------------------------------------------------------------

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if (batch_idx + 1) % self.check_every_n_batches == 0 or trainer.is_last_batch:
            self.tell(trainer, "train")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.tell(trainer, "val")
        self.bad["val"] = 0

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.write(trainer, [entry for part in gather_objects(self.taken()) for entry in part])
        checkpoint["callbacks"][self.state_key] = self.state_dict()  # asked for before this hook

    def taken(self) -> list[dict[str, Any]]:
        """What was found since the last time, to be told once."""
        found, self.found = self.found, []
        return found

    def tell(self, trainer: Trainer, split: str) -> None:
        """Write what all processes have found; raise where it is too much."""
        parts = gather_objects((self.taken(), self.longest))
        found = [entry for part, _ in parts for entry in part]
        longest, self.longest = max(number for _, number in parts), 0
        self.write(trainer, found)
        if longest > self.max_in_a_row:
            raise UserError(
                f"no more than {self.max_in_a_row} images in a row may be bad, got {longest}. "
                f"{self.remedy(trainer, 'max_in_a_row')}"
            )
        bad, num_images = self.bad[split], trainer.datamodule.num_images[split]
        if bad > self.max_bad_fraction * num_images:
            raise UserError(
                f"at most {self.max_bad_fraction:.2%} of an epoch's images may be bad, got "
                f"{bad} of {num_images} in data.{split}. "
                f"{self.remedy(trainer, 'max_bad_fraction')}"
            )

    def write(self, trainer: Trainer, found: list[dict[str, Any]]) -> None:
        """Append samples to the run's file and count them."""
        for entry in found:
            if entry["split"] == "train" and entry["epoch"] > self.epoch:
                self.epoch, self.bad["train"] = entry["epoch"], 0
            self.bad[entry["split"]] += entry["split"] == "val" or entry["epoch"] == self.epoch
        if not found or not trainer.is_global_zero:
            return
        file = Path(trainer.default_root_dir) / FILE
        append_once(file, [json.dumps(entry) for entry in found])
        reasons = Counter(entry["reason"] for entry in found)
        told = ", ".join(f"{number} {reason}" for reason, number in sorted(reasons.items()))
        rank_zero_info(f"Bad samples, of weight 0: {told}; named in {file}.")

    def remedy(self, trainer: Trainer, setting: str) -> str:
        """Where to look and what to do."""
        file = Path(trainer.default_root_dir) / FILE
        return (
            f"{file} names them: mend the shards, or raise bad_samples.{setting}, and go on with "
            "--ckpt_path last."
        )
