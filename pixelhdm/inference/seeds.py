"""What Python users give for each image: its seed, and values that several share."""

from operator import index
from typing import Any

import torch

from pixelhdm.errors import UserError

MOST_SEED = 2**32  # of seeds that are drawn, short enough to be noted down
Generators = torch.Generator | list[torch.Generator]


def seeds_of(
    num_prompts: int,
    num_each: int,
    seed: int | list[int] | None,
    generator: Generators | None,
) -> list[int]:
    """The seed of each image: those given; seed, seed + 1, … for each prompt's; or drawn ones.

    Raises:
        UserError: there are not as many as images, or one is out of range.
    """
    total = num_prompts * num_each
    if seed is not None and generator is not None:
        raise UserError("seed must be empty where generator is given, got both. Give one of them.")
    if isinstance(seed, list | tuple):
        seeds = [whole("seed", one) for one in seed]
    elif seed is not None:
        first = whole("seed", seed)
        seeds = [first + number for number in range(num_each)] * num_prompts
    elif isinstance(generator, list):
        seeds = [drawn(one, 1)[0] for one in generator]
    else:
        seeds = drawn(generator, total)
    if len(seeds) != total:
        name = "generator" if seed is None else "seed"
        raise UserError(f"{name} must be one or as many as images, {total}, got {len(seeds)}.")
    if wrong := [seed for seed in seeds if not 0 <= seed < 2**63]:
        raise UserError(f"seed must lie in 0 … 2^63 - 1 for every image, got {wrong[0]}.")
    return seeds


def whole(name: str, value: Any) -> int:
    """A whole number, also one of NumPy's or PyTorch's, as Python's.

    Raises:
        UserError: it is none.
    """
    refusal = UserError(f"{name} must be a whole number, got {value!r}.")
    if isinstance(value, bool):
        raise refusal
    try:
        return index(value)
    except TypeError as error:
        raise refusal from error


def texts(name: str, values: list[Any]) -> list[str]:
    """The same, if all are texts.

    Raises:
        UserError: one is not.
    """
    for value in values:
        if not isinstance(value, str):
            raise UserError(f"{name} must be a text or a list of texts, got {value!r}.")
    return values


def drawn(generator: torch.Generator | None, num: int) -> list[int]:
    """Seeds from a generator; from the global one where there is none."""
    device = "cpu" if generator is None else generator.device
    return torch.randint(MOST_SEED, (num,), generator=generator, device=device).tolist()


def each(name: str, given: Any, num_prompts: int, num_each: int) -> list[Any]:
    """One value per image, of one for all, one per prompt or one per image.

    Raises:
        UserError: there is another number of them.
    """
    values = list(given) if isinstance(given, list | tuple) else [given]
    total = num_prompts * num_each
    for number in (1, num_prompts, total):
        if len(values) == number:
            return [value for value in values for _ in range(total // number)]
    raise UserError(
        f"{name} must be one, or one for each of {num_prompts} prompts or classes, or of {total} "
        f"images, got {len(values)}."
    )
