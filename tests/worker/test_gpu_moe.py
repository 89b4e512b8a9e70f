"""On a GPU: mixtures of experts from their files to captured steps. Run with `pytest -m gpu` on a GPU host.

Held against transformers' own float32 model of the same numbers, as tests/worker/test_gpu_steps.py does.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.mixtral import modeling_mixtral
from transformers.models.qwen2_moe import modeling_qwen2_moe
from transformers.models.qwen3_moe import modeling_qwen3_moe

from core.checkpoint.checkpoint import read_checkpoint
from core.engine.protocol import Load
from core.engine.sampling_params import Sampling
from core.worker.load import load_engine
from tests.support.checkpoints import Recipe
from tests.support.family_checkpoints import VOCABULARY, make_family_checkpoint

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
ROTATIONS = {source: source.apply_rotary_pos_emb for source in (modeling_mixtral, modeling_qwen2_moe,
                                                                modeling_qwen3_moe)}  # fmt: skip
SIZES: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": CONTEXT_TOKENS,
    "vocab_size": VOCABULARY,
    "num_experts_per_tok": 3,
}
SMALL: dict[str, Any] = {"num_experts": 16, "moe_intermediate_size": 256, **SIZES}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"model_type": "qwen3_moe", **SMALL, "norm_topk_prob": True},
    "qwen2_moe": {"model_type": "qwen2_moe", **SMALL, "shared_expert_intermediate_size": 512},
    "mixtral": {"model_type": "mixtral", **SIZES, "num_local_experts": 8, "sliding_window": None},
}


def usual(name: str) -> Recipe:
    return Recipe(group_size=128)


def in_other_orders(name: str) -> Recipe:
    return Recipe(group_size=64, act_order=True, one_order=True, symmetric=False)


def partly_finer(name: str) -> Recipe:
    return Recipe(bits=8 if ".experts.1." in name else 4, group_size=128)


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    """An engine has its process to itself; here one follows another, and other tests come after."""
    gc.collect()
    torch.cuda.empty_cache()
    with torch.inference_mode():
        yield
    for source, rotation in ROTATIONS.items():
        source.apply_rotary_pos_emb = rotation
    torch.cuda.set_stream(torch.cuda.default_stream())
    torch.cuda.set_per_process_memory_fraction(1.0)


def logits_of(steps: Any, slots: list[int]) -> torch.Tensor:
    """The logits of the next step of `slots`."""
    steps.decode(slots).wait()
    step = next(step for step in steps._decode_graphs if step.num_rows >= len(slots))
    logits: torch.Tensor = step.logits[: len(slots)].float().cpu()
    return logits


@pytest.mark.parametrize(
    ("family", "recipe_of"),
    [("qwen3_moe", usual), ("qwen3_moe", in_other_orders), ("qwen3_moe", partly_finer), ("qwen2_moe", usual),
     ("mixtral", usual)],
)  # fmt: skip
def test_a_mixture_of_experts_computes_what_its_class_does(
    tmp_path: Path, family: str, recipe_of: Callable[[str], Recipe]
) -> None:
    reference = make_family_checkpoint(tmp_path, FAMILIES[family], recipe_of=recipe_of)
    texts = [[random.Random(slot).randrange(3, 380) for _ in range(length)] for slot, length in enumerate(LENGTHS)]
    checkpoint = read_checkpoint(tmp_path)
    engine = load_engine(checkpoint, Load(tmp_path, CONTEXT_TOKENS, len(texts), "llamadeck"), lambda *_: None)
    steps: Any = engine.steps
    # Experts of several kinds run one after the other, in steps that no graph holds.
    assert engine.facts.captured == (recipe_of is not partly_finer)
    memory = engine.facts.memory
    assert memory is not None and 0 < memory.peak_bytes <= memory.plan.allocated
    for slot, text in enumerate(texts):
        steps.reset_slot(slot, GREEDY, 1, text)
        texts[slot] = text + steps.prefill(slot, text, 0, True).wait()
    got = logits_of(steps, list(range(len(texts))))
    for source, rotation in ROTATIONS.items():
        source.apply_rotary_pos_emb = rotation
    for slot, text in enumerate(texts):
        wanted = reference(input_ids=torch.tensor([text]), use_cache=False).logits[0]
        # The token after the prompt is the likeliest, or nearly.
        chosen = wanted[-2][text[-1]]
        assert wanted[-2].max() - chosen <= 2 * TOLERANCE * wanted[-2].std()
        assert (got[slot] - wanted[-1]).abs().max() < TOLERANCE * wanted[-1].std()
