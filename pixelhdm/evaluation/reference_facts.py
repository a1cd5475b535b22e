"""What a file of reference statistics says of itself, checked."""

import json
from collections.abc import Mapping
from typing import Any

from pixelhdm.errors import UserError
from pixelhdm.evaluation.arrays_file import ArraysFile
from pixelhdm.evaluation.extractors.extractor import Extractor
from pixelhdm.evaluation.kept_images import IMAGES

FACTS = "facts"
ABOUT = {"digest": str, "resize": str, "num_images": int}  # what is known of each extractor


def facts_in(arrays: ArraysFile) -> dict[str, Any]:
    """What a file of ours says of itself; nothing where it is not ours.

    Raises:
        UserError: it is not what main.py stats writes.
    """
    if FACTS not in arrays.names:
        return {}
    text = str(arrays.array(FACTS))
    try:
        facts = json.loads(text)
    except json.JSONDecodeError as error:
        raise unknown_facts(arrays, "a text that is no JSON") from error
    if not isinstance(facts, dict):
        raise unknown_facts(arrays, f"a {type(facts).__name__}")
    if not isinstance(facts.get("extractors", {}), dict):
        raise unknown_facts(arrays, "extractors without names")
    return facts


def facts_of(
    arrays: ArraysFile, facts: Mapping[str, Any], extractor: Extractor
) -> Mapping[str, Any] | None:
    """What a file says of an extractor's statistics; None where it says nothing.

    Raises:
        UserError: it does not tell all, or they are of fewer than two images.
    """
    about = facts.get("extractors", {})
    if extractor.key not in about:
        return None
    own = about[extractor.key]
    for name, kind in ABOUT.items():
        if not isinstance(own, dict) or not isinstance(own.get(name), kind):
            raise unknown_facts(arrays, f"no {name} of {extractor.label}")
    if own["num_images"] < 2:
        raise UserError(
            f"statistics of a reference must be of at least 2 images, got {own['num_images']} in "
            f"{arrays.file}. Make it again with main.py stats, of more images."
        )
    return own


def check_size(arrays: ArraysFile, facts: Mapping[str, Any], size: tuple[int, int]) -> None:
    """Raise a UserError where a file tells that its images have another height or width than the
    drawn ones; published moments alone do not tell.
    """
    found = facts.get("height"), facts.get("width")
    if None in found:
        shape = arrays.layout(IMAGES)[0] if IMAGES in arrays.names else ()
        if len(shape) != 4:
            return
        found = shape[1:3]
    if found != size:
        height, width = found
        raise UserError(
            "evaluate.reference must be of images of the drawn size, {}x{}, got ".format(*size)
            + f"{arrays.file} of {height}x{width}. Draw at that size with "
            f"--data.draw.height={height} --data.draw.width={width}, or give another reference."
        )


def unknown_facts(arrays: ArraysFile, what: str) -> UserError:
    """What a person is told of facts that main.py stats does not write."""
    return UserError(
        f"{FACTS} of a reference must be those that main.py stats writes, got {what} in "
        f"{arrays.file}. Make it again with main.py stats."
    )
