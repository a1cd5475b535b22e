"""One evaluation after another, and what is written of all of them."""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Trainer

from pixelhdm.callbacks.evaluate import Evaluate
from pixelhdm.callbacks.image_facts import digest_of_checkpoint
from pixelhdm.datamodule import PixelHDMDataModule
from pixelhdm.evaluation.image_store import CHUNK
from pixelhdm.inference.draw import Drawing
from pixelhdm.inference.sweep import described
from pixelhdm.module import PixelHDMModule
from pixelhdm.sweeping.averages import Averaged, averages_of
from pixelhdm.sweeping.axes import Axes
from pixelhdm.sweeping.cost import Cost, cost
from pixelhdm.sweeping.kept import identity, read_result, read_shown, write_result
from pixelhdm.sweeping.report import Outcome, write_all
from pixelhdm.sweeping.results import Row, check_metric, deciding
from pixelhdm.sweeping.setting import Setting, combinations, drawing_of, plain
from pixelhdm.sweeping.timing import DrawingTime

FOLDER, SETTINGS = "sweeps", "settings"


class Task(NamedTuple):
    """A setting to evaluate.

    Attributes:
        setting: how images are drawn.
        cost: work for an image.
        averaged: its weights.
        identity: differs when its scores could.
    """

    setting: Setting
    cost: Cost
    averaged: Averaged
    identity: str


class Asked(NamedTuple):
    """What the scores of every setting depend on.

    Attributes:
        settings: of the command line, in plain values.
        files: those that they name.
    """

    settings: dict[str, Any]
    files: list[Path]


@dataclass
class Sweeping:
    """A sweep with the parts of a command line.

    Args:
        trainer: runs test, once a setting.
        module: draws.
        data: says what to draw.
        evaluate: stores and scores.
        axes: what is compared.
        checkpoint: whose weights.
        asked: what else the scores depend on.
    """

    trainer: Trainer
    module: PixelHDMModule
    data: PixelHDMDataModule
    evaluate: Evaluate
    axes: Axes
    checkpoint: Path
    asked: Asked
    timing: DrawingTime = field(default_factory=DrawingTime)

    def __post_init__(self) -> None:
        name = f"{self.checkpoint.stem}_n{self.evaluate.num_images}"
        default = Path(self.trainer.default_root_dir) / FOLDER / name
        self.folder = Path(self.axes.folder) if self.axes.folder else default
        self.own = self.module.drawing
        samplers = self.axes.samplers or [self.own.sampler]
        self.samplers = {described(sampler): sampler for sampler in samplers}
        combined = combinations(self.axes, self.own, self.module.weights)
        self.evaluated_as = {setting: plain(setting, self.own.guidance) for setting in combined}
        self.num_shown = min(self.axes.num_grids, self.evaluate.num_images, CHUNK)
        # Images of all settings would fill a disk; until its scores are there they stay.
        self.keeps_images, self.evaluate.keep_images = self.evaluate.keep_images, True
        self.evaluate.kind, self.evaluate.is_quiet = "sweep", True
        self.trainer.callbacks.insert(0, self.timing)

    def run(self) -> None:
        """Evaluate what is not evaluated yet, then write and tell everything.

        Raises:
            UserError: an average cannot be made, or the scores have none of the metric's name.
        """
        check_metric(self.axes.metric, self.evaluate.extractors, self.evaluate.num_images)
        self.folder.mkdir(parents=True, exist_ok=True)
        tasks = self.tasks()
        found = {task.setting: row for task in tasks if (row := self.known(task)) is not None}
        left = [task for task in tasks if task.setting not in found]
        self.announce(len(tasks), left)
        for row in found.values():
            deciding(row.scores, self.axes.metric)
        passes, began = [task.cost.passes for task in left], 0.0
        for number, task in enumerate(left):
            about, done = "", sum(passes[1:number])
            if done:  # the first one also waits for the real images' features
                rest = (time.monotonic() - began) / done * sum(passes[number:])
                about = f", about {in_words(rest)} left"
            self.tell(f"Setting {number + 1} of {len(left)}: {task.setting.words()}{about}")
            row = self.evaluated(task)
            if row is None:
                self.tell("Images are left to draw: the same command goes on.")
                return
            found[task.setting] = row
            began = began or time.monotonic()
        if self.trainer.is_global_zero:
            self.finish(found, {task.setting.ema: task.averaged for task in tasks})

    def tasks(self) -> list[Task]:
        """All settings that differ, with the averages that they need, which are made here."""
        settings = list(dict.fromkeys(self.evaluated_as.values()))
        emas = list(dict.fromkeys(setting.ema for setting in settings))
        is_first = self.trainer.is_global_zero
        averages = averages_of(emas, self.checkpoint, self.folder, is_first)
        digests = {ema: digest_of_checkpoint(own.file) for ema, own in averages.items()}
        return [
            Task(
                setting,
                cost(self.drawing(setting), self.module.flow, *self.data.draw_size),
                averages[setting.ema],
                identity(
                    {**self.asked.settings, "setting": setting},
                    digests[setting.ema],
                    self.asked.files,
                ),
            )
            for setting in settings
        ]

    def drawing(self, setting: Setting) -> Drawing:
        """How a setting draws."""
        return drawing_of(setting, self.own, self.samplers)

    def place(self, setting: Setting) -> Path:
        """The folder of a setting."""
        return self.folder / SETTINGS / setting.name

    def known(self, task: Task) -> Row | None:
        """What an earlier call found of a setting; None where it did not."""
        place = self.place(task.setting)
        return read_result(place, task.identity, task.setting, task.cost)

    def evaluated(self, task: Task) -> Row | None:
        """Draw and score the images of a setting; None where some are left to draw."""
        drawing = self.drawing(task.setting)
        self.module.sampler, self.module.guidance = drawing.sampler, drawing.guidance
        self.module.weights = task.averaged.weights
        place = self.place(task.setting)
        self.evaluate.folder = str(place)
        self.timing.restart()
        self.trainer.test(self.module, self.data, ckpt_path=str(task.averaged.file), verbose=False)
        if not self.evaluate.scores:
            return None
        row = Row(task.setting, task.cost, self.evaluate.scores, self.timing.per_image)
        metric = deciding(row.scores, self.axes.metric)
        self.tell(f"  {metric} {row.score(metric).value:.4g}")
        if self.trainer.is_global_zero:
            store, shown = self.evaluate.store, []
            if store.has_images(0):  # else an earlier call has kept those that are shown
                shown = [store.image(number) for number in range(self.num_shown)]
            write_result(place, task.identity, row, shown)
            if not self.keeps_images:
                store.delete_images()
        return row

    def finish(self, found: dict[Setting, Row], averages: dict[str, Averaged]) -> None:
        """Write and tell everything."""
        rows = {setting: found[same] for setting, same in self.evaluated_as.items()}
        first = next(iter(rows.values()))
        outcome = Outcome(
            deciding(first.scores, self.axes.metric),
            rows,
            {
                "images": f"{self.evaluate.num_images:,} images",
                "first seed": str(self.evaluate.seed),
                "checkpoint": self.checkpoint.name,
                "reference": str(self.evaluate.real.file or "data.train"),
            },
            {setting: read_shown(self.place(setting))[: self.num_shown] for setting in found},
        )
        best = outcome.best.setting
        averaged, drawing = averages[best.ema], self.drawing(best)
        self.tell(write_all(self.folder, outcome, averaged, drawing, sys.argv))

    def announce(self, num: int, left: list[Task]) -> None:
        """Say what the sweep will take."""
        images, same = self.evaluate.num_images, len(self.evaluated_as) - num
        text = f"Sweep of {num} settings"
        if same:
            text += f" ({same} more would draw the same: no guidance, whatever the interval)"
        if num > len(left):
            text += f", {num - len(left)} of which are already evaluated in {self.folder}"
        passes = images * sum(task.cost.passes for task in left)
        self.tell(
            f"{text}. To do: {len(left)} settings, {len(left) * images:,} images, {passes:,} "
            "predictions of the network, each setting with the same seeds."
        )

    def tell(self, text: str) -> None:
        """Print on the first process."""
        if self.trainer.is_global_zero:
            print(text, flush=True)


def in_words(seconds: float) -> str:
    """A duration with its largest unit."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
