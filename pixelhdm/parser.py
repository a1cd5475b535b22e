"""The argument parser's errors, made one sentence."""

import difflib
import importlib
import inspect
import re
from typing import NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from pixelhdm.errors import UserError

KEY = re.compile(r'^Parser key "([^"]+)":?\s*')
NOISE = re.compile(
    r"^(Does not validate against any|Subtypes:|Errors:|Given value|Problem with given class_path"
    r"|Expected a <class 'NoneType'>|$)"
)
WRAPPING = re.compile(
    r"Type \S.* expects a function or a callable class: | Got value: Namespace\(.*\)"
    r"|Add the import path to import_path_allowlist.*"
)
UNKNOWN = re.compile(
    r"Option '(\w+)' is not accepted|unrecognized arguments: --([\w.]+)"
    r"|does not accept option '([\w.]+)'"
)


class Parser(LightningArgumentParser):
    """LightningCLI's parser, whose errors are one sentence that names key, value and the nearest
    valid name.
    """

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            super().error(message, ex)
        raise UserError(one_sentence(message) + self.suggestion(message)) from None

    def suggestion(self, message: str) -> str:
        """The valid names nearest to an unknown one, or nothing."""
        unknown = UNKNOWN.search(message)
        if not unknown:
            return ""
        name = next(group for group in unknown.groups() if group)
        class_path = re.search(r"class_path[ =]'([\w.]+)'", message)
        known = self.class_options(class_path[1]) if class_path else self.own_options()
        if name in known:
            return f" PixelHDM sets {name} itself."
        near = difflib.get_close_matches(name, known, n=2, cutoff=0.6)
        return f" Did you mean {' or '.join(near)}?" if near else " See --help for the valid names."

    def own_options(self) -> list[str]:
        """All option names of this parser, without dashes."""
        return [option.lstrip("-") for action in self._actions for option in action.option_strings]

    def class_options(self, class_path: str) -> list[str]:
        """The constructor arguments of a class."""
        module, _, name = class_path.rpartition(".")
        return list(inspect.signature(getattr(importlib.import_module(module), name)).parameters)


def build_error(error: ValueError) -> UserError | None:
    """What was wrong when jsonargparse could not build an optional part, if it was that.

    It wraps what the part's constructor raised into one error for each type that it tried.
    """
    if "Does not validate against any" not in str(error):
        return None
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):
        cause = cause.__cause__ or cause.__context__
    return cause or UserError(one_sentence(str(error)))


def one_sentence(message: str) -> str:
    """The informative lines of a jsonargparse error in one line, the whole key first."""
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    keys = [match[1] for line in lines if (match := KEY.match(line))]
    reasons = [KEY.sub("", line) for line in lines]
    reasons = [reason for reason in reasons if not NOISE.match(reason)] or [lines[-1]]
    telling = [r for r in reasons if not r.startswith("Expected a path but")] or reasons
    text = "; ".join(WRAPPING.sub("", reason).rstrip(".: ") for reason in dict.fromkeys(telling))
    text = re.sub(r"<class '([\w.]+)'>", r"\1", text).replace("typing.", "")
    given = next((line for line in lines if line.startswith("Given value:")), "")
    if missing := re.search(r"No module named '(\w+)'", text):
        text += f"; pip install {missing[1]} may help"
    elif given and not re.search("value:|required:", text) and "NestedArg" not in given:
        text += f", got {given.removeprefix('Given value:').strip()}"
    return f"{'.'.join(keys)}: {text}." if keys else f"{text}."
