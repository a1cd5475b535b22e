"""The one exception that a person, not a programmer, is meant to read."""


class UserError(ValueError):
    """Wrong input from a person: the command line prints its text as one sentence, without a
    traceback.
    """
