"""Which way a text runs. Each paragraph of a message follows its own first letter; lists and tables, the message's."""

from __future__ import annotations

import unicodedata

MAX_CHARS = 500


def is_right_to_left(text: str) -> bool:
    """Whether the first letter with a direction is one of Arabic, Hebrew and their like."""
    for letter in text[:MAX_CHARS]:
        direction = unicodedata.bidirectional(letter)
        if direction in ("R", "AL"):
            return True
        if direction == "L":
            return False
    return False
