"""Untrusted values: what kind they are, and how a sentence quotes them."""

from __future__ import annotations

import json
import re
from typing import Any, TypeGuard

# How much of a value a sentence quotes.
MAX_QUOTE_CHARS = 60
# Codes that move a terminal's cursor, recolour or hide text, and characters that turn round the order of what follows.
# What joins letters and emoji is none of them.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufff9-\ufffb]")
# A terminal's colours, as other programs' logs have them.
COLOURS = re.compile(r"\x1b\[[0-9;:]*m")
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
    return without_controls(printable(text[:MAX_QUOTE_CHARS]))


def quoted_value(value: object) -> str:
    """A JSON value as a file has it, text in its quotes: what is wrong with "4" is that it is no number."""
    return without_controls(printable(json.dumps(value, ensure_ascii=False)[:MAX_QUOTE_CHARS]))


def quoted_text(text: str, max_chars: int = MAX_QUOTE_CHARS) -> str:
    """`text` as a sentence quotes it: what was typed or pasted may be long and no text at all."""
    return without_controls(printable(text.strip()[:max_chars]))


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


def without_controls(text: str) -> str:
    """`text` as it can stand among other text, on a terminal or a page: what would change that becomes a mark, and
    colours are left out."""
    return CONTROLS.sub("\ufffd", COLOURS.sub("", text))


def json_text(value: object) -> str:
    """`value` as JSON that can be shown on a terminal and loses nothing: controls in its texts are escaped."""
    return CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False, indent=1))
