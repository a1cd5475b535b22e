"""What was found in images, for the report."""

from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import UInt16

from pixelhdm.data.prepare.check import Checked
from pixelhdm.data.prepare.items import Rejection


@dataclass
class Tally:
    """Counts over some images.

    Attributes:
        num_bytes: of the images that are kept.
        widths: of each kept image, upright, in pixels.
        heights: the same.
        tags: number of images by format and other traits.
        captions: number of images by their number of captions.
        labels: number of images by their label.
        rejected: the others.
        bad_texts: path of each image beside which a text cannot be read, and what is wrong.
    """

    num_bytes: int = 0
    widths: array = field(default_factory=lambda: array("H"))
    heights: array = field(default_factory=lambda: array("H"))
    tags: Counter[str] = field(default_factory=Counter)
    captions: Counter[int] = field(default_factory=Counter)
    labels: Counter[int] = field(default_factory=Counter)
    rejected: list[Rejection] = field(default_factory=list)
    bad_texts: list[tuple[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.widths)

    def add(self, result: Checked | Rejection, path: str) -> None:
        """Count an image."""
        if isinstance(result, Rejection):
            self.rejected.append(result)
            return
        self.num_bytes += len(result.data)
        self.widths.append(result.width)
        self.heights.append(result.height)
        self.tags.update(result.tags)
        self.captions[len(result.captions)] += 1
        if result.label is not None:
            self.labels[result.label] += 1
        if result.bad_texts:
            self.bad_texts.append((path, result.bad_texts))

    def sizes(self) -> UInt16[np.ndarray, "N 2"]:
        """Width and height of each kept image."""
        return np.array([self.widths, self.heights], dtype=np.uint16).T

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON holds it."""
        return {
            name: dict(value)
            if isinstance(value, Counter)
            else list(value)
            if isinstance(value, array)
            else value
            for name, value in vars(self).items()
        }

    @classmethod
    def of_json(cls, content: dict[str, Any]) -> "Tally":
        """The reverse of `as_json`."""
        numbered = {
            name: Counter({int(key): count for key, count in content[name].items()})
            for name in ("captions", "labels")
        }
        rejected = [Rejection(*row) for row in content["rejected"]]
        sides = {name: array("H", content[name]) for name in ("widths", "heights")}
        bad_texts = [(path, detail) for path, detail in content["bad_texts"]]
        lists = {"rejected": rejected, "bad_texts": bad_texts, "tags": Counter(content["tags"])}
        return cls(**{**content, **numbered, **sides, **lists})

    @classmethod
    def total(cls, tallies: Iterable["Tally"]) -> "Tally":
        """The sum of several."""
        total = cls()
        for tally in tallies:
            for name, value in vars(tally).items():
                if isinstance(value, Counter):
                    getattr(total, name).update(value)
                elif isinstance(value, list | array):
                    getattr(total, name).extend(value)
            total.num_bytes += tally.num_bytes
        return total
