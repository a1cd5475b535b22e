"""What test does: draw images, compare them with real ones, write down how good they are."""

from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from tqdm import tqdm

from pixelhdm.callbacks.evaluation_facts import (
    digest_of_images,
    name_of_folder,
    settings_of_images,
)
from pixelhdm.callbacks.evaluation_report import (
    entry_of,
    report_text,
    write_array,
    write_samples,
    write_scores,
)
from pixelhdm.callbacks.image_facts import shared_facts
from pixelhdm.callbacks.real_images import RealImages
from pixelhdm.data.draws import DrawItem
from pixelhdm.errors import UserError, check_at_least
from pixelhdm.evaluation.draws import in_turn, one_size
from pixelhdm.evaluation.extractors.extractor import Extractor
from pixelhdm.evaluation.extractors.inception import InceptionFeatures
from pixelhdm.evaluation.featuring import add_features, clip_score
from pixelhdm.evaluation.image_store import Chunk, ImageStore
from pixelhdm.evaluation.numbers import LEAST
from pixelhdm.evaluation.record import record_scores
from pixelhdm.evaluation.scores import Score, scores
from pixelhdm.inference.drawable import check_drawable, check_solvers, check_weaker
from pixelhdm.module import PixelHDMModule
from pixelhdm.processes import Meeting, gather_objects

FOLDER, SHORT = "test", 8


class Evaluate(Callback):
    """Draw images, compare them with real ones by the features of frozen networks, and write the
    scores down; `test` does it.

    Image i is of class i modulo the number of classes, or of the prompts in turn, from noise of its
    own, seed + i: the same image in any batch and on any number of processes. Images and features
    lie in files: an interrupted call goes on where it stopped, a call for more images or another
    extractor adds what is missing, and one with another checkpoint or setting draws anew. The
    folder gets scores.json and samples.png, the run folder a line in evaluations.jsonl and the
    numbers in TensorBoard.

    Args:
        num_images: number of images, at least 10; 50,000 for published figures, 10,000 or more for
            what may be called FID.
        seed: seed of the first image; the next ones count up, whatever seeds prompts have of their
            own.
        extractors: networks whose features are compared; empty takes InceptionFeatures, which FID,
            sFID, KID, precision and recall are of, and IS where its weights have the classifier.
        reference: .npz of statistics of real images, by main.py stats or published ones (ADM's,
            JiT's); empty takes data.train, whose statistics are computed once and kept in the run
            folder.
        folder: where to write; empty makes <run folder>/test/<settings>.
        save_npz: whether to write all images as one array too, arr_0, with their classes, arr_1, as
            guided-diffusion's evaluator reads them.
        keep_images: whether the images stay once all is computed; false leaves features and scores,
            and a later call that needs pixels, for another extractor, draws them again.

    Attributes:
        config: the resolved config as YAML; the command line sets it.
        scores: what the last call found, on all processes; none where images are left to draw.
        entry: what it wrote down, on the first process.
        kind: what it is part of; a sweep's numbers stay out of TensorBoard.
        is_quiet: whether to print nothing.
        target: folder of the last call.
    """

    def __init__(
        self,
        num_images: int = 10_000,
        seed: int = 0,
        extractors: list[Extractor] | None = None,
        reference: str | None = None,
        folder: str | None = None,
        save_npz: bool = False,
        keep_images: bool = True,
    ):
        check_at_least(LEAST, num_images=num_images)
        check_at_least(0, seed=seed)
        if seed + num_images > 2**63:
            raise UserError(f"seed must leave room below 2^63 for every image, got {seed}.")
        keys = [extractor.key for extractor in extractors or []]
        if extractors is not None and (not keys or len(set(keys)) < len(keys)):
            raise UserError(
                f"extractors must be different ones or be left out, got {', '.join(keys) or '[]'}."
            )
        self.num_images, self.seed, self.folder = num_images, seed, folder
        self.extractors = [InceptionFeatures()] if extractors is None else extractors
        self.save_npz, self.keep_images = save_npz, keep_images
        self.real = RealImages(reference)
        self.config, self.is_quiet = "", False
        self.kind: Literal["test", "sweep"] = "test"
        self.scores: list[Score] = []
        self.entry: dict[str, Any] = {}
        self.each: list[DrawItem] = []
        self.shared: dict[str, str] = {}
        self.size = 0, 0
        self.target = Path()
        self.store: ImageStore | None = None
        self.meeting = Meeting()
        self.starts: dict[int, int] = {}
        self.drawn: dict[int, tuple[DrawItem, np.ndarray]] = {}
        self.num_drawn = 0

    # Before drawing -------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: PixelHDMModule, stage: str) -> None:
        if stage != "test":
            return
        self.scores, self.entry, self.store, self.num_drawn = [], {}, None, 0
        self.drawn.clear()
        data = trainer.datamodule
        self.each = in_turn(data.draw_list.items, len(data.draw_list.items), self.seed)
        check_drawable(self.each, pl_module.network, pl_module.conditioner, pl_module.guidance)
        check_solvers(self.each, pl_module.drawing, pl_module.samplers)
        check_weaker(self.each, pl_module.model(), pl_module.guidance)
        self.size = one_size(self.each)
        self.real.check(trainer)
        data.find_chunks = partial(self.find_chunks, trainer, pl_module)

    def find_chunks(self, trainer: Trainer, pl_module: PixelHDMModule) -> list[list[DrawItem]]:
        """The images that this process is to draw, by chunk, once the checkpoint is known."""
        self.meeting = Meeting()
        self.real.prepare(trainer, self.extractors, self.size, self.num_images, self.meeting)
        self.shared = shared_facts(trainer, pl_module, self.config)
        digest = digest_of_images(self.each, pl_module, self.shared)
        name = name_of_folder(trainer.datamodule.draw_list.name, self.each, pl_module, self.shared)
        own = f"{name}_{digest[:SHORT]}"  # what the name does not tell must not share the folder
        self.target = Path(self.folder or Path(trainer.default_root_dir) / FOLDER / own)
        self.store = ImageStore(self.target, digest, self.num_images)
        if trainer.is_global_zero:
            self.store.remove_leftovers()
        plan = {c: self.store.num_stored(c) for c in self.store.chunks if not self.is_done(c)}
        self.starts = gather_objects(plan)[0]  # one's view, while nobody writes
        numbers = {c: self.store.numbers(c)[start:] for c, start in self.starts.items()}
        left = sum(map(len, numbers.values()))
        if left < self.num_images and not self.is_quiet:
            rank_zero_info(
                f"{self.num_images - left:,} of {self.num_images:,} images were drawn before, with "
                f"the same settings and checkpoint, into {self.target}; they are not drawn again."
            )
        items = in_turn(self.each, self.num_images, self.seed)
        own = list(numbers.values())[trainer.global_rank :: trainer.world_size]
        return [items[part.start : part.stop] for part in own]

    def is_done(self, chunk: int) -> bool:
        """Whether nothing has to be drawn for a chunk."""
        if self.store.has_images(chunk):
            return True
        return not self.save_npz and all(
            self.store.has_features(chunk, extractor) for extractor in self.extractors
        )

    # Drawing --------------------------------------------------------------------------------------

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: PixelHDMModule,
        outputs: UInt8[Tensor, "B H W 3"],
        batch: dict[str, Any],
        *_: Any,
    ) -> None:
        for image, item in zip(outputs.numpy(), batch["items"], strict=True):
            self.drawn[item.seed - self.seed] = item, image
        chunk = self.store.chunk_of(min(self.drawn))
        start, wanted = self.starts[chunk], len(self.store.numbers(chunk))
        if start + len(self.drawn) < wanted:
            return
        items, images = zip(*(self.drawn[number] for number in sorted(self.drawn)), strict=True)
        conditions = np.array([item.condition for item in items])
        fresh = Chunk(np.stack(images), conditions, np.array([item.seed for item in items]))
        self.store.write(chunk, self.store.read(chunk).and_then(fresh) if start else fresh)
        self.num_drawn += len(items)
        self.drawn.clear()
        add_features(self.store, chunk, self.extractors, trainer.strategy.root_device)

    def on_exception(
        self, trainer: Trainer, pl_module: PixelHDMModule, exception: BaseException
    ) -> None:
        if isinstance(exception, KeyboardInterrupt) and trainer.testing:
            rank_zero_info(
                f"Stopped after {self.num_drawn} images: the same command draws those that are "
                "left."
            )

    # After drawing --------------------------------------------------------------------------------

    def teardown(self, trainer: Trainer, pl_module: PixelHDMModule, stage: str) -> None:
        """Compute what is missing, and report. on_test_end would not run on a process without
        images, nor where none is left to draw.
        """
        if stage != "test" or self.store is None:
            return
        self.meeting.wait()
        left = gather_objects([c for c in self.store.chunks if not self.is_done(c)])[0]
        if left:
            rank_zero_info(
                f"{sum(len(self.store.numbers(c)) for c in left):,} of {self.num_images:,} images "
                "are left to draw: the same command draws them, and computes the scores."
            )
            self.meeting.close()
            return
        self.add_missing_features(trainer)
        self.meeting.wait()
        if trainer.is_global_zero:
            self.report(trainer, pl_module)
        self.meeting.close()
        self.scores = gather_objects(self.scores)[0]

    def add_missing_features(self, trainer: Trainer) -> None:
        """Compute features of images of earlier calls, each process of a share of them."""
        store, device = self.store, trainer.strategy.root_device
        chunks = [
            chunk
            for chunk in store.chunks
            if not all(store.has_features(chunk, own) for own in self.extractors)
        ]
        own = gather_objects(chunks)[0][trainer.global_rank :: trainer.world_size]
        is_shown = trainer.is_global_zero and not self.is_quiet
        for chunk in tqdm(own, "features", unit="chunk", disable=None if is_shown else True):
            add_features(store, chunk, self.extractors, device)

    def report(self, trainer: Trainer, pl_module: PixelHDMModule) -> None:
        """Compute all scores and write everything down."""
        store = self.store
        for extractor in self.extractors:
            reference = self.real.references[extractor.key]
            floors = self.real.floors(extractor, self.num_images)
            self.scores += scores(extractor, store.features(extractor), reference, floors)
            self.scores += clip_score(store, extractor)
        settings = settings_of_images(self.each, pl_module, self.shared)
        told = (settings, self.kind, self.real.name, self.target)
        self.entry = entry_of(self.scores, self.shared, *told)
        write_scores(self.target, self.entry)
        if all(map(store.has_images, store.chunks)):
            write_samples(store, self.each)
            if self.save_npz:
                write_array(store, self.each)
        if not self.keep_images:
            store.delete_images()
        if not self.is_quiet:
            print(report_text(self.scores, self.each, self.entry))
        record_scores(Path(trainer.default_root_dir), self.entry)
