"""On a GPU: Gated DeltaNet layers from their files to captured steps. Run with `pytest -m gpu` on a GPU host.

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
from core.worker.decode.delta_rule import FusedDeltaNet
from core.worker.decode.fused_attention import FusedAttention
from core.worker.decode.fused_decoder_layer import FusedDecoderLayer
from core.worker.decode.prompt_chunk import PromptChunk
from tests.support.family_checkpoints import VOCABULARY, make_family_checkpoint
from tests.support.gpu_engines import Engines

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
GREEDY = Sampling(temperature=0.0)
CONTEXT_TOKENS = 512
# Of the logits' spread: half precision rounds each product's result, and what a chunk's states are multiplied with.
TOLERANCE = 0.03
LENGTHS = (5, 130, 300)
SIZES: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "full_attention_interval": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": CONTEXT_TOKENS,
    "vocab_size": VOCABULARY,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_5_text": {"model_type": "qwen3_5_text", **SIZES},
    "qwen3_next": {"model_type": "qwen3_next", **SIZES, "num_experts": 0},
}


def logits_of(steps: Any, slots: list[int]) -> torch.Tensor:
    """The logits of the next step of `slots`."""
    steps.decode(slots).wait()
    step = next(step for step in steps._decode_graphs if step.num_rows >= len(slots))
    logits: torch.Tensor = step.logits[: len(slots)].float().cpu()
    return logits


@pytest.mark.parametrize("is_quantized", [True, False], ids=["4 bit", "16 bit mixers"])
@pytest.mark.parametrize("family", FAMILIES)
def test_recurrent_layers_compute_what_their_class_does(
    tmp_path: Path, family: str, is_quantized: bool, engines: Engines
) -> None:
    """As the community quantizes them, and as Qwen does; several chats at once, and one that goes on from a part of its
    text."""

    def is_packed(name: str) -> bool:
        return "mlp" in name or (is_quantized and not name.endswith(("in_proj_a", "in_proj_b", "in_proj_ba")))

    reference = make_family_checkpoint(tmp_path, FAMILIES[family], is_quantized=is_packed)
    texts = [[random.Random(slot).randrange(3, 380) for _ in range(length)] for slot, length in enumerate(LENGTHS)]
    engine = engines.open(tmp_path, Load(tmp_path, CONTEXT_TOKENS, len(texts), "llamadeck"))
    steps: Any = engine.steps
    layers = [one for one in steps._model._model.modules() if isinstance(one, FusedDecoderLayer)]
    assert [type(one._mixer) for one in layers] == [FusedDeltaNet, FusedAttention] * 2
    memory = engine.facts.memory
    assert memory is not None and 0 < memory.peak_bytes <= memory.plan.allocated

    def read(slot: int, begin: int, kept_at: int = 0) -> None:
        steps.reset_slot(slot, GREEDY, 1, texts[slot])
        chunk = PromptChunk(slot, texts[slot][begin:], begin, True, kept_at)
        texts[slot] = texts[slot] + steps.prefill_chunks([chunk]).wait()

    assert steps.keeps_states
    for slot, kept_at in enumerate((0, 64, 256)):
        read(slot, 0, kept_at)
    first = logits_of(steps, list(range(len(texts))))
    kept = texts[2]
    # The question is another one from some place on, behind what is kept of the text.
    texts[2] = [*kept[:-1], 7, 8, 9]
    begin = steps.reusable_tokens(2, len(kept) - 1)
    read(2, begin)
    again = logits_of(steps, [2])
    # And now within the prompt, behind what the first pass kept on its way.
    other, texts[2] = texts[2], [*kept[:270], 9, 8, 7]
    begin = steps.reusable_tokens(2, 270)
    assert begin == 256
    read(2, begin)
    within = logits_of(steps, [2])
    engines.restore_rotations()
    told = [*zip((texts[0], texts[1], kept), first, strict=True), (other, again[0]), (texts[2], within[0])]
    for text, got in told:
        wanted = reference(input_ids=torch.tensor([text]), use_cache=False).logits[0]
        # The token after the prompt is the likeliest, or nearly.
        chosen = wanted[-2][text[-1]]
        assert wanted[-2].max() - chosen <= 2 * TOLERANCE * wanted[-2].std()
        assert (got - wanted[-1]).abs().max() < TOLERANCE * wanted[-1].std()
