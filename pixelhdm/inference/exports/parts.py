"""Parts of a model from the class paths and settings that a file names."""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, NamedTuple

import torch

from pixelhdm.errors import UserError
from pixelhdm.parser import Parser, build_error

PACKAGE = "pixelhdm."
DOTTED = re.compile(r"\w+(\.\w+)+")


class Built(NamedTuple):
    """Parts and what they were built from.

    Attributes:
        parts: the objects by name.
        settings: class path and all arguments of each, as JSON holds them.
    """

    parts: dict[str, Any]
    settings: dict[str, Any]


def build(
    types: Mapping[str, Any],
    layers: list[Mapping[str, Any]],
    has_imports: bool,
    group: str = "model",
) -> Built:
    """Build the parts of these types from settings, of which later ones go over earlier ones.

    Random numbers of the caller stay as they are.

    Args:
        types: what each part is, by its name.
        layers: settings by part; names that `types` lacks are left out.
        has_imports: whether a class path may import a module that is neither PixelHDM's nor
            imported yet. Only for files of the person's own: importing runs code.
        group: what settings are called in errors, before their names.

    Raises:
        UserError: a setting or class path is wrong.
    """
    parser = Parser(allow_abbrev=False)
    parser.add_argument("--config", action="config")
    for name, kind in types.items():
        parser.add_argument(f"--{group}.{name}", type=kind)
    arguments = []
    for layer in layers:
        own = {name: layer[name] for name in types if name in layer}
        if not has_imports:
            check_class_paths(own)
        arguments += ["--config", json.dumps({group: own})]
    config = parser.parse_args(arguments)
    config.pop("config")
    settings = json.loads(parser.dump(config, format="json", skip_unset=False))[group]
    with torch.random.fork_rng(devices=[]):
        try:
            parts = vars(parser.instantiate(config)[group])
        except (ValueError, RuntimeError) as error:
            if reason := build_error(error):
                raise reason from error
            raise
    return Built(parts, settings)


def check_class_paths(settings: Any) -> None:
    """Raise a UserError unless all class paths are PixelHDM's or of modules imported before: a file
    of a stranger's must not decide what is imported.
    """
    for path in dotted(settings):
        module, _, name = path.rpartition(".")
        if module.startswith(PACKAGE):
            import_own(path, module)
        if module not in sys.modules:
            raise UserError(
                f"class {path} must be PixelHDM's or imported before the model is read, got a "
                f"module that is not. If you trust it, import {module} first."
            )
        if not isinstance(getattr(sys.modules[module], name, None), type):
            raise UserError(f"class {path} must be there, got no class of this name in {module}.")


def import_own(path: str, module: str) -> None:
    """Import a module of PixelHDM for a class path of it."""
    try:
        import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"class {path} must be there, got: {error}.") from error


def dotted(settings: Any) -> Iterator[str]:
    """All texts that could be taken for class paths."""
    if isinstance(settings, Mapping):
        settings = list(settings.values())
    if isinstance(settings, list):
        for value in settings:
            yield from dotted(value)
    elif isinstance(settings, str) and DOTTED.fullmatch(settings):
        yield settings
