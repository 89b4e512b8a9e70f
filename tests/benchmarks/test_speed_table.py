"""The speed table: what is asked of the engine and of vLLM, and what stands in the cells."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from benchmarks import vllm_peer
from benchmarks.measuring import Decoded, Extent, Unable, bytes_a_token
from benchmarks.memory_ladder import MODELS
from benchmarks.prompts import Prompts
from benchmarks.random_model import SHAPES, Quantization, make_random_model
from benchmarks.speed_table import CASES, Row, add_vllm, measure, table
from core.checkpoint.checkpoint import Checkpoint, read_checkpoint
from tests.support.checkpoints import Recipe, make_checkpoint

EXTENT = Extent({512: 2}, (1, 8), prompt_tokens=64, new_tokens=32, rounds=2)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    make_checkpoint(tmp_path / "tiny", Recipe(context_tokens=600))
    return read_checkpoint(tmp_path / "tiny")


class FakeEngine:
    """Writes 100 tokens a second in each chat, and reads a token in a millisecond."""

    max_chats = 0

    def __init__(self, prompts: Prompts) -> None:
        self.loads: list[tuple[int, int]] = []
        self.is_closed = False

    def load(self, folder: Path, context_tokens: int, num_chats: int, kernel: str | None = None) -> float:
        self.loads.append((context_tokens, num_chats))
        self.max_chats = num_chats
        return 1.0

    def first_token_s(self, num_tokens: int) -> float:
        return num_tokens / 1000

    def decode(self, num_chats: int, prompt_tokens: int, new_tokens: int) -> Decoded:
        return Decoded(100.0 * num_chats, num_chats * new_tokens, True)

    def close(self) -> None:
        self.is_closed = True


def test_each_model_of_the_table_and_of_the_ladder_has_a_shape() -> None:
    assert {shape for shape, *_ in [*CASES.values(), *MODELS.values()]} <= set(SHAPES)


def test_our_engine_is_loaded_for_one_chat_and_for_the_most(checkpoint: Checkpoint) -> None:
    engines: list[FakeEngine] = []

    def make_engine(prompts: Prompts) -> FakeEngine:
        engines.append(FakeEngine(prompts))
        return engines[0]

    row = measure("tiny", checkpoint, 1e9, make_engine, EXTENT)
    assert engines[0].loads == [(528, 1), (112, 8)] and engines[0].is_closed
    assert row.ceiling == 1e9 / bytes_a_token(checkpoint)
    assert [len(row.ours.first_token_s[512]), len(row.ours.decoded[1]), len(row.ours.decoded[8])] == [2, 2, 2]


def test_the_table_has_both_engines_and_the_share_of_the_ceiling() -> None:
    row, missing = Row("a model", 2_000_000_000, 400.0), Row("another", 1_000_000_000, 800.0)
    row.ours.decoded, row.ours.first_token_s = (
        {1: [Decoded(200.0, 64, True)], 8: [Decoded(900.4, 64, True)]},
        {512: [0.02]},
    )
    row.vllm.decoded, row.vllm.first_token_s = {1: [Decoded(150.0, 64, True)]}, {512: [0.0301]}
    missing.vllm.failures.append(Unable("no room"))
    titles, _, first, second, said = table([row, missing], EXTENT).splitlines()
    assert titles == "| model | GB a token | ceiling | 1 chats | 8 chats | first of 512, ms |"
    assert first == "| a model | 2.00 | 400 | 200 (50%) / 150 | 900 / – | 20 / 30 |"
    assert second == "| another | 1.00 | 800 | – / – | – / – | – / – |" and said == "another: no room"


def test_where_vllm_is_not_to_be_had_the_table_says_why(checkpoint: Checkpoint, tmp_path: Path) -> None:
    row = Row("tiny", 1, 1.0)
    add_vllm(row, checkpoint, tmp_path / "nothing", sys.executable, EXTENT)
    assert "vllm" in str(row.vllm.failures[0])


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
