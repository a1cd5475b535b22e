"""Reference statistics: what real images look like to an extractor, and the file of them.

A file is one .npz without pickles. `mu`, `sigma`, `mu_s`, `sigma_s` are Inception's and `arr_0`
real images, where ADM's evaluator looks for them; `<key>/mu`, … are those of other extractors,
`<key>/features`, … the kept features; `facts` is a JSON text of what they are of.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pixelhdm.errors import UserError
from pixelhdm.evaluation.arrays_file import ArraysFile
from pixelhdm.evaluation.extractors.extractor import Extractor, Features
from pixelhdm.evaluation.gathering import Gathering
from pixelhdm.evaluation.kept_images import IMAGES, features_of_images
from pixelhdm.evaluation.moments import Moments
from pixelhdm.evaluation.reference_facts import FACTS, check_size, facts_in, facts_of
from pixelhdm.evaluation.walk import Gathered
from pixelhdm.files import replacing

KEPT = {"pool": "features", "spatial": "spatial_features", "logits": "logits"}


class Reference(NamedTuple):
    """One extractor's view of real images.

    Attributes:
        moments: of `Features.pool` of all images.
        spatial: of `Features.spatial`; None where it has none.
        features: of some of the images, a random choice in random order; None where none are kept.
        spatial_features: of the same images.
        logits: of the same images.
    """

    moments: Moments
    spatial: Moments | None = None
    features: Float[Tensor, "K D"] | None = None
    spatial_features: Float[Tensor, "K S"] | None = None
    logits: Float[Tensor, "K C"] | None = None


def references_of(gathered: Gathered) -> dict[str, Reference]:
    """The references of what a walk over a dataset found, by the extractors' keys."""
    return {own.extractor.key: as_reference(own) for own in gathered.gatherings}


def as_reference(gathering: Gathering) -> Reference:
    """What was gathered, as a reference."""
    kept = gathering.features() or Features(None)
    return Reference(gathering.pool, gathering.spatial, kept.pool, kept.spatial, kept.logits)


def write_references(
    file: Path,
    extractors: list[Extractor],
    references: Mapping[str, Reference],
    facts: Mapping[str, Any],
    images: UInt8[np.ndarray, "K H W 3"] | None = None,
) -> None:
    """Write a file of references.

    Args:
        file: where to.
        extractors: those that the references are of.
        references: by the extractors' keys.
        facts: what is known of the images, for JSON.
        images: real images for `arr_0`; None writes none.
    """
    arrays: dict[str, np.ndarray] = {}
    about = {}
    for extractor in extractors:
        reference = references[extractor.key]
        about[extractor.key] = {
            "label": extractor.label,
            "resize": extractor.resize,
            "digest": extractor.digest(),
            "num_images": reference.moments.num,
        }
        arrays |= arrays_of(extractor, reference)
    text = json.dumps({**facts, "extractors": about})
    if images is not None:
        arrays[IMAGES] = images
    with replacing(file) as temporary, open(temporary, "wb") as out:
        np.savez(out, **{FACTS: np.array(text)}, **arrays)


def arrays_of(extractor: Extractor, reference: Reference) -> dict[str, np.ndarray]:
    """A reference's arrays by their names in a file."""
    start = prefix(extractor)
    found = {f"{start}mu": reference.moments.mean, f"{start}sigma": reference.moments.cov}
    if reference.spatial is not None:
        found |= {f"{start}mu_s": reference.spatial.mean, f"{start}sigma_s": reference.spatial.cov}
    kept = (reference.features, reference.spatial_features, reference.logits)
    for name, own in zip(KEPT.values(), kept, strict=True):
        if own is not None:
            found[f"{extractor.key}/{name}"] = own
    return {name: own.numpy() for name, own in found.items()}


def prefix(extractor: Extractor) -> str:
    """What the names of an extractor's moments begin with: nothing for Inception's."""
    return "" if extractor.key == "inception" else f"{extractor.key}/"


def read_references(
    file: Path,
    extractors: list[Extractor],
    device: torch.device,
    size: tuple[int, int] | None = None,
    batch_size: int = 64,
) -> dict[str, Reference]:
    """The references of a file, by the extractors' keys.

    Ours; ADM's, of moments and images (openai/guided-diffusion); JiT's and others', of moments
    alone. Of a file that is not ours the images are looked at, where it has some, for what its
    moments do not tell.

    Args:
        file: where it lies.
        extractors: whose references are wanted.
        device: where they compute, if they have to.
        size: height and width of the drawn images in pixels; None takes a file of any.
        batch_size: images at once then.

    Raises:
        UserError: the file cannot be read, or lacks what an extractor needs, or holds features of
            other weights, or is of images of another size.
    """
    with ArraysFile(Path(file)) as arrays:
        facts = facts_in(arrays)
        if size is not None:
            check_size(arrays, facts, size)
        found = {}
        for extractor in extractors:
            about = facts_of(arrays, facts, extractor)
            if about is not None:
                found[extractor.key] = own_reference(arrays, extractor, about)
            else:
                found[extractor.key] = foreign_reference(arrays, extractor, device, batch_size)
    return found


def own_reference(arrays: ArraysFile, extractor: Extractor, about: Mapping[str, Any]) -> Reference:
    """A reference of a file of ours."""
    if about["digest"] != extractor.digest():
        raise UserError(
            f"reference must hold features of {extractor.label} with the weights and the resize "
            f"of now ({extractor.digest()}, {extractor.resize}), got {arrays.file} with others "
            f"({about['digest']}, {about['resize']}). Make it again with main.py stats."
        )
    moments, spatial = moments_in(arrays, extractor, prefix(extractor), about["num_images"])
    names = [f"{extractor.key}/{name}" for name in KEPT.values()]
    kept = [arrays.array(name) if name in arrays.names else None for name in names]
    for name, own in zip(names, kept, strict=True):
        if own is not None and (own.dtype != np.float32 or own.ndim != 2):
            raise UserError(
                f"{name} of a reference must be rows of float32, got {own.dtype} of "
                f"{' '.join(map(str, own.shape))} in {arrays.file}. Make it again with main.py "
                "stats."
            )
    return Reference(
        moments, spatial, *(None if own is None else torch.from_numpy(own) for own in kept)
    )


def foreign_reference(
    arrays: ArraysFile, extractor: Extractor, device: torch.device, batch_size: int
) -> Reference:
    """A reference from what a file has that was not made for this extractor."""
    is_ours = FACTS in arrays.names
    has_moments = extractor.kind == "inception" and {"mu", "sigma"} <= arrays.names and not is_ours
    has_images = IMAGES in arrays.names
    if not has_moments and not has_images:
        raise UserError(
            f"reference must hold statistics of {extractor.label}, got {arrays.file} with "
            f"{', '.join(sorted(arrays.names)[:6]) or 'nothing'}. "
            "Make it with main.py stats --extractors."
        )
    if has_moments and not extractor.is_official:
        raise UserError(
            f"{extractor.label}'s weights must be the published FID's for statistics of others, "
            f"got another file of weights and {arrays.file}."
        )
    kept = Features(None)
    if has_images:
        kept = features_of_images(arrays, extractor, device, batch_size)
    if has_moments:
        moments, spatial = moments_in(arrays, extractor, "", None)
    else:
        moments = Moments.of(kept.pool)
        spatial = None if kept.spatial is None else Moments.of(kept.spatial)
    return Reference(moments, spatial, kept.pool, kept.spatial, kept.logits)


def moments_in(
    arrays: ArraysFile, extractor: Extractor, start: str, num: int | None
) -> tuple[Moments, Moments | None]:
    """An extractor's moments in a file, under names that begin with `start`, and the spatial ones
    where it has them.
    """
    pool, spatial = ((f"{start}mu{end}", f"{start}sigma{end}") for end in ("", "_s"))
    own = moments_of(arrays, pool, extractor, extractor.dim, num)
    if not set(spatial) <= arrays.names:
        return own, None
    return own, moments_of(arrays, spatial, extractor, None, num)


def moments_of(
    arrays: ArraysFile,
    names: tuple[str, str],
    extractor: Extractor,
    dim: int | None,
    num: int | None,
) -> Moments:
    """The moments that a file holds as a mean and a covariance.

    Args:
        arrays: the file.
        names: of the mean and of the covariance.
        extractor: whose they are.
        dim: their width; None takes that of the mean.
        num: of how many images they are, or None.

    Raises:
        UserError: they are missing, or are none.
    """
    told = f"{names[0]} and {names[1]} of a reference must"
    again = f"in {arrays.file}. Make it again with main.py stats."
    if not set(names) <= arrays.names:
        raise UserError(f"{told} both be there, got {len(set(names) & arrays.names)} {again}")
    mean, cov = map(arrays.array, names)
    if not {mean.dtype.kind, cov.dtype.kind} <= set("fiu"):
        raise UserError(f"{told} be real numbers, got {mean.dtype} and {cov.dtype} {again}")
    dim = mean.size if dim is None else dim
    if mean.shape != (dim,) or cov.shape != (dim, dim):
        raise UserError(
            f"{told} be {dim} and {dim}x{dim} numbers for {extractor.label}, got {mean.shape} and "
            f"{cov.shape} {again}"
        )
    moments = Moments.given(mean, cov, num)
    if flaw := moments.flaw():
        raise UserError(f"{told} {flaw} {again}")
    return moments
