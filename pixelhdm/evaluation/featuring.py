"""From stored images to features, and from these to scores."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pixelhdm.evaluation.extractors.extractor import Extractor
from pixelhdm.evaluation.gathering import joined
from pixelhdm.evaluation.image_store import ImageStore
from pixelhdm.evaluation.scores import CLIP_SCORE, Score

BATCH = 64  # images at once: a part of CHUNK, the same for any number of processes


@runtime_checkable
class ReadsText(Protocol):
    """An extractor that also tells how well an image matches a text."""

    def score(self, pixels: UInt8[Tensor, "B H W 3"], texts: list[str]) -> Float[Tensor, "B"]:
        """100 for a perfect match, 0 for none."""


def add_features(
    store: ImageStore, chunk: int, extractors: list[Extractor], device: torch.device
) -> None:
    """Compute and write the features of a chunk's images that are not there yet."""
    missing = [own for own in extractors if not store.has_features(chunk, own)]
    if not missing:
        return
    drawn = store.read(chunk)
    parts = [part.to(device) for part in torch.from_numpy(drawn.images).split(BATCH)]
    for extractor in missing:
        match = None
        if isinstance(extractor, ReadsText) and drawn.conditions.dtype.kind == "U":
            prompts, found = drawn.conditions.tolist(), []
            for part in parts:
                found.append(extractor.score(part, prompts[: len(part)]).cpu())
                prompts = prompts[len(part) :]
            match = torch.cat(found)
        store.write_features(chunk, extractor, joined([extractor(p) for p in parts]), match)


def clip_score(store: ImageStore, extractor: Extractor) -> list[Score]:
    """How well images match their prompts: the mean of 100 max(cos, 0) of CLIP's embeddings
    (arXiv:2104.08718), where an extractor tells.
    """
    match = store.match(extractor)
    if match is None:
        return []
    about = (len(match), None, extractor.label, extractor.resize, None, "higher")
    return [Score(CLIP_SCORE, match.double().mean().item(), None, *about)]
