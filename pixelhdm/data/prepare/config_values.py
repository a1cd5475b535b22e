"""The values in a training config that a report needs, checked before any work begins."""

import math
from collections.abc import Callable
from typing import Any, get_args

from pixelhdm.data.buckets import Buckets, TooSmall
from pixelhdm.errors import UserError


def section(content: dict[str, Any], key: str, name: str) -> dict[str, Any]:
    """The settings under the last word of a dotted key; none where there is no such word.

    Raises:
        UserError: something else stands there.
    """
    value = content.get(key.rpartition(".")[2])
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise refusal(key, "hold settings below it", value, name)
    return value


def whole(value: Any, key: str, name: str) -> int:
    """A whole number above 0 from a config.

    Raises:
        UserError: it is none.
    """
    if not is_whole(value):
        raise refusal(key, "be a whole number above 0", value, name)
    return value


def chosen_buckets(data: dict[str, Any], name: str) -> Buckets:
    """The buckets of a config, or the one square of its image_size.

    Raises:
        UserError: a setting of them is unknown, of another kind, or does not go with the others.
    """
    image_size = data.get("image_size")
    given = section(data, "data.buckets", name)
    if image_size is not None or not given:
        image_size = whole(image_size, "data.image_size", name)
    if not given:
        return Buckets.square(image_size)
    for key, value in given.items():
        if key not in RULES:
            rule = f"be one of {', '.join(RULES)}"
            raise refusal("the keys of data.buckets", rule, key, name)
        rule, is_right = RULES[key]
        if not is_right(value):
            raise refusal(f"data.buckets.{key}", rule, value, name)
    values = {key: as_number(value) for key, value in given.items()}
    try:
        return Buckets(**values)
    except UserError as error:
        raise UserError(f"data.buckets in {name} cannot be used: {error}") from error


def refusal(key: str, rule: str, value: Any, name: str) -> UserError:
    """The error for a value that breaks its rule."""
    given = "nothing" if value is None else value
    return UserError(f"{key} must {rule}, got {given} in {name}. Correct train_config.")


def as_number(value: Any) -> Any:
    """A number that YAML takes for a text, such as 1e-1, or the value as it is."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number above 0."""
    return type(value) is int and value > 0


def is_number(value: Any) -> bool:
    """Whether a value is a number."""
    value = as_number(value)
    return type(value) in (int, float) and not math.isnan(value)


def is_list_of(value: Any, is_right: Callable[[Any], bool]) -> bool:
    """Whether a value is a list of some that are right, and not empty."""
    return isinstance(value, list) and bool(value) and all(map(is_right, value))


def is_pair(value: Any) -> bool:
    """Whether a value is two whole numbers."""
    return is_list_of(value, is_whole) and len(value) == 2


WHOLE = ("be a whole number above 0", is_whole)
NUMBER = ("be a number", is_number)
RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "min_side": WHOLE,
    "max_side": WHOLE,
    "step": WHOLE,
    "levels": ("be a list of whole numbers above 0", lambda value: is_list_of(value, is_whole)),
    "max_aspect": NUMBER,
    "sizes": (
        "be a list of pairs of whole numbers, height and width",
        lambda value: value is None or is_list_of(value, is_pair),
    ),
    "max_upscale": NUMBER,
    "max_crop": NUMBER,
    "too_small": (
        f"be one of {', '.join(get_args(TooSmall))}",
        lambda value: value in get_args(TooSmall),
    ),
}
