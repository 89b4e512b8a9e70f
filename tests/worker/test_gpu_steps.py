"""On a GPU: what captured steps over the engine's own kernels compute. Run with `pytest -m gpu` on a GPU host.

Held against the matrices written out in float32: half precision rounds each product's result, so the logits of two
layers may be off by 2 % of their spread; bfloat16 by 10 %.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from core.engine.protocol import Load
from core.engine.sampling_params import Sampling
from core.memory import load_ways
from core.memory.cache_choice import EVERY_CHAT_FULL, CacheChoice
from core.memory.fit import MAX_CHATS
from core.memory.step_sizes import LEAN_SIZES
from core.worker import load as worker_load
from core.worker.decode.prompt_chunk import PromptChunk
from core.worker.kernels.packed_prefill import MIN_STEP_ROWS
from core.worker.plan_load import plan_load
from tests.support.checkpoints import Recipe, make_checkpoint
from tests.support.gpu_engines import Engines
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
# Where each chat is run alone as well.
ALONE = ("group 64, shared heads", "act-order", "8 bit")
# What is other with it than with float16: the kernels of matrices of each width, with zeros and without.
IN_BFLOAT16 = ("group 128", "8 bit, asymmetric, act-order")
TOLERANCES = {"float16": 0.02, "bfloat16": 0.1}


def prompt(slot: int) -> list[int]:
    return [random.Random(slot).randrange(3, 380) for _ in range(LENGTHS[slot])]


def open_steps(
    engines: Engines, folder: Path, chats: int = CHATS, is_captured: bool = True, cache: CacheChoice = EVERY_CHAT_FULL
) -> Any:
    load = Load(folder, CONTEXT_TOKENS, chats, "llamadeck", cache=cache)
    engine = engines.open(folder, load, is_captured)
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


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "float16") for name in RECIPES), *((name, "bfloat16") for name in IN_BFLOAT16)]
)
def test_a_captured_step_computes_the_model(tmp_path: Path, name: str, dtype: str, engines: Engines) -> None:
    """For a chat the same to the last bit whatever runs beside it, so that not even a tie is sampled otherwise."""
    dense = make_checkpoint(tmp_path, RECIPES[name])
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"torch_dtype": dtype}))
    steps = open_steps(engines, tmp_path)
    first = prefill_all(steps)
    together = [logits_of(steps, list(range(CHATS))) for _ in range(3)]
    for slot in range(CHATS) if name in ALONE else ():
        prefill_all(steps)
        for step in range(3):
            assert torch.equal(logits_of(steps, [slot])[0], together[step][slot])
    engines.restore_rotations()
    got = together[0].float().cpu()
    for slot in range(CHATS):
        wanted = reference_logits(tmp_path, dense, torch.tensor([[*prompt(slot), first[slot]]]))[0]
        assert (got[slot] - wanted).abs().max() < TOLERANCES[dtype] * wanted.std()


@pytest.mark.parametrize("name", ["group 64, shared heads", "larger heads"])
def test_keys_and_values_in_8_bit_change_little(engines: Engines, tmp_path: Path, name: str) -> None:
    dense = make_checkpoint(tmp_path, RECIPES[name])
    steps = open_steps(engines, tmp_path, cache=CacheChoice(bits=8))
    first = prefill_all(steps)
    got = logits_of(steps, list(range(CHATS))).float().cpu()
    engines.restore_rotations()
    for slot in range(CHATS):
        wanted = reference_logits(tmp_path, dense, torch.tensor([[*prompt(slot), first[slot]]]))[0]
        assert (got[slot] - wanted).abs().max() < 2 * TOLERANCES["float16"] * wanted.std()


def test_each_of_as_many_chats_as_there_may_be_is_computed_as_alone(engines: Engines, tmp_path: Path) -> None:
    """Of few to the last bit, of many within rounding, and within what is planned for so many."""
    dense = make_checkpoint(tmp_path, RECIPES["8 bit, asymmetric, act-order"])
    engine = engines.open(tmp_path, Load(tmp_path, 64, MAX_CHATS, "llamadeck"))
    steps: Any = engine.steps
    memory = engine.facts.memory
    assert memory is not None and 0 < memory.peak_bytes <= memory.plan.allocated
    texts = [[*prompt(0)[: 3 + slot % 30], slot + 3] for slot in range(MAX_CHATS)]

    def read(slots: list[int]) -> list[int]:
        for slot in slots:
            steps.reset_slot(slot, GREEDY, 1, texts[slot])
        return [token for slot in slots for token in steps.prefill(slot, texts[slot], 0, True).wait()]

    everyone = list(range(MAX_CHATS))
    first, together = read(everyone), logits_of(steps, everyone)
    few = everyone[: MIN_STEP_ROWS - 1]
    read(few)
    beside_few = logits_of(steps, few)
    for slot in (0, 5, few[-1]):
        read([slot])
        assert torch.equal(logits_of(steps, [slot])[0], beside_few[slot])
    for some in (few, everyone[:32], everyone[:65], everyone[-64:]):
        read(some)
        far = logits_of(steps, some).float() - together[some].float()
        assert far.abs().max() < TOLERANCES["float16"] * together.float().std()
    engines.restore_rotations()
    for slot in (0, 40, 70, MAX_CHATS - 1):
        wanted = reference_logits(tmp_path, dense, torch.tensor([[*texts[slot], first[slot]]]))[0]
        assert (together[slot].float().cpu() - wanted).abs().max() < TOLERANCES["float16"] * wanted.std()


def test_where_the_pages_of_a_chat_lie_changes_nothing(engines: Engines, tmp_path: Path) -> None:
    """To the last bit, with pages of other chats between them."""
    make_checkpoint(tmp_path, RECIPES["group 64, shared heads"])
    steps = open_steps(engines, tmp_path)
    wanted = [*prefill_all(steps), *(token for _ in range(8) for token in steps.decode(range(CHATS)).wait())]
    before = logits_of(steps, [0, 1, 2])
    for slot in range(CHATS):
        steps.set_pages(slot, range(slot, steps.num_pages, CHATS))
    got = [*prefill_all(steps), *(token for _ in range(8) for token in steps.decode(range(CHATS)).wait())]
    assert got == wanted and torch.equal(logits_of(steps, [0, 1, 2]), before)


def test_without_room_for_graphs_the_same_steps_run_kernel_by_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engines: Engines
) -> None:
    """Their plan had torch's attention in it, which took more memory with long contexts than the graphs do."""
    make_checkpoint(tmp_path, RECIPES["group 64, shared heads"])

    def written(is_captured: bool) -> list[int]:
        steps = open_steps(engines, tmp_path, is_captured=is_captured)
        return [*prefill_all(steps), *(token for _ in range(8) for token in steps.decode(range(CHATS)).wait())]

    wanted = written(True)
    monkeypatch.setattr(worker_load, "plan_load", lambda *how: replace(plan_load(*how), is_captured=False))
    assert written(False) == wanted


@pytest.mark.parametrize("chats", [1, 2])
def test_a_model_for_one_or_two_chats_is_captured(tmp_path: Path, chats: int, engines: Engines) -> None:
    """What is told of it in tests/worker/test_cuda_graphs.py."""
    make_checkpoint(tmp_path, RECIPES["group 128"])
    steps = open_steps(engines, tmp_path, chats)
    steps.reset_slot(0, GREEDY, 1, prompt(0))
    together = [*steps.prefill(0, prompt(0), 0, True).wait(), *steps.decode([0]).wait()]
    steps.reset_slot(0, GREEDY, 1, prompt(0))
    assert together == [*steps.prefill(0, prompt(0), 0, True).wait(), *steps.decode([0]).wait()]


@pytest.mark.parametrize("name", ["group 64, shared heads", "8 bit, asymmetric, act-order"])
def test_tokens_that_are_verified_are_those_that_would_have_been_decoded(
    engines: Engines, tmp_path: Path, name: str
) -> None:
    """To the last bit, whether all follow that were proposed, some, or none; in a model for one chat as well."""
    make_checkpoint(tmp_path, RECIPES[name])
    steps, text, rows = open_steps(engines, tmp_path, 1), prompt(0), list[torch.Tensor]()
    assert 1.0 < steps.verify_steps < 8.0

    def begin() -> list[int]:
        steps.reset_slot(0, Sampling(temperature=1.0), 5, text)
        first: list[int] = steps.prefill(0, text, 0, True).wait()
        return first

    wanted = begin()
    for _ in range(12):
        wanted += steps.decode([0]).wait()
        rows.append(steps._decode_graphs[0].logits[0].clone())
    for num_right in (7, 3, 0):
        got = begin()
        proposed = [*wanted[1 : 1 + num_right], *[(token + 1) % 300 for token in wanted[1 + num_right : 8]]]
        got += steps.verify(0, [got[0], *proposed], len(text)).wait()
        assert len(got) == num_right + 2
        assert torch.equal(steps._verify_graphs[0].logits[: num_right + 1], torch.stack(rows[: num_right + 1]))
        while len(got) < len(wanted):
            got += steps.decode([0]).wait()
        assert got == wanted


def test_prompts_that_are_read_together_are_each_read_whole(engines: Engines, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, RECIPES["group 128"])
    steps = open_steps(engines, tmp_path)
    alone = prefill_all(steps)
    wanted = logits_of(steps, [0, 1, 2])
    for slot in range(CHATS):
        steps.reset_slot(slot, GREEDY, 1, prompt(slot))
    first = [PromptChunk(1, prompt(1)[:200], 0, False), PromptChunk(2, prompt(2), 0, True)]
    second = [PromptChunk(0, prompt(0), 0, True), PromptChunk(1, prompt(1)[200:], 200, True)]
    got = [*steps.prefill_chunks(first).wait(), *steps.prefill_chunks(second).wait()]
    assert got == [alone[2], alone[0], alone[1]]
    far = logits_of(steps, [0, 1, 2]).float() - wanted.float()
    assert far.abs().max() < TOLERANCES["float16"] * wanted.float().std()


def test_lean_steps_compute_the_model(engines: Engines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory is tight: prompts are read in passes of half as many tokens, and nothing is verified."""
    dense = make_checkpoint(tmp_path, RECIPES["group 64, shared heads"])
    monkeypatch.setattr(load_ways, "LARGE_CHUNK_TOKENS", ())
    monkeypatch.setattr(load_ways, "USUAL_SIZES", LEAN_SIZES)
    steps, first = open_steps(engines, tmp_path), list[int]()
    assert (steps.pass_sizes[-1], steps.max_verified) == LEAN_SIZES
    for slot in range(CHATS):
        tokens = prompt(slot)
        steps.reset_slot(slot, GREEDY, 1, tokens)
        for begin in range(0, len(tokens), LEAN_SIZES.chunk_tokens):
            chunk = tokens[begin : begin + LEAN_SIZES.chunk_tokens]
            pending = steps.prefill(slot, chunk, begin, begin + len(chunk) == len(tokens))
        first += pending.wait()
    got = logits_of(steps, list(range(CHATS))).float().cpu()
    engines.restore_rotations()
    for slot in range(CHATS):
        wanted = reference_logits(tmp_path, dense, torch.tensor([[*prompt(slot), first[slot]]]))[0]
        assert (got[slot] - wanted).abs().max() < TOLERANCES["float16"] * wanted.std()
