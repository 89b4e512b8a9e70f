"""A part of a prompt, as one pass reads it. It needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class PromptChunk(NamedTuple):
    """Some tokens of the prompt of `slot`, at positions from `begin` on. `is_last`: they end it. `kept_at`: the
    position up to which their recurrent states are kept, where steps keep them on the way; 0: none are."""

    slot: int
    tokens: Sequence[int]
    begin: int
    is_last: bool
    kept_at: int = 0
