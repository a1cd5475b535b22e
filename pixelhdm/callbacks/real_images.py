"""The real images that an evaluation compares with."""

from collections.abc import Mapping
from datetime import UTC, datetime
from os.path import expanduser
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info

from pixelhdm.data.mix import Mix
from pixelhdm.data.source import ImageSource
from pixelhdm.errors import UserError
from pixelhdm.evaluation.arrays_file import ArraysFile, remove_leftovers
from pixelhdm.evaluation.extractors.extractor import Extractor
from pixelhdm.evaluation.numbers import FEWEST, floors_of
from pixelhdm.evaluation.reference import (
    Reference,
    read_references,
    references_of,
    write_references,
)
from pixelhdm.evaluation.reference_facts import facts_in, facts_of
from pixelhdm.evaluation.walk import Gathered, Walk
from pixelhdm.processes import Meeting, gather_objects

MOST = 50_000  # real images whose features are kept; Inception's take 20 kB each


class RealImages:
    """Reference statistics: those of a file, or of data.train, which are computed once and kept in
    <run folder>/reference_<size>_<extractor>.npz.

    Args:
        file: where they lie, ~ allowed; None takes data.train.

    Attributes:
        references: by the extractors' keys, once they are read; on the first process alone.
        name: what they are of: the given file, or data.train with its files.
    """

    def __init__(self, file: str | None):
        self.file = None if file is None else expanduser(file)
        self.references: dict[str, Reference] = {}
        self.read: tuple[Any, ...] = ()
        self.known_floors: dict[tuple[str, int], Mapping[str, float]] = {}
        self.name = ""

    def check(self, trainer: Trainer) -> None:
        """Raise a UserError where there is nothing to compare with."""
        if self.file is None and trainer.datamodule.sources["train"] is None:
            raise UserError(
                "evaluate.reference must be a file of statistics where data.train is empty, got "
                "neither. Set one of them; main.py stats makes such files."
            )
        if self.file is not None and not Path(self.file).is_file():
            raise UserError(
                f"evaluate.reference must be a .npz file of statistics, got {self.file}, which "
                "does not exist. Make one with main.py stats, or leave it empty to take data.train."
            )

    def prepare(
        self,
        trainer: Trainer,
        extractors: list[Extractor],
        size: tuple[int, int],
        num_images: int,
        meeting: Meeting,
    ) -> None:
        """Make what is missing and read it, before anything is drawn; all processes call it.

        Args:
            trainer: of the evaluation.
            extractors: whose references are wanted.
            size: height and width of the drawn images in pixels.
            num_images: how many are drawn; of data.train twice as many features are kept, where
                there are as many, for the scores of as many real images.
            meeting: where processes wait for each other.

        Raises:
            UserError: a file does not serve, or the images are too few.
        """
        source = trainer.datamodule.sources["train"]
        if self.file is None and trainer.local_rank == 0:
            source.prepare()
        meeting.wait()
        wanted = (size, num_images, tuple(own.digest() for own in extractors))
        problem = ""
        if trainer.is_global_zero and self.read != wanted:
            try:
                with torch.inference_mode(False):  # moments are merged later on
                    self.references = self.found(trainer, extractors, size, num_images)
            except UserError as error:
                problem = str(error)
            self.read, self.known_floors = wanted, {}
        meeting.wait()
        if problem := gather_objects(problem)[0]:  # of all processes: none is left waiting
            raise UserError(problem)

    def floors(self, extractor: Extractor, num_images: int) -> Mapping[str, float]:
        """The scores of as many real images, computed once: a sweep asks again and again."""
        known = (extractor.key, num_images)
        if known not in self.known_floors:
            reference = self.references[extractor.key]
            self.known_floors[known] = floors_of(extractor, reference, num_images)
        return self.known_floors[known]

    def found(
        self,
        trainer: Trainer,
        extractors: list[Extractor],
        size: tuple[int, int],
        num_images: int,
    ) -> dict[str, Reference]:
        """The references from their files."""
        if self.file is not None:
            self.name, device = self.file, trainer.strategy.root_device
            found = read_references(Path(self.file), extractors, device, size)
        else:
            self.name = "data.train"
            found = training_references(trainer, extractors, size, num_images)
        for own in extractors:
            kept = found[own.key].features
            if own.kind == "clip" and (kept is None or len(kept) < FEWEST):
                raise UserError(
                    f"a reference must keep {own.label}'s features of at least {FEWEST} images, "
                    f"got {0 if kept is None else len(kept)} in {self.name}. Make one with "
                    "main.py stats --num_kept."
                )
        return found


def training_references(
    trainer: Trainer, extractors: list[Extractor], size: tuple[int, int], num_images: int
) -> dict[str, Reference]:
    """Those of data.train, from the run folder; what is missing there is made."""
    source, folder = trainer.datamodule.sources["train"], Path(trainer.default_root_dir)
    source.open()
    num_kept = min(max(Walk.num_kept, min(2 * num_images, MOST)), len(source))
    about = {"fingerprint": source.fingerprint(), "height": size[0], "width": size[1]}
    files = {
        own.key: folder / "reference_{}x{}_{}.npz".format(*size, own.key) for own in extractors
    }
    missing = []
    for own in extractors:
        remove_leftovers(files[own.key])
        had = num_kept_in(files[own.key], own, about)
        if had is not None and had < num_kept:
            rank_zero_info(
                f"{files[own.key].name} keeps features of {had:,} images, and the scores of "
                f"{num_images:,} real ones need {num_kept:,}: it is made again."
            )
        if had is None or had < num_kept:
            missing.append(own)
    if missing:
        gathered = walked(trainer, source, missing, size, num_kept)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        facts = about | {"data": "data.train", "num_bad": len(gathered.bad), "date": now}
        folder.mkdir(parents=True, exist_ok=True)
        fresh = references_of(gathered)
        for own in missing:
            write_references(files[own.key], [own], fresh, facts | {"num_kept": num_kept})
    device = trainer.strategy.root_device
    return {own.key: read_references(files[own.key], [own], device)[own.key] for own in extractors}


def walked(
    trainer: Trainer,
    source: ImageSource,
    extractors: list[Extractor],
    size: tuple[int, int],
    num_kept: int,
) -> Gathered:
    """What a walk over data.train finds, told to a person."""
    labels = ", ".join(own.label for own in extractors)
    is_weighted = isinstance(source, Mix) and len(set(source.weights)) > 1
    once = ", each image once, whatever weights the mix gives" if is_weighted else ""
    rank_zero_info(f"Statistics of {len(source):,} images of data.train by {labels}{once}:")
    data, device = trainer.datamodule, trainer.strategy.root_device
    settings = {"batch_size": data.batch_size, "num_workers": data.num_workers}
    gathered = Walk(source, *size, device, num_kept=num_kept, **settings).gather(extractors)
    for line in gathered.left_out():
        rank_zero_info(line)
    return gathered


def num_kept_in(file: Path, extractor: Extractor, about: dict[str, Any]) -> int | None:
    """Of how many images a file was to keep the features; None where it is missing, torn, or of
    other data or another extractor.
    """
    if not file.is_file():
        return None
    try:
        with ArraysFile(file) as arrays:
            facts = facts_in(arrays)
            own = facts_of(arrays, facts, extractor) or {}
    except UserError:  # torn: it is made again
        return None
    is_same = all(facts.get(name) == value for name, value in about.items())
    if not is_same or own.get("digest") != extractor.digest():
        return None
    return facts.get("num_kept", Walk.num_kept)  # older files do not say
