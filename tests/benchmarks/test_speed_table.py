"""The speed table: what is asked of the engine and of vLLM, and what is told of it."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from benchmarks import speed_table, vllm_peer
from benchmarks.deadline import Deadline
from benchmarks.figures import VLLM, Figures
from benchmarks.measuring import Decoded, Unable, bytes_a_token
from benchmarks.memory_ladder import MODELS as LADDER_MODELS
from benchmarks.prompts import Prompts
from benchmarks.random_model import SHAPES, Quantization, make_random_model
from benchmarks.speed_table import (
    CASES,
    MODELS,
    Case,
    Cell,
    Row,
    Vllm,
    add_ceiling,
    add_share,
    fill_ours,
    fill_vllm,
)
from core.checkpoint.checkpoint import Checkpoint, read_checkpoint
from core.common.errors import EngineError
from core.engine.request_options import AdapterUse
from core.memory.adapter_room import NO_ROOM
from core.memory.cache_choice import CacheChoice
from core.memory.fit import MAX_CHATS
from tests.support.checkpoints import Recipe, make_checkpoint
from tests.support.speed_engine import FakeEngine

CELLS = (Cell(1, rounds=2), Cell(8, 64), Cell(1, new_tokens=32), Cell(8, 64, 32, rounds=2))
LONG = Deadline(time.monotonic() + 24 * 3600)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    make_checkpoint(tmp_path / "tiny", Recipe(context_tokens=600))
    return read_checkpoint(tmp_path / "tiny")


def test_each_model_of_the_table_and_of_the_ladder_has_a_shape() -> None:
    assert {shape for shape, *_ in [*MODELS.values(), *LADDER_MODELS.values()]} <= set(SHAPES)


def test_each_case_is_one_that_the_engine_takes() -> None:
    for case in CASES.values():
        limit = SHAPES[MODELS[case.model][0]]
        limit = limit.get("text_config", limit)
        assert case.context_tokens <= limit["max_position_embeddings"] and case.num_chats <= MAX_CHATS


def test_our_engine_is_loaded_once_with_room_for_all(checkpoint: Checkpoint) -> None:
    engines: list[FakeEngine] = []

    def make_engine(prompts: Prompts) -> FakeEngine:
        engines.append(FakeEngine(prompts))
        return engines[0]

    row, figures = Row("tiny", checkpoint, Case("tiny", CELLS, 8)), Figures("Speed")
    add_ceiling(row, 1e9, figures)
    fill_ours(row, make_engine, figures, LONG)
    add_share(row, figures)
    assert engines[0].loads == [(560, 8, NO_ROOM, CacheChoice(bits=8))] and engines[0].is_closed
    ceiling = float(f"{1e9 / bytes_a_token(checkpoint):.6g}")
    found = [(one.column, one.value) for one in figures.found]
    assert found[1:] == [
        ("ceiling of one chat", ceiling),
        ("load, s", 1.0),
        ("first of 512, ms", 512.0),
        ("first of 512, ms", 512.0),
        *[("first of 64, 8 at once, ms", 512.0)] * 3,
        *[("1 chat, tokens/s", 100.0)] * 3,
        *[("8 chats after 64, tokens/s", 800.0)] * 2,
        ("% of the ceiling", pytest.approx(100 * 100 / ceiling, rel=1e-5)),
    ]


class RefusingEngine(FakeEngine):
    def load(self, folder: Path, *arguments: Any, **more: Any) -> float:
        raise EngineError("not_finite", model=folder.name)


def test_a_model_that_cannot_be_loaded_leaves_its_reason(checkpoint: Checkpoint) -> None:
    figures = Figures("Speed")
    fill_ours(Row("tiny", checkpoint, Case("tiny", CELLS)), RefusingEngine, figures, LONG)
    (failure,) = figures.found
    assert failure.column == "load" and "no usable numbers" in failure.said


class FailingEngine(FakeEngine):
    def first_tokens_s(self, num_chats: int, num_tokens: int) -> float:
        raise Unable("no first tokens")


def test_a_figure_that_cannot_be_had_leaves_the_others_and_time_that_is_over_none(checkpoint: Checkpoint) -> None:
    figures, now = Figures("Speed"), 0.0
    row = Row("tiny", checkpoint, Case("tiny", CELLS))
    fill_ours(row, FailingEngine, figures, LONG)
    assert [one.said for one in figures.failures] == ["no first tokens"] * 2
    assert figures.median("tiny", "8 chats after 64, tokens/s") == 800.0

    class SlowEngine(FakeEngine):
        def decode(self, *arguments: int) -> Decoded:
            nonlocal now
            now = 101.0
            return super().decode(*arguments)

    figures = Figures("Speed")
    fill_ours(row, SlowEngine, figures, Deadline(100.0, lambda: now))
    assert [(one.column, one.value) for one in figures.found][-3:] == [
        ("1 chat, tokens/s", 100.0),
        ("1 chat, tokens/s", None),
        ("8 chats after 64, tokens/s", None),
    ]


def test_where_vllm_is_not_to_be_had_the_table_says_why(checkpoint: Checkpoint, tmp_path: Path) -> None:
    figures = Figures("Speed")
    fill_vllm(Row("tiny", checkpoint, Case("tiny", CELLS)), Vllm(tmp_path / "nothing"), figures, LONG)
    (failure,) = figures.found
    assert failure.engine == VLLM and "vllm" in failure.said


def test_vllm_answers_in_a_process_of_its_own(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the real pipe, with a stand-in for vLLM's class."""
    monkeypatch.setattr(speed_table, "VLLM_SETTINGS", {})
    site = tmp_path / "site"
    (site / "vllm" / "lora").mkdir(parents=True)
    (site / "vllm" / "__init__.py").write_text(STAND_IN)
    (site / "vllm" / "lora" / "__init__.py").touch()
    (site / "vllm" / "lora" / "request.py").write_text("def LoRARequest(*one): return one\n")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"r": 8}')
    row, figures = Row("tiny", checkpoint, Case("tiny", CELLS, 8, 2)), Figures("Speed")
    row = replace(row, adapters=[AdapterUse("one", tmp_path / "adapter")], rank=8)
    fill_vllm(row, Vllm(site), figures, LONG)
    assert not figures.failures and {one.engine for one in figures.found} == {VLLM}
    assert {one.column for one in figures.found} == {cell.column for cell in CELLS}


STAND_IN = """
from types import SimpleNamespace as SamplingParams

class LLM:
    def __init__(self, **settings):
        assert (settings["tensor_parallel_size"], settings["kv_cache_dtype"], settings["max_num_seqs"]) == (2, "fp8", 8)
        assert settings["max_lora_rank"] == 8
        print("a word on standard output")

    def generate(self, prompts, sampling, use_tqdm, lora_request):
        tokens = SamplingParams(token_ids=[7] * sampling.max_tokens)
        return [SamplingParams(outputs=[tokens])] * len(prompts)
"""


def test_vllm_is_asked_for_the_same_and_its_first_token_is_a_run_of_its_own(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    class LLM:
        def __init__(self, **settings: Any) -> None:
            assert settings["model"] == str(checkpoint.folder) and "language_model_only" not in settings

        def generate(self, prompts: list[dict[str, Any]], sampling: Any, use_tqdm: bool) -> list[Any]:
            asked.append((len(prompts), sampling.max_tokens))
            tokens = SimpleNamespace(token_ids=[7] * sampling.max_tokens)
            return [SimpleNamespace(outputs=[tokens])] * len(prompts)

    stand_in = ModuleType("vllm")
    stand_in.LLM, stand_in.SamplingParams = LLM, SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    answer = vllm_peer.start(str(checkpoint.folder), 600)
    asked.clear()
    told = answer([[1, 2, 3], [4, 5, 6]], 10)
    assert asked == [(2, 1), (2, 10)] and told["num_tokens"] == 20
    assert answer([[1, 2, 3]], 1)["decode_s"] == 0.0 and asked[2:] == [(1, 1)]


def test_a_token_reads_the_experts_that_it_goes_through(tmp_path: Path) -> None:
    small = {"hidden_size": 64, "moe_intermediate_size": 64, "num_experts": 8, "num_experts_per_tok": 2, "head_dim": 16,
             "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512}  # fmt: skip
    counts = []
    for chosen in (2, 8):
        config = SHAPES["Qwen3-30B-A3B"] | small | {"num_experts_per_tok": chosen}
        make_random_model(tmp_path / str(chosen), config, Quantization(group_size=32))
        counts.append(bytes_a_token(read_checkpoint(tmp_path / str(chosen))))
    # Codes, scales and zeros of 2 layers of 6 experts with 3 matrices of 64 * 64 each.
    one = 64 * 64 // 2 + 2 * 64 * 2 + 2 * 64 // 2
    assert counts[1] - counts[0] == 2 * 6 * 3 * one
