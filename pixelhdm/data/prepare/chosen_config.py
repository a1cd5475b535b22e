"""What a training config means for images that are being prepared."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jaxtyping import UInt16
from numpy import ndarray

from pixelhdm.data.buckets import Buckets
from pixelhdm.data.coverage import coverage_table
from pixelhdm.errors import UserError, one_line

PATCH = 16  # of PixelHDM, where no config says otherwise
LARGEST = 8  # images of the largest bucket in a suggested batch


@dataclass
class Chosen:
    """Buckets and batch sizes of a training run.

    Attributes:
        name: what they are, for people.
        buckets: the table and its rule.
        batch_sizes: images per process and batch of each bucket.
        advice: a line about batch sizes, or none.
    """

    name: str
    buckets: Buckets
    batch_sizes: list[int]
    advice: str | None

    def lines(self, sizes: UInt16[ndarray, "N 2"]) -> list[str]:
        """The section of a report about images of these widths and heights."""
        table = coverage_table(self.buckets, sizes, self.buckets.assign(sizes), self.batch_sizes)
        advice = [] if self.advice is None else [f"  {self.advice}"]
        return ["", f"Training with {self.name}, one process:", *table, *advice]


def choose(files: list[str]) -> Chosen:
    """What YAML files, a later over an earlier, say of buckets and batches; the default table
    where there are none.

    Raises:
        UserError: a file is missing, no config, or asks for buckets that cannot be.
    """
    content = merged(files)
    data = content.get("data", {})
    network = content.get("model", {}).get("network", {})
    patch = network.get("init_args", {}).get("patch_size", PATCH)
    name = ", ".join(files) if files else "the default bucket table"
    try:
        if files and not data.get("buckets"):
            buckets = Buckets.square(data["image_size"])
        else:
            buckets = Buckets(**data.get("buckets", {}))
        tokens = [height * width // patch**2 for height, width in buckets.table]
        if data.get("batch_tokens"):
            return Chosen(name, buckets, [data["batch_tokens"] // n for n in tokens], None)
        if files:
            sizes = [data["batch_size"]] * len(tokens)
            return Chosen(name, buckets, sizes, suggestion(data["batch_size"], tokens))
    except (KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise UserError(
            f"config must be a training config with data.image_size and data.batch_size, got "
            f"{name}, where this is wrong: {one_line(error)}."
        ) from error
    budget = LARGEST * max(tokens)
    sizes = [budget // number for number in tokens]
    return Chosen(name, buckets, sizes, suggestion(LARGEST, tokens))


def suggestion(batch_size: int, tokens: list[int]) -> str | None:
    """How to give batches of all buckets the same work."""
    if len(set(tokens)) == 1:
        return None
    budget = batch_size * max(tokens)
    return (
        f"suggested: data.batch_tokens {budget}, the patches of {batch_size} images of the largest "
        f"bucket: batches of {budget // max(tokens)} to {budget // min(tokens)} images, all of "
        "about the same cost"
    )


def merged(files: list[str]) -> dict[str, Any]:
    """The mappings of YAML files, merged key by key."""
    content: dict[str, Any] = {}
    for file in files:
        try:
            own = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(
                f"config must be a readable YAML file, got {file}: {one_line(error)}"
            ) from error
        if not isinstance(own, dict):
            raise UserError(f"config must be a training config, got {file}, which is none.")
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
