"""Captions as the shards hold them."""

import json
from typing import Any

CAPTION_KEYS = ("captions", "caption", "text", "txt", "description", "prompt", "alt_text")


def captions_in(data: bytes, is_json: bool) -> list[str]:
    """The captions of a sample's text part: those of a JSON object, or a plain text as one.

    Raises:
        ValueError: it is neither UTF-8 nor, where it should be, JSON.
    """
    return captions_of(json.loads(data)) if is_json else cleaned([data.decode("utf-8")])


def captions_of(value: Any) -> list[str]:
    """The captions of a JSON value: those under the first of CAPTION_KEYS that has any, a list of
    texts, or a text itself; empty ones are left out.
    """
    if isinstance(value, dict):
        found = (captions_of(value.get(key)) for key in CAPTION_KEYS)
        return next(filter(None, found), [])
    if isinstance(value, list):
        return [text for one in value for text in captions_of(one)]
    return cleaned([value]) if isinstance(value, str) else []


def cleaned(captions: list[str]) -> list[str]:
    """Captions without surrounding white space and empty ones."""
    return [text.strip() for text in captions if text.strip()]
