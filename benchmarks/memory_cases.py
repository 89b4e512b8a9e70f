"""The cases of benchmarks/memory_ladder.py: models, contexts and chats, and what a load promises them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from benchmarks.random_model import SHAPES
from core.memory.adapter_room import AdapterRoom
from core.memory.cache_choice import CacheBits, CacheChoice
from core.memory.step_sizes import USUAL_SIZES, StepSizes

NUM_DRAWN = 12
# Context and chats of each model; a drawn model has others.
RUNGS = ((2048, 1), (4096, 4), (16384, 1), (16384, 3))
CONTEXTS = (2048, 4096, 8192, 16384, 32768, 65536)
NUM_SLOTS = (1, 2, 3, 4, 8, 16, 32)
# More tokens than that in all slots take minutes to fill.
MOST_TOKENS = 131_072
# Name, and what benchmarks.random_model makes of it. Hollow ones take no byte less. Most have fewer layers than the
# real model: a plan only scales with those.
MODELS = {
    "7B": ["7B"],
    "13B": ["13B"],
    "70B": ["70B", "--hollow"],
    "7B group 32": ["7B", "--group-size", "32", "--layers", "8"],
    "7B group 64": ["7B", "--group-size", "64", "--layers", "8"],
    "7B act-order": ["7B", "--act-order", "--layers", "8"],
    "7B 8 bit": ["7B", "--bits", "8", "--layers", "8"],
    "7B no groups": ["7B", "--group-size", "-1", "--layers", "8"],
    "Llama-3.2-1B": ["Llama-3.2-1B"],
    "Llama-3.2-3B": ["Llama-3.2-3B"],
    "Llama-3.1-8B group 32": ["Llama-3.1-8B", "--group-size", "32", "--layers", "8"],
    "Llama-3.3-70B": ["Llama-3.3-70B", "--layers", "8", "--hollow"],
    "Qwen2.5-0.5B": ["Qwen2.5-0.5B"],
    "Qwen2.5-7B": ["Qwen2.5-7B", "--layers", "8"],
    "Qwen2.5-72B": ["Qwen2.5-72B", "--layers", "8", "--hollow"],
    "Qwen3-0.6B": ["Qwen3-0.6B"],
    "Qwen3-14B": ["Qwen3-14B", "--layers", "8"],
    "Mistral-Nemo-12B": ["Mistral-Nemo-12B", "--layers", "8"],
    "Gemma-2-9B": ["Gemma-2-9B", "--layers", "8"],
    "Gemma-3-1B": ["Gemma-3-1B"],
    "Phi-3-mini": ["Phi-3-mini", "--layers", "8"],
    "Phi-4": ["Phi-4", "--layers", "8"],
    "Qwen3-30B-A3B": ["Qwen3-30B-A3B", "--layers", "12", "--hollow"],
    "Mixtral-8x7B": ["Mixtral-8x7B", "--layers", "8", "--hollow"],
    "Qwen3.5-27B as published": ["Qwen3.5-27B", "--layers", "16", "--hollow", "--keep", "attn", "shared_expert"],
    "Qwen3.5-27B 4 bit": ["Qwen3.5-27B", "--layers", "16", "--hollow"],
    "Qwen3.5-35B-A3B": ["Qwen3.5-35B-A3B", "--layers", "8", "--hollow", "--keep", "attn", "shared_expert"],
    "Qwen3-Next-80B-A3B": ["Qwen3-Next-80B-A3B", "--layers", "4", "--hollow"],
}
# How many adapters, of which rank, and whether they change experts too.
Adapters = tuple[int, int, bool]
# With room for LoRA adapters, which every chat uses one of: name, the model's arguments, the adapters.
ADAPTED: dict[str, tuple[list[str], Adapters]] = {
    "7B, 4 adapters of rank 16": (["7B"], (4, 16, False)),
    "7B, 1 adapter of rank 256": (["7B", "--layers", "8"], (1, 256, False)),
    "Llama-3.2-1B, 16 adapters of rank 64": (["Llama-3.2-1B"], (16, 64, False)),
    "Qwen2.5-7B act-order, 2 adapters of rank 8": (["Qwen2.5-7B", "--layers", "8", "--act-order"], (2, 8, False)),
    "Qwen3-30B-A3B, 2 adapters of rank 16, of experts too": (
        ["Qwen3-30B-A3B", "--layers", "12", "--hollow"],
        (2, 16, True),
    ),
}
# What chats can share: so much of the tokens that all could fill, in so many bits; whether they begin alike; adapters.
TOGETHER: dict[str, tuple[list[str], dict[str, Any]]] = {
    "Llama-3.2-1B, half the tokens in all": (["Llama-3.2-1B"], {"pool_share": 0.5}),
    "Qwen3-14B, half the tokens in all, alike, 8 bit": (
        ["Qwen3-14B", "--layers", "8"],
        {"pool_share": 0.5, "is_alike": True, "cache_bits": 8},
    ),
    "7B, alike, 8 bit, 4 adapters of rank 16": (
        ["7B", "--layers", "8"],
        {"is_alike": True, "cache_bits": 8, "adapters": (4, 16, False)},
    ),
    "Llama-3.1-8B, half the tokens in all, alike, 8 bit, 2 adapters of rank 64": (
        ["Llama-3.1-8B", "--layers", "8"],
        {"pool_share": 0.5, "is_alike": True, "cache_bits": 8, "adapters": (2, 64, False)},
    ),
}
SHARED_RUNGS = ((4096, 4), (16384, 3), (2048, 12))
# Models whose chats are many, with a large vocabulary and a small one.
CROWDED = {"Qwen3-0.6B, many chats": ["Qwen3-0.6B", "--layers", "8"], "7B, many chats": ["7B", "--layers", "4"]}
CROWDED_RUNGS = ((1024, 64), (1024, 65), (1024, 128))


@dataclass(frozen=True, slots=True)
class Case:
    """One model: what `benchmarks.random_model` is called with, and the contexts and chats that are tried. It comes
    through JSON, so that sizes may be lists.

    `adapters`: how many there is room for, of which rank, and whether of experts too. `pool_share`: the share that all
    chats together have of the tokens that they could fill. `is_alike`: their prompts are the same but for the end, and
    come when the first was read. `step_sizes`: those of StepSizes.
    """

    name: str
    arguments: list[str]
    rungs: list[tuple[int, int]]
    adapters: Adapters = (0, 0, False)
    cache_bits: CacheBits = 16
    pool_share: float = 1.0
    is_alike: bool = False
    step_sizes: tuple[int, int] = USUAL_SIZES

    @property
    def room(self) -> AdapterRoom:
        return AdapterRoom(*self.adapters)

    @property
    def sizes(self) -> StepSizes:
        return StepSizes(*self.step_sizes)

    def cache(self, context_tokens: int, num_slots: int) -> CacheChoice:
        pool_tokens = max(context_tokens, int(self.pool_share * context_tokens * num_slots))
        return CacheChoice(pool_tokens if self.pool_share < 1.0 else None, self.cache_bits)


def draw_cases(draw: random.Random, count: int) -> list[Case]:
    """Models that nobody named: a real shape with another number of layers, quantized otherwise, and other rungs."""
    cases = []
    for number in range(count):
        shape, layers = draw.choice(list(SHAPES)), draw.randint(3, 12)
        group_size, bits = draw.choice((32, 64, 128, -1)), draw.choice((4, 4, 4, 8))
        arguments = [shape, "--layers", str(layers), "--group-size", str(group_size), "--bits", str(bits), "--hollow"]
        arguments += ["--act-order"] * (draw.random() < 0.25)
        rungs = [(context, slots) for context in CONTEXTS for slots in NUM_SLOTS if context * slots <= MOST_TOKENS]
        cases.append(Case(f"drawn {number}: {' '.join(arguments)}", arguments, draw.sample(rungs, 4)))
    return cases
