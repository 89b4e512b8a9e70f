"""On a GPU: mixtures of experts from their files to captured steps. Run with `pytest -m gpu` on a GPU host.

Held against transformers' own float32 model of the same numbers, as tests/worker/test_gpu_steps.py does.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from core.engine.protocol import Load
from core.engine.sampling_params import Sampling
from core.worker.decode.fused_decoder_layer import FusedDecoderLayer
from core.worker.decode.fused_experts import FusedExperts
from tests.support.checkpoints import Recipe
from tests.support.family_checkpoints import VOCABULARY, make_family_checkpoint
from tests.support.gpu_engines import Engines

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
GREEDY = Sampling(temperature=0.0)
CONTEXT_TOKENS = 512
# Of the logits' spread: half precision rounds each product's result.
TOLERANCE = 0.03
# Few rows for each expert, and many; a token alone is decoded after each.
LENGTHS = (5, 130, 300)
SIZES: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": CONTEXT_TOKENS,
    "vocab_size": VOCABULARY,
    "num_experts_per_tok": 2,
}
SMALL: dict[str, Any] = {"num_experts": 8, "moe_intermediate_size": 128, **SIZES}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"model_type": "qwen3_moe", **SMALL, "norm_topk_prob": True},
    "qwen2_moe": {"model_type": "qwen2_moe", **SMALL, "shared_expert_intermediate_size": 256},
    "mixtral": {"model_type": "mixtral", **SIZES, "num_local_experts": 4, "sliding_window": None},
    # Its router is no rule of our kernel's: it stays its class's own, within captured steps.
    "glm4_moe": {
        "model_type": "glm4_moe",
        **SIZES,
        "n_routed_experts": 8,
        "moe_intermediate_size": 128,
        "n_group": 4,
        "topk_group": 2,
        "n_shared_experts": 1,
        "first_k_dense_replace": 0,
        "routed_scaling_factor": 1.5,
    },
}


def usual(name: str) -> Recipe:
    return Recipe(group_size=128)


def in_other_orders(name: str) -> Recipe:
    return Recipe(group_size=64, act_order=True, one_order=True, symmetric=False)


def partly_finer(name: str) -> Recipe:
    return Recipe(bits=8 if ".experts.1." in name else 4, group_size=128)


def logits_of(steps: Any, slots: list[int]) -> torch.Tensor:
    """The logits of the next step of `slots`."""
    steps.decode(slots).wait()
    step = next(step for step in steps._decode_graphs if step.num_rows >= len(slots))
    logits: torch.Tensor = step.logits[: len(slots)].float().cpu()
    return logits


@pytest.mark.parametrize(
    ("family", "recipe_of"),
    [("qwen3_moe", usual), ("qwen3_moe", in_other_orders), ("qwen3_moe", partly_finer), ("qwen2_moe", usual),
     ("mixtral", usual), ("glm4_moe", usual)],
)  # fmt: skip
def test_a_mixture_of_experts_computes_what_its_class_does(
    tmp_path: Path, family: str, recipe_of: Callable[[str], Recipe], engines: Engines
) -> None:
    reference = make_family_checkpoint(tmp_path, FAMILIES[family], recipe_of=recipe_of)
    texts = [[random.Random(slot).randrange(3, 380) for _ in range(length)] for slot, length in enumerate(LENGTHS)]
    # Experts of several kinds run one after the other, in steps that no graph holds.
    command = Load(tmp_path, CONTEXT_TOKENS, len(texts), "llamadeck")
    engine = engines.open(tmp_path, command, is_captured=recipe_of is not partly_finer)
    steps: Any = engine.steps
    memory = engine.facts.memory
    assert memory is not None and 0 < memory.peak_bytes <= memory.plan.allocated
    for slot, text in enumerate(texts):
        steps.reset_slot(slot, GREEDY, 1, text)
        texts[slot] = text + steps.prefill(slot, text, 0, True).wait()
    got = logits_of(steps, list(range(len(texts))))
    if engine.facts.captured:
        layers = [one for one in steps._model._model.modules() if isinstance(one, FusedDecoderLayer)]
        has_own_router = "n_group" in FAMILIES[family]
        assert [isinstance(one._mlp, FusedExperts) for one in layers] == [not has_own_router] * len(layers)
        assert len(layers) == SIZES["num_hidden_layers"]
    if engine.facts.captured and not has_own_router:
        # A chat alone: its logits have the same bits.
        steps.reset_slot(1, GREEDY, 1, texts[1][:-1])
        steps.prefill(1, texts[1][:-1], 0, True).wait()
        steps.tokens[1] = texts[1][-1]
        assert torch.equal(logits_of(steps, [1])[0], got[1])
    engines.restore_rotations()
    for slot, text in enumerate(texts):
        wanted = reference(input_ids=torch.tensor([text]), use_cache=False).logits[0]
        # The token after the prompt is the likeliest, or nearly.
        chosen = wanted[-2][text[-1]]
        assert wanted[-2].max() - chosen <= 2 * TOLERANCE * wanted[-2].std()
        assert (got[slot] - wanted[-1]).abs().max() < TOLERANCE * wanted[-1].std()
