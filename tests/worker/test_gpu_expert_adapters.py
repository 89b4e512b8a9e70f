"""On a GPU: LoRA adapters of single experts, from PEFT's files to captured steps. Run with `pytest -m gpu` on a GPU
host."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from core.engine.protocol import Load
from core.engine.request_options import AdapterUse
from core.engine.sampling_params import Sampling
from core.memory.adapter_room import AdapterRoom
from core.worker.decode.fused_decoder_layer import FusedDecoderLayer
from core.worker.decode.fused_experts import FusedExperts
from core.worker.kernels.packed_prefill import MIN_STEP_ROWS
from core.worker.load import LoadedEngine
from tests.support.adapters import write_one_by_one
from tests.support.checkpoints import Recipe
from tests.support.family_checkpoints import VOCABULARY, make_family_checkpoint
from tests.support.gpu_engines import Engines
from tests.support.plain_models import make_adapter

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
GREEDY, CONTEXT_TOKENS, NUM_CHATS, RANK = Sampling(temperature=0.0), 512, 24, 16
# Of the logits' spread.
TOLERANCE = 0.03
CONFIG: dict[str, Any] = {
    "model_type": "qwen3_moe", "hidden_size": 256, "intermediate_size": 256, "moe_intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
    "max_position_embeddings": CONTEXT_TOKENS, "vocab_size": VOCABULARY, "num_experts": 8, "num_experts_per_tok": 2,
    "norm_topk_prob": True,
}  # fmt: skip
BOTH = ["experts.gate_up_proj", "experts.down_proj"]


def usual(name: str) -> Recipe:
    return Recipe(group_size=128)


def in_other_orders(name: str) -> Recipe:
    return Recipe(group_size=64, act_order=True, one_order=True, symmetric=False)


def partly_finer(name: str) -> Recipe:
    """Experts of several kinds run one after the other, in steps that no graph holds."""
    return Recipe(bits=8 if ".experts.1." in name else 4, group_size=128)


def prompt(slot: int) -> list[int]:
    """Of the first one many rows for each expert."""
    return [3 + (slot + 2) * place % 370 for place in range(300 if slot == 0 else 20 + slot)]


def next_logits(engine: LoadedEngine, slots: list[int]) -> tuple[list[int], torch.Tensor]:
    """The tokens that follow the prompts of `slots`, and the logits after them [slots, vocabulary]."""
    steps: Any = engine.steps
    first = []
    for slot in slots:
        steps.reset_slot(slot, GREEDY, 1, prompt(slot))
        first += steps.prefill(slot, prompt(slot), 0, True).wait()
    steps.decode(slots).wait()
    step = next(one for one in steps._decode_graphs if one.num_rows >= len(slots))
    return first, step.logits[: len(slots)].float().cpu()


@pytest.mark.parametrize("recipe_of", [usual, in_other_orders, partly_finer])
def test_steps_compute_each_chats_own_adapter_of_experts(
    tmp_path: Path, recipe_of: Callable[[str], Recipe], engines: Engines
) -> None:
    """Three adapters and none, in many chats at once; and of few chats alone, to the last bit."""
    folder = tmp_path / "model"
    make_family_checkpoint(folder, CONFIG, recipe_of=recipe_of).save_pretrained(tmp_path / "plain")
    adapters = [
        make_adapter(tmp_path / "plain", tmp_path / "0", r=RANK, target_parameters=BOTH, target_modules=["q_proj"]),
        make_adapter(tmp_path / "plain", tmp_path / "1", r=5, target_parameters=BOTH[1:], target_modules=[]),
    ]
    adapters.append(write_one_by_one(adapters[0], tmp_path / "2"))
    is_captured = recipe_of is not partly_finer
    load = Load(folder, CONTEXT_TOKENS, NUM_CHATS, "llamadeck", adapters=AdapterRoom(3, RANK, True))
    engine = engines.open(folder, load, is_captured=is_captured)
    memory, reader = engine.facts.memory, engine.adapters
    assert memory is not None and 0 < memory.peak_bytes <= memory.plan.allocated and reader is not None
    if is_captured:
        layers = [one for one in engine.steps._model._model.modules() if isinstance(one, FusedDecoderLayer)]  # type: ignore[attr-defined]
        assert len(layers) == 2 and all(isinstance(one._mlp, FusedExperts) for one in layers)
    read = [reader.read(AdapterUse(str(number), path)) for number, path in enumerate(adapters)]
    places = [reader.hold(one, [other.version for other in read]) for one in read]
    chosen = [None if slot % 4 == 3 else slot % 4 for slot in range(NUM_CHATS)]
    for slot, number in enumerate(chosen):
        reader.set_slot(slot, None if number is None else places[number])
    first, together = next_logits(engine, list(range(NUM_CHATS)))
    if is_captured:
        few = next_logits(engine, list(range(MIN_STEP_ROWS - 1)))[1]
        for slot in range(4):
            assert torch.equal(next_logits(engine, [slot])[1][0], few[slot]), slot
    engines.restore_rotations()
    for slot in (0, 1, 2, 3, NUM_CHATS - 4, NUM_CHATS - 1):
        model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32)
        # What is written one by one is the first one.
        number = 0 if chosen[slot] == 2 else chosen[slot]
        model = model if number is None else PeftModel.from_pretrained(model, adapters[number])
        with torch.inference_mode():
            wanted = model(torch.tensor([[*prompt(slot), first[slot]]])).logits[0, -1]
        assert (together[slot] - wanted).abs().max() < TOLERANCE * wanted.std(), slot
    assert (together[0] - together[3]).abs().max() > 3 * TOLERANCE * together[3].std()
