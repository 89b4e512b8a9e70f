"""On a GPU: what captured steps over the engine's own kernels compute. Run with `pytest -m gpu` on a GPU host.

Held against the matrices written out in float32: half precision rounds each product's result, so the logits of two
layers may be off by 2 % of their spread; bfloat16 by 10 %.
"""

from __future__ import annotations

import gc
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.llama import modeling_llama

from core.checkpoint.checkpoint import read_checkpoint
from core.engine.protocol import Load
from core.engine.sampling_params import Sampling
from core.worker import load as worker_load
from core.worker.load import load_engine
from core.worker.plan_load import plan_load
from tests.support.checkpoints import Recipe, make_checkpoint
from tests.support.reference import reference_logits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
GREEDY = Sampling(temperature=0.0)
CONTEXT_TOKENS, CHATS = 512, 3
# Over one segment of the attention and over several; at the border.
LENGTHS = (130, 300, 127)
SIZES: dict[str, Any] = {"hidden": 512, "intermediate": 1024, "num_heads": 8, "context_tokens": CONTEXT_TOKENS}
RECIPES = {
    "group 128": Recipe(group_size=128, num_kv_heads=8, **SIZES),
    "group 64, shared heads": Recipe(group_size=64, num_kv_heads=2, **SIZES),
    "group 32, one key for all": Recipe(group_size=32, num_kv_heads=1, **SIZES),
    "no groups": Recipe(group_size=-1, num_kv_heads=2, **SIZES),
    "asymmetric": Recipe(group_size=128, num_kv_heads=2, symmetric=False, **SIZES),
    "act-order": Recipe(group_size=128, num_kv_heads=2, act_order=True, one_order=True, **SIZES),
    "act-order, each its own": Recipe(group_size=128, num_kv_heads=2, act_order=True, **SIZES),
    "8 bit": Recipe(bits=8, group_size=128, num_kv_heads=2, **SIZES),
    "8 bit, asymmetric, act-order": Recipe(
        bits=8, group_size=32, num_kv_heads=2, symmetric=False, act_order=True, one_order=True, **SIZES
    ),
    "larger heads": Recipe(group_size=128, num_kv_heads=2, **SIZES | {"num_heads": 4}),
}
ROTATION = modeling_llama.apply_rotary_pos_emb
TOLERANCES = {"float16": 0.02, "bfloat16": 0.1}


def prompt(slot: int) -> list[int]:
    return [random.Random(slot).randrange(3, 380) for _ in range(LENGTHS[slot])]


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    """An engine has its process to itself; here one follows another, and other tests come after."""
    gc.collect()
    torch.cuda.empty_cache()
    with torch.inference_mode():
        yield
    modeling_llama.apply_rotary_pos_emb = ROTATION
    torch.cuda.set_stream(torch.cuda.default_stream())
    torch.cuda.set_per_process_memory_fraction(1.0)


def open_steps(folder: Path, chats: int = CHATS) -> Any:
    engine = load_engine(read_checkpoint(folder), Load(folder, CONTEXT_TOKENS, chats, "llamadeck"), lambda *_: None)
    assert engine.steps.runs_ahead and engine.facts.kernel == "llamadeck"
    return engine.steps


def prefill_all(steps: Any) -> list[int]:
    """Prefill each slot's prompt; the tokens that were sampled."""
    first = []
    for slot in range(CHATS):
        tokens = prompt(slot)
        steps.reset_slot(slot, GREEDY, 1, tokens)
        first += steps.prefill(slot, tokens, 0, True).wait()
    return first


def logits_of(steps: Any, slots: list[int]) -> torch.Tensor:
    """The logits of the next step of `slots`."""
    steps.decode(slots).wait()
    step = next(step for step in steps._decode_graphs if step.num_rows >= len(slots))
    logits: torch.Tensor = step.logits[: len(slots)].clone()
    return logits


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_a_captured_step_computes_the_model(
    tmp_path: Path, recipe: Recipe, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = make_checkpoint(tmp_path, recipe)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"torch_dtype": dtype}))
    steps = open_steps(tmp_path)
    first = prefill_all(steps)
    got = logits_of(steps, list(range(CHATS))).float().cpu()
    # The engine has put its own rotation there, for this process.
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", ROTATION)
    for slot in range(CHATS):
        wanted = reference_logits(tmp_path, dense, torch.tensor([[*prompt(slot), first[slot]]]))[0]
        assert (got[slot] - wanted).abs().max() < TOLERANCES[dtype] * wanted.std()


@pytest.mark.parametrize("name", ["group 64, shared heads", "8 bit, asymmetric, act-order"])
def test_without_room_for_graphs_the_same_steps_run_kernel_by_kernel(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their plan had torch's attention in it, which took more memory with long contexts than the graphs do."""
    make_checkpoint(tmp_path, RECIPES[name])

    def written() -> list[int]:
        steps = open_steps(tmp_path)
        return [*prefill_all(steps), *(token for _ in range(8) for token in steps.decode(range(CHATS)).wait())]

    wanted = written()
    # The next load has the plan's memory and no more.
    gc.collect()
    torch.cuda.empty_cache()
    modeling_llama.apply_rotary_pos_emb = ROTATION
    monkeypatch.setattr(worker_load, "plan_load", lambda *how: replace(plan_load(*how), is_captured=False))
    assert written() == wanted


@pytest.mark.parametrize("chats", [1, 2])
def test_a_model_for_one_or_two_chats_is_captured(tmp_path: Path, chats: int) -> None:
    """What is told of it in tests/worker/test_cuda_graphs.py."""
    make_checkpoint(tmp_path, RECIPES["group 128"])
    steps = open_steps(tmp_path, chats)
    steps.reset_slot(0, GREEDY, 1, prompt(0))
    together = [*steps.prefill(0, prompt(0), 0, True).wait(), *steps.decode([0]).wait()]
    steps.reset_slot(0, GREEDY, 1, prompt(0))
    assert together == [*steps.prefill(0, prompt(0), 0, True).wait(), *steps.decode([0]).wait()]


@pytest.mark.parametrize("name", ["group 64, shared heads", "act-order", "8 bit"])
def test_what_comes_out_for_a_chat_does_not_depend_on_what_runs_beside_it(tmp_path: Path, name: str) -> None:
    """To the last bit, so that not even a tie is sampled otherwise."""
    make_checkpoint(tmp_path, RECIPES[name])
    steps = open_steps(tmp_path)
    prefill_all(steps)
    together = [logits_of(steps, [0, 1, 2]) for _ in range(3)]
    for slot in range(CHATS):
        prefill_all(steps)
        for step in range(3):
            assert torch.equal(logits_of(steps, [slot])[0], together[step][slot])
