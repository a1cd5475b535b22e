"""What a training config means for images that are being prepared."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jaxtyping import UInt16

from pixelhdm.data.buckets import DROPPED, Buckets
from pixelhdm.data.coverage import coverage_table
from pixelhdm.errors import UserError, one_line

PATCH = 16  # of PixelHDM, where no config says otherwise
SUGGESTED = 8  # images of the largest bucket in a batch


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
                f"begin at {smallest}. Train such images at a data.image_size of their own.",
            ]
        tokens = [height * width // self.patch**2 for height, width in self.buckets.table]
        used = [tokens[number] for number in set(assignment.bucket.tolist()) if number >= 0]
        largest = max(used, default=max(tokens))
        budget = self.batch_tokens or (self.batch_size or SUGGESTED) * largest
        by_tokens = self.batch_size is None
        batch_sizes = [max(1, budget // n) if by_tokens else self.batch_size for n in tokens]
        table = coverage_table(self.buckets, sizes, assignment, batch_sizes)
        lines = ["", f"Training with {self.name}, one process:", *table]
        if self.batch_tokens is None and len(set(used)) > 1:
            lines.append(
                f"  suggested: data.batch_tokens {budget}, the patches of {budget // largest} "
                f"images of the largest bucket in use: batches of {budget // largest} to "
                f"{budget // min(used)} images, all of about the same cost"
            )
        return lines


def choose(files: list[str]) -> Chosen:
    """What YAML files, a later over an earlier, say of buckets and batches; the default table
    where there are none.

    Raises:
        UserError: a file is missing, no config, or asks for buckets that cannot be.
    """
    if not files:
        return Chosen("the default bucket table", Buckets(), PATCH, None, None)
    content, name = merged(files), ", ".join(files)
    try:
        data, network = content["data"], content.get("model", {}).get("network", {})
        patch = network.get("init_args", {}).get("patch_size", PATCH)
        given = data.get("buckets")
        buckets = Buckets(**given) if given else Buckets.square(data["image_size"])
        batch_tokens = data.get("batch_tokens")
        batch_size = None if batch_tokens else data["batch_size"]
        return Chosen(name, buckets, patch, batch_size, batch_tokens)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            "train_config must be a training config with data.image_size and data.batch_size, got "
            f"{name}, where this is wrong: {one_line(error)}."
        ) from error


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
