"""Which modules of an adapter a pattern of its configuration is for: strangers write those, so none may take long."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from core.common.errors import CheckpointError
from core.common.values import quoted_json

# Patterns of ranks come from strangers: names, dots and ends, and nothing that repeats, cannot take long to match.
PATTERN = re.compile(r"(?:[\w.$^-]|\\[.d])+")
MAX_PATTERNS, MAX_PATTERN_CHARS = 10_000, 300
# All others are for a matcher that needs a time in proportion to the text; to make one of a pattern may take longer.
MAX_OTHER_PATTERNS = 200
# Each pattern is held against each module, which pages do whenever they are drawn; so many take half a second.
MAX_MATCHES = 2_000_000


def by_pattern(name: str, config: Mapping[str, Any], key: str, modules: list[str]) -> dict[str, Any]:
    """Ranks or alphas of the modules that a pattern fits, the first one that does; PEFT holds each against the end of a
    module's name."""
    found = config.get(key) or {}
    if not isinstance(found, dict):
        raise CheckpointError("adapter_pattern", adapter=name, setting=key, pattern="?")
    others = [pattern for pattern in found if not PATTERN.fullmatch(pattern)]
    is_much = len(found) > MAX_PATTERNS or len(found) * len(modules) > MAX_MATCHES
    if is_much or len(others) > MAX_OTHER_PATTERNS:
        raise CheckpointError("adapter_patterns", adapter=name, setting=key, count=len(found), modules=len(modules))
    values: dict[str, Any] = {}
    for pattern, value in found.items():
        whole = rf"^(?:.*\.)?(?:{pattern})$"
        try:
            if len(pattern) > MAX_PATTERN_CHARS:
                raise ValueError("too long")
            fits = _match_any(whole, modules) if pattern in others else list(map(re.compile(whole).match, modules))
        except ValueError as error:
            raise CheckpointError("adapter_pattern", adapter=name, setting=key, pattern=quoted_json(pattern)) from error
        for module, does_fit in zip(modules, fits, strict=True):
            if does_fit:
                values.setdefault(module, value)
    return values


def _match_any(pattern: str, texts: list[str]) -> list[Any]:
    """Which of `texts` a pattern of a stranger's fits, by RE2: its time grows with the text and nothing else.

    Raises ValueError for a pattern that is none, or looks ahead or back.
    """
    # It takes long to import, and hardly any adapter needs it.
    import pyarrow
    from pyarrow import compute

    fits: list[Any] = compute.match_substring_regex(pyarrow.array(texts), pattern).to_pylist()
    return fits
