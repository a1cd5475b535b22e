"""The command `stats`: what real images look like to the networks of the scores, as one file."""

import os
import shlex
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from pixelhdm.cache_text import chosen_device
from pixelhdm.data.image_folder import ImageFolder
from pixelhdm.data.shards import Shards
from pixelhdm.data.source import ImageSource
from pixelhdm.errors import UserError, check_at_least
from pixelhdm.evaluation.arrays_file import remove_leftovers
from pixelhdm.evaluation.extractors.clip_features import ClipFeatures
from pixelhdm.evaluation.extractors.dino_features import DinoFeatures
from pixelhdm.evaluation.extractors.extractor import Extractor
from pixelhdm.evaluation.extractors.inception import InceptionFeatures
from pixelhdm.evaluation.extractors.lite_features import LiteFeatures
from pixelhdm.evaluation.numbers import FEWEST, LEAST
from pixelhdm.evaluation.reference import references_of, write_references
from pixelhdm.evaluation.walk import Gathered, Walk
from pixelhdm.files import TEMPORARY
from pixelhdm.memory_advice import ran_out

# Imported so that a command line may call them by their bare names.
KNOWN = (InceptionFeatures, DinoFeatures, ClipFeatures, LiteFeatures)
RESIZE = "bicubic with antialiasing, centre crop"  # pixelhdm.data.decode.cover


def stats(
    data: str,
    out: str,
    image_size: int | None = None,
    extractors: list[Extractor] | None = None,
    num_images: int | None = None,
    num_kept: int = 10_000,
    num_images_kept: int = 0,
    batch_size: int = 64,
    device: str | None = None,
    num_workers: int = 4,
    seed: int = 0,
) -> None:
    """Write reference statistics of a dataset: what FID and its kin compare drawn images with.

    Images are resized and cropped as in training. The file also serves ADM's evaluator, where it
    keeps images.

    Args:
        data: prepared shards, a folder or paths in webdataset's syntax, or a folder of class
            folders of images.
        out: the .npz file to write.
        image_size: side in pixels of the square images, that of the drawn ones; empty takes that of
            the data, where all images are squares of one size.
        extractors: the networks that look at them, each as --extractors+=NAME; empty takes
            InceptionFeatures.
        num_images: how many images, a uniform random choice; empty takes all.
        num_kept: of how many of them the features are kept, for KID, precision, recall and CMMD,
            and for the scores that real images get: those of n need 2n.
        num_images_kept: how many of those images themselves are kept in `arr_0`, from which ADM's
            evaluator takes precision and recall (its files have 10,000), and other extractors all.
        batch_size: images at once.
        device: to compute on, such as cuda or cpu; empty takes the accelerator where there is one.
        num_workers: threads that read images.
        seed: of the choice, and of which are kept.

    Raises:
        UserError: the data cannot be read, weights are missing, or `out` cannot be written.
    """
    started = time.monotonic()
    check_at_least(1, batch_size=batch_size, image_size=1 if image_size is None else image_size)
    check_at_least(0, num_kept=num_kept, num_images_kept=num_images_kept, num_workers=num_workers)
    file = checked_target(out)
    extractors = checked_extractors(extractors or [InceptionFeatures()])
    source = opened_source(data)
    for problem in source.problems():
        print(problem)
    side = side_of(source) if image_size is None else image_size
    walk = Walk(
        source,
        side,
        side,
        chosen_device(device),
        num_images,
        num_kept,
        num_images_kept,
        batch_size,
        num_workers,
        seed,
    )
    for extractor in extractors:
        extractor.digest()  # weights that are missing are missed now
    gathered = gathered_on(walk, extractors)
    facts = {
        "data": data,
        "fingerprint": source.fingerprint(),
        "num_images": gathered.num_images,
        "num_bad": len(gathered.bad),
        "height": side,
        "width": side,
        "resize": RESIZE,
        "seed": seed,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_references(file, extractors, references_of(gathered), facts, gathered.images)
    report(file, gathered, walk, time.monotonic() - started)


def checked_target(out: str) -> Path:
    """The file to write; raise a UserError where it cannot be."""
    file = Path(out).expanduser()
    if file.suffix != ".npz" or file.is_dir():
        raise UserError(f"out must be a file that ends with .npz, got {out}.")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        trial = file.with_name(f".{file.name}.{os.getpid()}{TEMPORARY}")
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise UserError(
            f"out must lie in a folder that can be written to, got {file.parent} "
            f"({error.strerror}). Choose another one."
        ) from error
    remove_leftovers(file)
    return file


def checked_extractors(extractors: list[Extractor]) -> list[Extractor]:
    """Extractors of different names in files; raise a UserError where two share one."""
    keys = Counter(extractor.key for extractor in extractors)
    twice = [key for key, number in keys.items() if number > 1]
    if twice:
        raise UserError(f"extractors must be different ones, got {twice[0]} twice.")
    return extractors


def opened_source(data: str) -> ImageSource:
    """The source of images that `data` means, opened: a folder without shards is one of classes."""
    folder = Path(data).expanduser()
    is_of_classes = folder.is_dir() and not any(folder.glob("*.tar"))
    source = ImageFolder(str(folder)) if is_of_classes else Shards(data, condition="none")
    source.prepare()
    source.open()
    return source


def side_of(source: ImageSource) -> int:
    """The side of all images; raise a UserError unless they are squares of one size."""
    sizes = np.unique(source.sizes(), axis=0)
    sizes = sizes[sizes.all(axis=1)]  # those of broken images are 0
    if len(sizes) != 1 or sizes[0, 0] != sizes[0, 1]:
        raise UserError(
            "image_size must be given where images are not all squares of one size, got images of "
            f"{len(sizes)} sizes. Set it to that of the drawn images."
        )
    return int(sizes[0, 0])


def gathered_on(walk: Walk, extractors: list[Extractor]) -> Gathered:
    """What the walk finds; raise a UserError where the device's memory is too small for it."""
    try:
        return walk.gather(extractors)
    except RuntimeError as error:
        if not ran_out(error):
            raise
        raise UserError(
            "stats must fit into the device's memory, got out of it with "
            f"batch_size={walk.batch_size}. Set --batch_size {max(1, walk.batch_size // 2)}."
        ) from error


def report(file: Path, gathered: Gathered, walk: Walk, seconds: float) -> None:
    """Say what was looked at, what was left out, and how the file is used."""
    kept = gathered.gatherings[0].num_kept
    names = ", ".join(own.extractor.label for own in gathered.gatherings)
    classes = len(getattr(walk.source, "index", walk.source).classes)
    of = f" of {classes:,} classes" if classes else ""
    for line in gathered.left_out():
        print(line)
    print(
        f"Wrote {file}, {file.stat().st_size / 1e6:,.1f} MB: {names} of {gathered.num_images:,} "
        f"images{of} at {walk.height}x{walk.width}, {kept:,} kept, in {seconds:.0f} s."
    )
    if kept < FEWEST:
        print(f"KID, precision, recall and CMMD need {FEWEST} kept images: they are left out.")
    if kept >= 2 * LEAST:
        print(f"Real images' own scores can be told for up to {kept // 2:,} drawn images.")
    print(f"Compare with it:    --evaluate.reference {shlex.quote(str(file))}")
