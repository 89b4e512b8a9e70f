"""A part of a prompt, as one pass reads it. It needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class PromptChunk(NamedTuple):
    """Some tokens of the prompt of `slot`, at positions from `begin` on. `is_last`: they end it."""

    slot: int
    tokens: Sequence[int]
    begin: int
    is_last: bool
