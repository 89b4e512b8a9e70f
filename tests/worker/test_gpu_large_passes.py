"""On a GPU: prompts that are read some thousand tokens at a time. Run with `pytest -m gpu` on a GPU host.

Held against transformers' own float32 model of the same numbers, as tests/worker/test_gpu_steps.py does.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from core.engine.protocol import Load
from core.engine.sampling_params import Sampling
from core.memory.step_sizes import EXPERT_CHUNK_TOKENS, LARGE_CHUNK_TOKENS
from core.worker.decode.prompt_chunk import PromptChunk
from tests.support.family_checkpoints import VOCABULARY, make_family_checkpoint
from tests.support.gpu_engines import Engines

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
CONTEXT_TOKENS, LENGTHS = 4096, (2900, 700)
# Of the logits' spread: half precision rounds each product's result.
TOLERANCE = 0.03
SIZES: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": CONTEXT_TOKENS,
    "vocab_size": VOCABULARY,
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 128}
STATES = {
    "full_attention_interval": 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "shared_expert_intermediate_size": 256,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": SIZES,
    "qwen3_moe": SIZES | EXPERTS | {"norm_topk_prob": True},
    "qwen3_next": SIZES | EXPERTS | STATES,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_large_passes_compute_what_the_models_class_does(tmp_path: Path, family: str, engines: Engines) -> None:
    """Of one prompt, and of two in one pass where no layer has a state."""

    def is_packed(name: str) -> bool:
        return not name.endswith(("in_proj_a", "in_proj_b", "in_proj_ba"))

    reference = make_family_checkpoint(tmp_path, {"model_type": family, **FAMILIES[family]}, is_quantized=is_packed)
    texts = [[random.Random(slot).randrange(3, 380) for _ in range(length)] for slot, length in enumerate(LENGTHS)]
    engine = engines.open(tmp_path, Load(tmp_path, CONTEXT_TOKENS, len(texts), "llamadeck"))
    steps: Any = engine.steps
    most = EXPERT_CHUNK_TOKENS[0] if "num_experts" in FAMILIES[family] else LARGE_CHUNK_TOKENS[0]
    assert engine.chunk_tokens == steps.pass_sizes[-1] == most
    memory = engine.facts.memory
    assert memory is not None and 0 < memory.peak_bytes <= memory.plan.allocated
    for slot, text in enumerate(texts):
        steps.reset_slot(slot, Sampling(temperature=0.0), 1, text)
    begin = len(texts[0]) - min(2600, most)
    chunks = [PromptChunk(0, texts[0][:begin], 0, False), PromptChunk(1, texts[1], 0, True)]
    passes = [[one] for one in chunks] if steps.has_states else [chunks]
    read = [steps.prefill_chunks(one) for one in passes]
    (second,) = read[-1].wait()
    (first,) = steps.prefill(0, texts[0][begin:], begin, True).wait()
    texts = [[*texts[0], first], [*texts[1], second]]
    steps.decode([0, 1]).wait()
    step = next(step for step in steps._decode_graphs if step.num_rows >= len(texts))
    got = step.logits[: len(texts)].float().cpu()
    engines.restore_rotations()
    for text, logits in zip(texts, got, strict=True):
        wanted = reference(input_ids=torch.tensor([text]), use_cache=False).logits[0]
        # The token after the prompt is the likeliest, or nearly.
        assert wanted[-2].max() - wanted[-2][text[-1]] <= 2 * TOLERANCE * wanted[-2].std()
        assert (logits - wanted[-1]).abs().max() < TOLERANCE * wanted[-1].std()
