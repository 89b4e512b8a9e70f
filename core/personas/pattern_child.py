"""Looks for a stranger's patterns in a text, in a process of its own; see core/personas/patterns.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import regex  # type: ignore[import-untyped]

from core.common.sandbox_child import serve

FOUND, ABSENT, SLOW = "+", "-", "s"
# More than any book has; the library's own cache holds 500.
MAX_COMPILED = 2000


def prepare(settings: tuple[float, int]) -> Callable[[tuple[str, Sequence[tuple[str, bool, bool]]]], str]:
    """What searches: `settings` are the seconds for one pattern, and after how many slow ones the rest is given up."""
    timeout_s, max_slow = settings

    def search(question: tuple[str, Sequence[tuple[str, bool, bool]]]) -> str:
        """One letter for each pattern, in their order."""
        text, patterns = question
        found = ""
        for pattern, ignores_case, dot_is_all in patterns:
            is_over = found.count(SLOW) >= max_slow
            flags = (regex.IGNORECASE if ignores_case else 0) | (regex.DOTALL if dot_is_all else 0)
            found += ABSENT if is_over else _search(pattern, text, flags, timeout_s)
        return found

    return search


def _search(pattern: str, text: str, flags: int, timeout_s: float) -> str:
    """A wrong pattern is nowhere. One that is too large when it is compiled raises MemoryError, for any text."""
    try:
        compiled = _compile(pattern, flags)
    except (regex.error, RecursionError, OverflowError, ValueError):
        return ABSENT
    try:
        return FOUND if compiled.search(text, timeout=timeout_s) else ABSENT
    except (TimeoutError, RecursionError, MemoryError):
        return SLOW


@lru_cache(MAX_COMPILED)
def _compile(pattern: str, flags: int) -> Any:
    return regex.compile(pattern, flags, cache_pattern=False)


if __name__ == "__main__":
    serve(prepare)
