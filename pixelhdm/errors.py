"""The one exception that a person, not a programmer, is meant to read."""


class UserError(ValueError):
    """Wrong input from a person: the command line prints its text as one sentence, without a
    traceback.
    """


def check_at_least(least: int, **values: int) -> None:
    """Raise a UserError that names the first of `values` below `least`."""
    for name, value in values.items():
        if value < least:
            raise UserError(f"{name} must be at least {least}, got {value}.")
