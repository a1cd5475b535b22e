"""How good the drawn images are, watched while training."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from pixelhdm.callbacks.quality_distance import Metric, RealFeatures
from pixelhdm.data.batches import Slots, load_ahead
from pixelhdm.data.draw_loader import DrawLoader
from pixelhdm.data.draws import DrawItem
from pixelhdm.data.source import ImageSource
from pixelhdm.errors import UserError, check_at_least, check_one_of
from pixelhdm.evaluation.draws import in_turn, one_size
from pixelhdm.evaluation.extractors.extractor import Extractor
from pixelhdm.evaluation.extractors.lite_features import LiteFeatures
from pixelhdm.inference.drawable import check_drawable, check_solvers, check_weaker
from pixelhdm.module import PixelHDMModule
from pixelhdm.processes import gather_objects

LEAST = 2


class Quality(Callback):
    """Compare images drawn with the average with real ones every few steps, by a small-n score.

    The score is logged as quality/KID or quality/FD, and what as many real images get beside it
    as quality/KID_floor or quality/FD_floor; a callback that monitors can ask for either. It tells
    checkpoints of a run apart; figures to publish come from main.py test. Images have the same
    seeds every time, of the classes or of data.prompts in turn, and are shared out over the
    processes. Real ones are of data.val, of data.train where there is none, as large as those that
    are drawn; their features are computed once, when training starts. Training itself is the same
    to the bit with and without it.

    Args:
        every_n_steps: optimizer steps between two scores; 0 switches it off.
        num_images: number of drawn images, at least 2.
        metric: kid, the unbiased squared maximum mean discrepancy with the kernel (x·y / D + 1)³
            of all images (arXiv:1801.01401), or fd, the Fréchet distance, which is biased the more
            the fewer the images are.
        extractor: network whose features are compared; empty takes LiteFeatures.
        num_real: real images at most to compare with; num_images others, where there are so many,
            give the floor.
        seed: seed of the first image and of the choice of the real ones.
        num_steps: steps of the solver; empty takes the run's.
    """

    def __init__(
        self,
        every_n_steps: int = 0,
        num_images: int = 1000,
        metric: Metric = "kid",
        extractor: Extractor | None = None,
        num_real: int = 2000,
        seed: int = 0,
        num_steps: int | None = None,
    ):
        check_at_least(0, every_n_steps=every_n_steps, seed=seed)
        check_at_least(LEAST, num_images=num_images, num_real=num_real)
        check_at_least(1, num_steps=1 if num_steps is None else num_steps)
        check_one_of(Metric, metric=metric)
        self.every_n_steps, self.num_images, self.metric = every_n_steps, num_images, metric
        self.extractor = LiteFeatures() if extractor is None else extractor
        self.num_real, self.seed, self.num_steps = num_real, seed, num_steps
        self.name = f"quality/{metric.upper()}"
        self.items: list[DrawItem] = []
        self.real: RealFeatures | None = None
        self.floor: float | None = None
        self.seen, self.start, self.began, self.is_first = 0, 0, 0.0, True

    def setup(self, trainer: Trainer, pl_module: PixelHDMModule, stage: str) -> None:
        sharded = isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy)
        if stage == "fit" and self.every_n_steps and sharded:
            raise UserError(
                "trainer.strategy must keep the weights whole for quality, got "
                f"{type(trainer.strategy).__name__}. Use ddp, or leave quality.every_n_steps 0."
            )

    def on_train_start(self, trainer: Trainer, pl_module: PixelHDMModule) -> None:
        if not self.every_n_steps or trainer.fast_dev_run:
            return
        data, began = trainer.datamodule, time.perf_counter()
        each = data.to_test().items
        size = one_size(each)
        check_drawable(each, pl_module.network, pl_module.conditioner, pl_module.guidance)
        check_solvers(each, pl_module.drawing, pl_module.samplers)
        check_weaker(each, pl_module.model(), pl_module.guidance)
        items = in_turn(each, self.num_images, self.seed)
        self.items = [item._replace(num_steps=self.num_steps) for item in items]
        name = "val" if "val" in data.bucketed else "train"
        features, floor = self.look_at_real(trainer, data.bucketed[name].source, size)
        if trainer.is_global_zero:
            self.real = RealFeatures(features, self.metric)
            self.floor = None if floor is None else self.real.distance(floor)
        took = time.perf_counter() - began
        self.tell_start(f"data.{name}", len(features), took)
        self.seen = self.start = trainer.global_step
        self.began, self.is_first = time.perf_counter(), True

    def on_train_batch_end(self, trainer: Trainer, pl_module: PixelHDMModule, *_: Any) -> None:
        step, before = trainer.global_step, self.seen
        self.seen = step
        if not self.items or step == before or step % self.every_n_steps:
            return
        began = time.perf_counter()
        drawn = self.draw(trainer, pl_module)
        value = self.real.distance(drawn) if trainer.is_global_zero else 0.0
        value, floor = gather_objects((value, self.floor))[0]
        values = {self.name: value} | ({} if floor is None else {f"{self.name}_floor": floor})
        for logger in trainer.loggers:  # whatever trainer.log_every_n_steps is
            logger.log_metrics(values, step=step - 1)
        pl_module.log_dict(values, logger=False)
        if self.is_first:
            self.tell_cost(value, step, began)
            self.is_first = False

    # Features -------------------------------------------------------------------------------------

    def draw(self, trainer: Trainer, pl_module: PixelHDMModule) -> Float[Tensor, "N D"]:
        """Features of the images, drawn by all processes, in their order."""
        found: list[tuple[int, Tensor]] = []
        size = trainer.datamodule.batch_size
        for batch in DrawLoader(self.items, size, trainer.global_rank, trainer.world_size):
            with trainer.precision_plugin.forward_context():
                pixels = pl_module.draw_batch(batch, "ema")
            features = self.extractor(pixels.to(pl_module.device)).pool
            found += zip((item.seed for item in batch["items"]), features, strict=True)
        self.extractor.rest()
        return torch.stack(in_order(found))

    def look_at_real(
        self, trainer: Trainer, source: ImageSource, size: tuple[int, int]
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "M D"] | None]:
        """Features of the real images to compare with, and of others for the floor, None where
        there are not as many again.
        """
        order = np.random.default_rng(self.seed).permutation(len(source))
        num_floor = self.num_images if len(source) >= 2 * self.num_images else 0
        order = order[: num_floor + self.num_real]
        own = np.arange(len(order))[trainer.global_rank :: trainer.world_size]
        found: list[tuple[int, Tensor]] = []
        workers, batch_size = trainer.datamodule.num_workers, trainer.datamodule.batch_size
        batches = load_ahead(source, slots(order[own], size, batch_size), workers, "thread", False)
        for part, batch in batches:
            is_good = batch["weight"] > 0
            places = own[part.step * batch_size :][: len(is_good)][is_good.numpy()]
            if len(places):
                features = self.extractor(batch["image"][is_good].to(trainer.strategy.root_device))
                found += zip(places.tolist(), features.pool, strict=True)
        self.extractor.rest()
        features = in_order(found)
        check_at_least(num_floor + LEAST, **{"number of readable real images": len(features)})
        floor = torch.stack(features[:num_floor]) if num_floor else None
        return torch.stack(features[num_floor:]), floor

    # Telling --------------------------------------------------------------------------------------

    def tell_start(self, source: str, num_real: int, seconds: float) -> None:
        """Say what the scores will be read by."""
        floor = f"as many real images have {self.floor:.4g}" if self.floor is not None else ""
        floor = floor or f"{source} has too few images to tell what as many real ones have"
        rank_zero_info(
            f"{self.name} every {self.every_n_steps} steps: {self.num_images:,} images against "
            f"{num_real:,} of {source} by {self.extractor.label}, resize {self.extractor.resize}; "
            f"{floor}. Looking at them took {seconds:.1f} s."
        )

    def tell_cost(self, value: float, step: int, began: float) -> None:
        """Say what the first score is, and what share of the time scores will take."""
        seconds = time.perf_counter() - began
        between = (began - self.began) / (step - self.start) * self.every_n_steps
        rank_zero_info(
            f"{self.name} {value:.4g} at step {step}. It took {seconds:.1f} s, "
            f"{seconds / (seconds + between):.1%} of the time from here on."
        )


def slots(order: Int64[np.ndarray, "N"], size: tuple[int, int], batch_size: int) -> Iterator[Slots]:
    """Images of a source in batches; without random flips or crops, each has the seed 0."""
    for step, start in enumerate(range(0, len(order), batch_size)):
        index = order[start : start + batch_size]
        yield Slots(0, step, size, len(index), index, np.zeros(len(index), dtype=np.int64))


def in_order(own: list[tuple[int, Tensor]]) -> list[Tensor]:
    """Vectors of all processes, each given with its number, in the order of these."""
    numbers, vectors = [number for number, _ in own], [vector for _, vector in own]
    found: list[tuple[int, Tensor]] = []
    for part, stacked in gather_objects((numbers, torch.stack(vectors) if own else None)):
        found += zip(part, () if stacked is None else stacked, strict=True)
    return [vector for _, vector in sorted(found, key=lambda one: one[0])]
