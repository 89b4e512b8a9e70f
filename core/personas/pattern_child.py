"""Looks for a stranger's patterns in a text, in a process of its own; see core/personas/patterns.py."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import regress

from core.common.sandbox_child import serve

FOUND, ABSENT, WRONG = "+", "-", "w"
# More than any book has.
MAX_COMPILED = 2000
# Without the flags u and v JavaScript writes a letter beyond the first 65,536 as two halves, and \u{2} is "uu".
ESCAPES = re.compile(
    r"\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})|(\\u)(?![0-9a-fA-F]{4})|\\.", re.DOTALL
)


def prepare(_: None) -> Callable[[tuple[str, Sequence[tuple[str, str]]]], str]:
    return search


def search(question: tuple[str, Sequence[tuple[str, str]]]) -> str:
    """One letter for each pattern, in their order."""
    text, patterns = question
    return "".join(_search(pattern, flags, text) for pattern, flags in patterns)


def _search(pattern: str, flags: str, text: str) -> str:
    try:
        compiled = _compile(pattern, flags)
    except (regress.RegressError, ValueError):
        return WRONG
    found = compiled.find(text)
    # The flag y ties a match to the place where the search begins.
    return FOUND if found is not None and ("y" not in flags or found.range().start == 0) else ABSENT


@lru_cache(MAX_COMPILED)
def _compile(pattern: str, flags: str) -> Any:
    if "v" in flags:
        # It has the strictness of u, for which this library looks at u alone.
        return regress.Regex(pattern, flags + "u")
    return regress.Regex(pattern if "u" in flags else ESCAPES.sub(_plain, pattern), flags)


def _plain(escape: re.Match[str]) -> str:
    if escape[1]:
        return bytes.fromhex(escape[1] + escape[2]).decode("utf-16-be")
    return "u" if escape[3] else escape[0]


if __name__ == "__main__":
    serve(prepare)
