"""Untrusted values: what kind they are, and how a sentence quotes them."""

from __future__ import annotations

import json
import re
from typing import Any, TypeGuard

# How much of a value a sentence quotes.
MAX_QUOTE_CHARS = 60
NUMBER_IN_TEXT = re.compile(r"-?[0-9]{1,9}")


def is_whole(value: object) -> TypeGuard[int]:
    """Whether JSON's `value` is a whole number; Python takes its true for 1 and its 4.0 for 4."""
    return isinstance(value, int) and not isinstance(value, bool)


def plain_number(value: object) -> Any:
    """The number 4 for "4" and for 4.0, as some programs write it; all else as it is."""
    if isinstance(value, str) and NUMBER_IN_TEXT.fullmatch(value.strip()):
        return int(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def quoted_json(value: object) -> str:
    """A JSON value as a sentence quotes it: text as it is; all else, and digits in text, as JSON has it."""
    text = value if isinstance(value, str) and not value.isdecimal() else json.dumps(value)
    return printable(text[:MAX_QUOTE_CHARS])


def quoted_text(text: str) -> str:
    """`text` as a sentence quotes it: what was typed or pasted may be long and no text at all."""
    return printable(text.strip()[:MAX_QUOTE_CHARS])


def printable(text: str) -> str:
    """`text` as it can be shown, written and tokenized: half characters become a mark, two halves one character.

    A name on disk may be no UTF-8, JSON may hold half characters, a client may cut a text in the middle of one.
    """
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
        return joined.encode("utf-8", "replace").decode()
