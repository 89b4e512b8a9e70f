"""Tiny models of each kind of attention, and whether a loaded one answers as transformers' own class would."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from core.engine.protocol import Generate, Load, ModelFacts
from core.engine.sampling_params import Sampling
from core.worker.load import LoadedEngine
from core.worker.scheduler import Scheduler
from tests.support.family_checkpoints import VOCABULARY, make_family_checkpoint

CONTEXT, LENGTHS, NEW_TOKENS = 256, (150, 9), 12
# How far below the best logit a chosen one may be, of the logits' spread: half precision's rounding stays below.
MAX_REGRET = 0.1
SIZES: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "head_dim": 64,
                         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT,
                         "vocab_size": VOCABULARY}  # fmt: skip
QUARTER_ROPE = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}
NEAR_AND_FAR = ["sliding_attention", "full_attention"]
KINDS: dict[str, dict[str, Any]] = {
    "Qwen3: each head normed": {"model_type": "qwen3", **SIZES},
    "Qwen3.5: gated, a quarter turned": {"model_type": "qwen3_5_text", **SIZES, "rope_parameters": QUARTER_ROPE,
                                         "layer_types": ["full_attention"] * 2},
    "Granite with sinks": {"model_type": "granite_swa", **SIZES, "sliding_window": 40, "pad_token_id": 0,
                           "layer_types": NEAR_AND_FAR},
    "Gemma 4: heads of two sizes, shared keys": {
        "model_type": "gemma4_text", **SIZES, "num_hidden_layers": 4, "global_head_dim": 128, "sliding_window": 40,
        "layer_types": NEAR_AND_FAR * 2, "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 64,
        "vocab_size_per_layer_input": VOCABULARY, "tie_word_embeddings": True},
}  # fmt: skip


def check_answers(folder: Path, config: dict[str, Any], load: Callable[[Path, Load], LoadedEngine]) -> ModelFacts:
    """Answer two chats at once, greedily, with a model of `config` that `load` loads: each token must be about the best
    that the class has after those before it. The facts of the load."""
    reference = make_family_checkpoint(folder, config)
    # Captured steps have their own rotation, for the whole process.
    source = sys.modules[type(reference).__module__]
    rotation = source.apply_rotary_pos_emb
    engine = load(folder, Load(folder, CONTEXT, 2))
    random = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, VOCABULARY - 10, (length,), generator=random).tolist() for length in LENGTHS]
    chosen: dict[int, list[int]] = {0: [], 1: []}
    scheduler = Scheduler(Listening(engine.steps, chosen), engine.tokenizer, frozenset(), engine.chunk_tokens,
                          lambda _: None)  # fmt: skip
    for request, prompt in enumerate(prompts):
        scheduler.submit(Generate(request, tuple(prompt), Sampling(temperature=0.0, max_new_tokens=NEW_TOKENS)))
    while not scheduler.is_idle:
        scheduler.step()
    source.apply_rotary_pos_emb = rotation  # type: ignore[attr-defined]
    for prompt, tokens in zip(prompts, chosen.values(), strict=True):
        # A step that ran ahead may have drawn one more.
        assert len(tokens) >= NEW_TOKENS
        logits = reference(torch.tensor([prompt + tokens]), use_cache=False).logits[0]
        for place, token in enumerate(tokens[:NEW_TOKENS], len(prompt) - 1):
            row = logits[place]
            assert row.max() - row[token] < MAX_REGRET * row.std()
    return engine.facts


class Listening:
    """Steps that note the tokens of each slot; the first chat has the first slot."""

    def __init__(self, steps: Any, chosen: dict[int, list[int]]) -> None:
        self._steps, self._chosen = steps, chosen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._steps, name)

    def prefill_chunks(self, chunks: Any) -> Any:
        pending = self._steps.prefill_chunks(chunks)
        return pending and Noted(pending, [self._chosen[chunk.slot] for chunk in chunks if chunk.is_last])

    def decode(self, slots: Any) -> Any:
        return Noted(self._steps.decode(slots), [self._chosen[slot] for slot in slots])


class Noted:
    """Pending tokens, which are noted once when they are there."""

    def __init__(self, pending: Any, lists: list[list[int]]) -> None:
        self._pending, self._lists = pending, lists

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pending, name)

    def wait(self) -> Any:
        tokens = self._pending.wait()
        for one, token in zip(self._lists, tokens, strict=True):
            one.append(token)
        self._lists = [[] for _ in self._lists]
        return tokens
