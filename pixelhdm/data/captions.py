"""Captions as the shards hold them."""

import codecs
import json
import math
from typing import Any

CAPTION_KEYS = ("captions", "caption", "text", "txt", "description", "prompt", "alt_text")


def captions_in(data: bytes, is_json: bool) -> list[str]:
    """The captions of a sample's text part: those of a JSON object, or a plain text as one.

    Raises:
        ValueError: it is neither UTF-8 nor UTF-16 with its mark nor, where it should be, JSON.
    """
    return captions_of(json.loads(data)) if is_json else cleaned([decoded(data)])


def decoded(data: bytes) -> str:
    """The text in a file's bytes: UTF-8, or UTF-16 where its byte order mark says so.

    Raises:
        ValueError: it is neither.
    """
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if is_utf16 else "utf-8-sig")


def captions_of(value: Any) -> list[str]:
    """The captions of a JSON value: those under the first of CAPTION_KEYS that has any, a list of
    texts, or a text itself; empty ones are left out.
    """
    if isinstance(value, dict):
        found = (under_key(value.get(key)) for key in CAPTION_KEYS)
        return next(filter(None, found), [])
    if isinstance(value, list):
        return [text for one in value for text in captions_of(one)]
    return cleaned([value]) if isinstance(value, str) else []


def under_key(value: Any) -> list[str]:
    """The captions that a value under one of CAPTION_KEYS stands for: a number is one too, and an
    object without such keys has one or more in each of its texts, by language for example.
    """
    if isinstance(value, dict):
        texts = [one for one in value.values() if isinstance(one, str | list)]
        return captions_of(value) or captions_of(texts)
    if isinstance(value, list):
        return [text for one in value for text in under_key(one)]
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return [str(value)]
    return captions_of(value)


def cleaned(captions: list[str]) -> list[str]:
    """Captions without surrounding white space and empty ones."""
    return [text.strip() for text in captions if text.strip()]
