"""What the benchmark measures and how often, as values; rounds that alternate between engines."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from core.checkpoint.checkpoint import Checkpoint
from core.checkpoint.experts import expert_matrix
from core.memory.expert_shapes import token_share

EMBEDDING = "embed_tokens.weight"


class Unable(Exception):
    """An engine cannot do what it was asked; its own words."""


class TooSlow(Unable):
    """An engine was ended because it took longer than `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"it took longer than {seconds:g} s")
        self.seconds = seconds


@dataclass(frozen=True, slots=True)
class Decoded:
    """A rate over all chats together. `is_whole`: every answer became as long as was asked."""

    tokens_per_s: float
    num_tokens: int
    is_whole: bool


class Measured(Protocol):
    """An engine that can be asked: seconds to the first token of a prompt, and how fast it writes."""

    max_chats: int

    def first_token_s(self, num_tokens: int) -> float: ...

    def decode(self, num_chats: int, prompt_tokens: int, new_tokens: int) -> Decoded: ...


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured. `lengths` are prompts whose first token is waited for, each with its number of rounds."""

    lengths: dict[int, int]
    chats: tuple[int, ...]
    prompt_tokens: int
    new_tokens: int
    rounds: int


# Rounds cost seconds on a CPU, and its figures jump about; a GPU's do not.
ON_CPU = Extent({512: 3, 4096: 1}, (1, 4), prompt_tokens=128, new_tokens=128, rounds=5)
ON_GPU = Extent({512: 5, 4096: 3}, (1, 8, 32), prompt_tokens=512, new_tokens=256, rounds=3)
# generate() writes a dozen tokens a second on a card that can do hundreds, and five of a 70B: a minute for all of it.
GENERATE_ON_GPU = Extent({512: 2, 4096: 1}, (1, 8, 32), prompt_tokens=512, new_tokens=16, rounds=2)
QUICK = Extent({512: 1}, (1, 2), prompt_tokens=32, new_tokens=64, rounds=1)
# A card writes 64 tokens of a small model before anybody has looked twice.
QUICK_ON_GPU = Extent({512: 1}, (1, 2), prompt_tokens=32, new_tokens=256, rounds=1)


@dataclass(slots=True)
class Rounds:
    """The figures of one engine: seconds by prompt length, decoding by number of chats, and why some are missing."""

    first_token_s: dict[int, list[float]] = field(default_factory=dict)
    decoded: dict[int, list[Decoded]] = field(default_factory=dict)
    failures: list[Unable] = field(default_factory=list)


# Hears of a figure when it is known: the engine's name, prompt length or number of chats, seconds or tokens a second.
Tell = Callable[[str, int, float], None]


def measure_first_tokens(
    engines: Mapping[str, Measured], found: Mapping[str, Rounds], lengths: dict[int, int], tell: Tell
) -> None:
    """Time to the first token of each length, in turns, into `found`."""
    for num_tokens, rounds in lengths.items():

        def measure(name: str, engine: Measured, num_tokens: int = num_tokens) -> None:
            took_s = engine.first_token_s(num_tokens)
            found[name].first_token_s.setdefault(num_tokens, []).append(took_s)
            tell(name, num_tokens, took_s)

        take_turns(engines, found, rounds, measure)


def measure_decoding(
    engines: Mapping[str, Measured], found: Mapping[str, Rounds], num_chats: int, extent: Extent, tell: Tell
) -> None:
    """Decoding of `num_chats` at once, in turns, into `found`."""

    def measure(name: str, engine: Measured) -> None:
        decoded = engine.decode(num_chats, extent.prompt_tokens, extent.new_tokens)
        found[name].decoded.setdefault(num_chats, []).append(decoded)
        tell(name, num_chats, decoded.tokens_per_s)

    able = {name: engine for name, engine in engines.items() if num_chats <= engine.max_chats}
    take_turns(able, found, extent.rounds, measure)


def take_turns(
    engines: Mapping[str, Measured],
    found: Mapping[str, Rounds],
    rounds: int,
    measure: Callable[[str, Measured], None],
) -> None:
    """Each engine once a round: on a noisy machine all of them see the same noise. One that fails has no more turns."""
    left = dict(engines)
    for _ in range(rounds):
        for name, engine in list(left.items()):
            try:
                measure(name, engine)
            except Unable as error:
                found[name].failures.append(error)
                del left[name]


def fitting(extent: Extent, limit_tokens: int) -> Extent:
    """`extent` for a model with a context of `limit_tokens`: a prompt leaves room for at least one token."""
    lengths = {min(length, limit_tokens - 1): n for length, n in extent.lengths.items() if length <= limit_tokens}
    prompt = min(extent.prompt_tokens, limit_tokens // 2)
    return Extent(lengths, extent.chats, prompt, min(extent.new_tokens, limit_tokens - prompt - 1), extent.rounds)


def bytes_a_token(checkpoint: Checkpoint) -> int:
    """The weights that every decoding step reads: all but the table of embeddings, of which it reads one row.

    Where that table serves as the last matrix too, it is read. Orders of inputs are not weights. Of experts those count
    that one token goes through.
    """
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if not name.endswith(".g_idx")}
    is_tied = not any(name.endswith("lm_head.weight") for name in tensors)
    read = {name: one.num_bytes for name, one in tensors.items() if is_tied or not name.endswith(EMBEDDING)}
    experts = sum(count for name, count in read.items() if expert_matrix(name) is not None)
    share = token_share(tuple(Counter(checkpoint.layers).items())) if experts else 1.0
    return sum(read.values()) - round(experts * (1 - share))


def spread(values: list[float], digits: int = 2) -> dict[str, float]:
    """The median with its range, and of how many."""
    return {
        "median": round(statistics.median(values), digits),
        "low": round(min(values), digits),
        "high": round(max(values), digits),
        "runs": len(values),
    }
