"""The text before every caption that a text encoder reads."""

from pathlib import Path

import yaml

from pixelhdm.errors import UserError, reason_of


def read_text(path: str | Path) -> str:
    """The instruction in a text file, or in the YAML of one of PixelDiT-T2I's stages.

    Raises:
        UserError: it is not there or empty.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        if Path(path).suffix in (".yaml", ".yml"):
            text = "\n".join(yaml.safe_load(text)["text_encoder"]["chi_prompt"])
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        raise UserError(
            f"instruction must be a text file or a YAML with text_encoder.chi_prompt, got {path}: "
            f"{reason_of(error)}."
        ) from error
    text = text.removesuffix("\n")
    if not text.strip():
        raise UserError(f"instruction must hold a text, got {path} without one.")
    return text
