"""The one exception that a person, not a programmer, is meant to read."""

from typing import Any, get_args


class UserError(ValueError):
    """Wrong input from a person: the command line prints its text as one sentence, without a
    traceback.
    """


def one_line(error: Exception) -> str:
    """An error's text without its line breaks."""
    return " ".join(str(error).split())


def reason_of(error: Exception) -> str:
    """The beginning of what a library says was wrong, to stand inside a sentence: with its kind."""
    reason = one_line(error).split(". ")[0][:200].rstrip(".!")
    return f"{type(error).__name__}: {reason}"


def counted(names: list[str], what: str) -> str:
    """How many there are of something, with the first three by name."""
    return f"{len(names)} {what} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"


def check_at_least(least: int, **values: int) -> None:
    """Raise a UserError that names the first of `values` below `least`."""
    for name, value in values.items():
        if value < least:
            raise UserError(f"{name} must be at least {least}, got {value}.")


def check_one_of(allowed: Any, **values: str) -> None:
    """Raise a UserError that names the first of `values` that the Literal `allowed` lacks."""
    for name, value in values.items():
        if value not in get_args(allowed):
            raise UserError(f"{name} must be one of {', '.join(get_args(allowed))}, got {value}.")
