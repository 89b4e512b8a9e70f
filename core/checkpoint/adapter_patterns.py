"""The rank and the alpha of each module of an adapter. Strangers write the patterns of modules, so none may take
long."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.common.errors import CheckpointError
from core.common.values import plain_number, printable, quoted_value

# Patterns of ranks come from strangers: names, dots and ends, and nothing that repeats, cannot take long to match.
PATTERN = re.compile(r"(?:[\w.$^-]|\\[.d])+")
MAX_PATTERNS, MAX_PATTERN_CHARS = 10_000, 300
# All others are for a matcher that needs a time in proportion to the text; to make one of a pattern may take longer.
MAX_OTHER_PATTERNS = 200
# Each pattern is held against each module, which pages do whenever they are drawn; so many take half a second.
MAX_MATCHES = 2_000_000
# float32's largest number: what an adapter adds is computed in that.
MAX_ALPHA = 3.4028234663852886e38


@dataclass(frozen=True, slots=True)
class ModuleSettings:
    """Ranks and alphas of an adapter's modules as its configuration has them, by pattern where one fits."""

    adapter: str
    config: Mapping[str, Any]
    ranks: Mapping[str, Any]
    alphas: Mapping[str, Any]

    @classmethod
    def read(cls, adapter: str, config: Mapping[str, Any], modules: list[str]) -> ModuleSettings:
        """Raises CheckpointError for patterns that cannot be read."""
        ranks, alphas = (by_pattern(adapter, config, key, modules) for key in ("rank_pattern", "alpha_pattern"))
        return cls(adapter, config, ranks, alphas)

    def rank(self, module: str) -> tuple[str, Any]:
        """The setting that says it, and what it says."""
        return ("rank_pattern", self.ranks[module]) if module in self.ranks else ("r", self.config.get("r"))

    def alpha(self, module: str) -> float:
        """Raises CheckpointError where it is no number that float32 holds."""
        is_own = module in self.alphas
        setting, said = (
            ("alpha_pattern", self.alphas[module]) if is_own else ("lora_alpha", self.config.get("lora_alpha"))
        )
        alpha = plain_number(said)
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not abs(alpha) <= MAX_ALPHA:
            raise CheckpointError("adapter_alpha", adapter=self.adapter, module=printable(module), setting=setting,
                                  alpha=quoted_value(said))  # fmt: skip
        return alpha


def by_pattern(name: str, config: Mapping[str, Any], key: str, modules: list[str]) -> dict[str, Any]:
    """Ranks or alphas of the modules that a pattern fits, the first one that does; PEFT holds each against the end of a
    module's name."""
    found = config.get(key) or {}
    if not isinstance(found, dict):
        raise CheckpointError("adapter_setting", adapter=name, setting=key, value=quoted_value(found))
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
            raise CheckpointError(
                "adapter_pattern", adapter=name, setting=key, pattern=quoted_value(pattern)
            ) from error
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
