"""The argument parser's errors, made one sentence."""

import difflib
import importlib
import inspect
import re
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from pixelhdm.errors import UserError

KEY = re.compile(r'^Parser key "([^"]+)":?\s*')
NOISE = re.compile(
    r"^(Does not validate against any|Subtypes:|Errors:|Given value|Problem with given class_path"
    r"|Expected a <class 'NoneType'>|Subclass types expect|a class path \(str\)|a dict with|$)"
)
WRAPPING = re.compile(
    r"Type \S.* expects a function or a callable class: | Got value: Namespace\(.*\)"
    r"|Add the import path to import_path_allowlist.*"
)
NO_CLASS = re.compile(r"Expected a dot import path string: ?(\S+)?")
ABSTRACT = re.compile(r"Expected an instantiatable class, but (?:(\S+) )?is abstract")
NOT_VALID = "Not a valid subclass of "
NESTED = re.compile(r"NestedArg\(key='([\w.]+)', val='?(.*?)'?\)")
CLASS_PATH = re.compile(r"class_path[ =]'([\w.]+)'")
BESIDE = re.compile(r"{'class_path': '[\w.]+', '(?!init_args|dict_kwargs)")  # settings at its side
CLASS = re.compile(r"(pixelhdm(?:\.\w+)+|torch\.optim\.\w+)\.([A-Z]\w*)")
LEAST = ("Expected a path but", "Expected a dot import path string")  # said of every wrong value
UNKNOWN = re.compile(
    r"Option '(\w+)' is not accepted|unrecognized arguments: --([\w.]+)"
    r"|does not accept option '([\w.]+)'"
)
UNREAD = re.compile(r"^Unable to load config '(.*)'", re.MULTILINE)
OPTIONAL = ("bitsandbytes", "torchao", "timm", "transformers", "wandb")
PUT_BESIDE = " Put the settings beside class_path under init_args."
MANY = 14  # more names than this say nothing


class Parser(LightningArgumentParser):
    """LightningCLI's parser, whose errors are one sentence that names key, value and the nearest
    valid name.

    Attributes:
        other_parsers: makes the parsers of subcommands that this one could have and was built
            without, by name.
    """

    other_parsers: Callable[[], dict[str, "Parser"]] = staticmethod(dict)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            super().error(message, ex)
        raise UserError(one_sentence(message) + self.suggestion(message)) from None

    def parse_string(self, *args: Any, **kwargs: Any) -> Namespace:
        """Parse a config file's text, or refuse a value where a section of settings belongs: it
        would wipe out what the section holds.
        """
        config = super().parse_string(*args, **kwargs)
        for name in self.groups:
            if name in config and not isinstance(config[name], Namespace):
                given = "null" if config[name] is None else config[name]
                self.error(
                    f'Parser key "{name}": must hold settings below it or be left out, got {given}'
                )
        return config

    def validate(self, namespace: Namespace, skip_unset: bool = True, **kwargs: Any) -> None:
        """Check all values; null too, which is one only where the type says so."""
        super().validate(namespace, skip_unset=skip_unset, **kwargs)
        if skip_unset and "_prefix" not in kwargs:  # nothing that is required is missing
            parsers = self.subcommand_parsers()
            if not parsers:
                super().validate(namespace, skip_unset=False, **kwargs)
            for name, parser in parsers.items():
                if namespace.get(name):
                    parser.validate(namespace[name], skip_unset=False, _prefix=f"{name}.")

    def subcommand_parsers(self) -> dict[str, "Parser"]:
        """The parsers of the subcommands by name; none where there are no subcommands."""
        choices = (action.choices for action in self._actions)
        return next((choice for choice in choices if isinstance(choice, dict)), {})

    def suggestion(self, message: str) -> str:
        """The valid names nearest to an unknown one, or what was meant, or nothing."""
        if wrong := wrong_class(message):
            if BESIDE.search(wrong.given):
                return PUT_BESIDE
            return self.class_suggestion(wrong)
        unknown = UNKNOWN.search(message)
        if not unknown:
            return ""
        name = next(group for group in unknown.groups() if group)
        if name == "class_path":
            return PUT_BESIDE
        class_path = refusing_class(message, name)
        known = list(constructor_types(class_path)) if class_path else self.own_options(message)
        if name in known:
            return f" PixelHDM sets {name} itself."
        is_ours = class_path or name.split(".")[0] in {option.split(".")[0] for option in known}
        if owners := [] if is_ours else self.owners(name):
            return f" It belongs to {' and '.join(owners)}."
        return nearest(name, known) or " See --help for the valid names."

    def owners(self, name: str) -> list[str]:
        """The subcommands that take an option which another one does not know."""
        head, whole = name.split(".")[0], getattr(self, "parent_parser", None) or self
        parsers = whole.subcommand_parsers() | whole.other_parsers()
        return sorted(
            owner
            for owner, parser in parsers.items()
            if f"--{head}" in parser._option_string_actions
        )

    def class_suggestion(self, wrong: "WrongClass") -> str:
        """The classes that fit where one does not, or nothing where the errors do not tell what is
        wanted, or there are too many.
        """
        types = wrong.types or [a._typehint for a in self._actions if a.dest == wrong.key]
        base = CLASS.search(str(types))
        if not base:
            return ""
        names = sorted(concrete_classes(getattr(importlib.import_module(base[1]), base[2])))
        near = "" if wrong.exists else nearest(wrong.name, names)
        return near or (f" Known: {', '.join(names)}." if 0 < len(names) <= MANY else "")

    def own_options(self, message: str) -> list[str]:
        """All option names of this parser, or of the subcommand that an error is about, without
        dashes.
        """
        actions = self._actions
        if subcommand := re.search(r"Subcommand '(\w+)'", message):
            actions = self.subcommand_parsers()[subcommand[1]]._actions
        options = [option.lstrip("-") for action in actions for option in action.option_strings]
        return [option for option in options if not option.endswith((".help", "+"))]


def refusing_class(message: str, name: str) -> str | None:
    """The innermost class that an error says does not take an option; None if it names no class."""
    before, option, after = message.rpartition(f"Option '{name}'")
    paths = CLASS_PATH.findall(before) or CLASS_PATH.findall(option + after)
    return paths[-1] if paths else None


class WrongClass(NamedTuple):
    """What an error says of the innermost value that should have been a class and is not.

    Attributes:
        name: name of a class; empty where none was given.
        key: what it was given for.
        types: the types that were wanted, as text; empty where the error does not tell.
        given: the value, as text; empty where the error does not tell.
        exists: whether there is a class of this name, which cannot be built.
    """

    name: str
    key: str
    types: str
    given: str
    exists: bool


def wrong_class(message: str) -> WrongClass | None:
    """The wrong class that an error is about, if it is about one."""
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    for at, line in enumerate(lines):
        abstract, is_invalid = ABSTRACT.match(line), line.startswith(NOT_VALID)
        match = abstract or NO_CLASS.match(line)
        if not match and not is_invalid:
            continue
        given = next((text for text in lines[at:] if text.startswith("Given value: ")), "")
        value = given.removeprefix("Given value: ")
        if is_invalid and not (NESTED.match(value) or value.startswith("{'init_args'")):
            continue
        name = (match and match[1]) or ""
        is_bare = not name or (abstract and name.rpartition(".")[2] not in value)
        has_settings = is_bare and (NESTED.search(value) or "{" in value)  # and no class
        name = "" if has_settings else name
        exists = bool(abstract and not has_settings)
        for above in range(at - 1, -1, -1):
            if lines[above].startswith("Subtypes:"):
                name = name or ("" if "(" in value or "{" in value else value)
                return WrongClass(name, "", lines[above], value, exists)
            if key := KEY.search(lines[above]):
                paths = CLASS_PATH.findall(" ".join(lines[:above]))
                types = str(constructor_types(paths[-1]).get(key[1], "")) if paths else ""
                return WrongClass(name, key[1], types, value if has_settings else "", exists)
    return None


def constructor_types(class_path: str) -> dict[str, Any]:
    """The annotations of a class's constructor arguments by their names."""
    module, _, name = class_path.rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    return {name: parameter.annotation for name, parameter in parameters.items()}


def nearest(name: str, known: list[str]) -> str:
    """The one or two known names nearest to a dotted one, as a question; or nothing.

    What it begins with decides: of `model.optimzer.lr` the part `model.optimzer` is unknown. A
    part that is known elsewhere, as `optimizer` is in `model.optimizer`, was meant there.
    """
    parts = name.split(".")
    starts = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    heads = {".".join(option.split(".")[:end]) for option in known for end in range(1, 6)}
    start = next((start for start in starts if start not in heads), name)
    inside = [option for option in known if option.endswith(f".{start}")]
    alike = {head.lower(): head for head in sorted(heads)}
    close = difflib.get_close_matches(start.lower(), alike, n=2, cutoff=0.6)
    near = [alike[head] for head in close] or inside[:2]
    return f" Did you mean {' or '.join(near)}?" if near else ""


def concrete_classes(base: type) -> set[str]:
    """Names of a class and all imported ones below it that can be built."""
    below = {name for cls in base.__subclasses__() for name in concrete_classes(cls)}
    is_public = not base.__name__.startswith("_") and not inspect.isabstract(base)
    return below | {base.__name__} if is_public else below


def build_error(error: ValueError | RuntimeError) -> UserError | None:
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
    lines = [WRAPPING.sub("", line.strip().removeprefix("- ")) for line in message.splitlines()]
    keys = [match[1] for line in lines if (match := KEY.match(line))]
    if unread := UNREAD.search(message):
        return f"{keys[-1]}: must hold settings or name a file of them, got {unread[1]}."
    reasons = [KEY.sub("", line) for line in lines]
    reasons = [reason for reason in reasons if not NOISE.match(reason)] or [lines[-1]]
    wrong = wrong_class(message)
    vague = (*LEAST, NOT_VALID) if wrong else LEAST
    telling = [r for r in reasons if not r.startswith(vague) and not ABSTRACT.match(r)]
    if not telling:
        telling = [told(wrong) if wrong else reasons[-1]]
    text = "; ".join(reason.rstrip(".: ") for reason in dict.fromkeys(telling))
    text = re.sub(r"<class '([\w.]+)'>", r"\1", text).replace("typing.", "")
    given = next((line for line in lines if line.startswith("Given value:")), "")
    if missing := re.search(r"No module named '(\w+)'", text):
        text += f"; {how_to_get(missing[1])}"
    elif text == "Expected a list" and keys:
        text = f"must be a list, got {given.removeprefix('Given value:').strip()}; write "
        text += f"--{'.'.join(keys)}+=… for each, or '[…]'"
    elif given and not re.search("value:|required:|, got ", text) and "NestedArg" not in given:
        text += f", got {given.removeprefix('Given value:').strip().rstrip('.')}"
    return f"{'.'.join(keys)}: {text}." if keys else f"{text}."


def how_to_get(module: str) -> str:
    """What helps where a module is missing. Any other name may be a stranger's package."""
    if module in OPTIONAL:
        return f"pip install {module} may help"
    return f"a file {module}.py must lie beside main.py, or its package be installed"


def told(wrong: WrongClass) -> str:
    """What is wrong with a class, in words."""
    if BESIDE.search(wrong.given):
        return f"must have its settings in their place, got {wrong.given}"
    if setting := NESTED.search(wrong.given):
        return f"must have a class before it has settings, got {setting[1]}={setting[2]}"
    if not wrong.name and wrong.given.startswith("{"):
        return f"must have a class before it has settings, got {wrong.given}"
    if wrong.exists:
        return f"must be a class that can be built, neither base nor incomplete, got {wrong.name}"
    return f"no fitting class has this name, got {wrong.name}"
