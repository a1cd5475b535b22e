"""What a training config means for images that are being prepared."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jaxtyping import UInt16

from pixelhdm.data.buckets import DROPPED, Buckets
from pixelhdm.data.coverage import coverage_table
from pixelhdm.data.prepare.config_values import chosen_buckets, section, whole
from pixelhdm.errors import UserError, one_line

PATCH = 16  # of PixelHDM, where no config says otherwise
SUGGESTED = 8  # images of the largest bucket in a batch
EXAMPLE = (
    "For a training at a data.image_size of its own give its files, as in --train_config "
    "[configs_c2i/base.yaml,configs_c2i/cifar10.yaml]."
)


@dataclass
class Chosen:
    """Buckets and batches of a training run.

    Attributes:
        name: what they are, for people.
        buckets: the table and its rule.
        patch: side of a patch in pixels.
        batch_size: images per process and batch, or none.
        batch_tokens: patches per process and batch in its place, or none.
    """

    name: str
    buckets: Buckets
    patch: int
    batch_size: int | None
    batch_tokens: int | None

    def lines(self, sizes: UInt16[np.ndarray, "N 2"]) -> list[str]:
        """The section of a report about images of these widths and heights."""
        assignment = self.buckets.assign(sizes)
        if (assignment.bucket == DROPPED).all():
            smallest = min(map(min, self.buckets.table))
            return [
                "",
                f"Training with {self.name}: no image is large enough for a bucket, whose sides "
                f"begin at {smallest}. {EXAMPLE}",
            ]
        tokens = [height * width // self.patch**2 for height, width in self.buckets.table]
        used = [tokens[number] for number in set(assignment.bucket.tolist()) if number >= 0]
        budget = self.batch_tokens or (self.batch_size or SUGGESTED) * max(used)
        batch_sizes = [self.batch_size or max(1, budget // n) for n in tokens]
        table = coverage_table(self.buckets, sizes, assignment, batch_sizes)
        lines = ["", f"Training with {self.name}, one process:", *table]
        return [*lines, *self.suggestion(budget, min(used), max(used))]

    def suggestion(self, budget: int, least: int, most: int) -> list[str]:
        """What batches the table is of, and which have equal cost; budget, and the patches of the
        smallest and the largest bucket in use.
        """
        if self.batch_tokens is not None:
            return []
        if least == most:
            given = ", the data.batch_size" if self.batch_size else ""
            return [
                f"  assumed: batches of {self.batch_size or SUGGESTED} images{given}; "
                f"data.batch_tokens {budget} gives the same"
            ]
        return [
            f"  suggested: data.batch_tokens {budget}, the patches of {budget // most} images of "
            f"the largest bucket in use: batches of {budget // most} to {budget // least} images, "
            "all of about the same cost"
        ]


def choose(files: list[str]) -> Chosen:
    """What YAML files, a later over an earlier, say of buckets and batches; the default table
    where there are none.

    Raises:
        UserError: a file is missing, no config, or asks for buckets that cannot be.
    """
    if not files:
        return Chosen("the default bucket table", Buckets(), PATCH, None, None)
    content, name = merged(files), ", ".join(files)
    data = section(content, "data", name)
    network = section(section(content, "model", name), "model.network", name)
    given = section(network, "model.network.init_args", name).get("patch_size", PATCH)
    patch = whole(given, "model.network.init_args.patch_size", name)
    buckets = chosen_buckets(data, name)
    batch_tokens = data.get("batch_tokens")
    if batch_tokens is not None:
        return Chosen(name, buckets, patch, None, whole(batch_tokens, "data.batch_tokens", name))
    return Chosen(
        name, buckets, patch, whole(data.get("batch_size"), "data.batch_size", name), None
    )


def merged(files: list[str]) -> dict[str, Any]:
    """The mappings of YAML files, merged key by key."""
    content: dict[str, Any] = {}
    for file in files:
        try:
            own = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(
                f"train_config must be a readable YAML file, got {file}: {one_line(error)}"
            ) from error
        if not isinstance(own, dict):
            raise UserError(f"train_config must be a training config, got {file}, which is none.")
        content = overlaid(content, own)
    return content


def overlaid(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """A mapping with another's values over its own."""
    both = dict(base)
    for key, value in over.items():
        own = both.get(key)
        is_nested = isinstance(own, dict) and isinstance(value, dict)
        both[key] = overlaid(own, value) if is_nested else value
    return both
