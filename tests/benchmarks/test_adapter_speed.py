"""What adapters cost: what is asked of the engine and of vLLM, and what is told of it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from benchmarks import vllm_peer
from benchmarks.adapter_speed import CELLS, make_adapters, measure
from benchmarks.deadline import Deadline
from benchmarks.engine import options_of
from benchmarks.figures import OURS, Figures
from benchmarks.measuring import Decoded
from benchmarks.prompts import Prompts
from benchmarks.speed_table import Case, Row, fill_ours
from core.checkpoint.adapters import read_adapter
from core.checkpoint.checkpoint import Checkpoint, read_checkpoint
from core.engine.request_options import PLAIN, AdapterUse, RequestOptions
from core.memory.adapter_room import NO_ROOM, AdapterRoom, adaptable_matrices, match_adapter
from tests.support.checkpoints import make_checkpoint
from tests.support.speed_engine import FakeEngine

LONG = Deadline(time.monotonic() + 24 * 3600)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    make_checkpoint(tmp_path / "tiny")
    return read_checkpoint(tmp_path / "tiny")


class AdaptedEngine(FakeEngine):
    """Slower with adapters."""

    def decode(self, num_chats: int, prompt_tokens: int, new_tokens: int) -> Decoded:
        return Decoded((80.0 if self.adapters else 100.0) * num_chats, num_chats * new_tokens, True)


def test_adapters_are_of_all_matrices_and_made_once(checkpoint: Checkpoint, tmp_path: Path) -> None:
    uses = make_adapters(tmp_path / "adapters", checkpoint.folder, 2, 8)
    adapter = read_adapter(uses[1].folder)
    assert set(match_adapter(adapter, checkpoint)) == set(adaptable_matrices(checkpoint)) and adapter.rank == 8
    config = json.loads((uses[1].folder / "adapter_config.json").read_text())
    assert {name.rpartition(".")[2] for name in adaptable_matrices(checkpoint)} == set(config["target_modules"])
    before = adapter.weights.stat().st_mtime_ns
    assert make_adapters(tmp_path / "adapters", checkpoint.folder, 2, 8) == uses
    assert adapter.weights.stat().st_mtime_ns == before


def test_our_engine_is_loaded_without_room_and_with_it(checkpoint: Checkpoint, tmp_path: Path) -> None:
    engines: list[AdaptedEngine] = []

    def make_engine(prompts: Prompts) -> AdaptedEngine:
        engines.append(AdaptedEngine(prompts))
        return engines[-1]

    uses = [AdapterUse(str(number), tmp_path) for number in range(4)]
    without, figures = Row("tiny", checkpoint, Case("tiny", CELLS)), Figures("Adapters")
    used = Row("tiny, adapted", checkpoint, without.case, uses, 16)
    measure(without, used, OURS, lambda row: fill_ours(row, make_engine, figures, LONG), figures)
    assert [engine.loads[0][2] for engine in engines] == [NO_ROOM, AdapterRoom(4, 16)]
    assert figures.median("tiny", "8 chats, tokens/s") == 800.0
    assert figures.median("tiny, adapted", "% of 8 chats, tokens/s without") == 80.0


def test_chats_use_adapters_in_turns() -> None:
    uses = [AdapterUse("a", Path("a")), AdapterUse("b", Path("b"))]
    assert [options_of(chat, uses).adapter for chat in range(3)] == [uses[0], uses[1], uses[0]]
    asked = RequestOptions(ignore_eos=True)
    assert options_of(1, ()) == PLAIN and options_of(1, (), asked) == asked
    assert options_of(1, uses, asked) == RequestOptions(ignore_eos=True, adapter=uses[1])


def test_vllm_is_asked_for_the_same_adapters(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[Any]] = []

    class LLM:
        def __init__(self, **settings: Any) -> None:
            assert [settings[name] for name in ("enable_lora", "max_loras", "max_lora_rank")] == [True, 2, 8]

        def generate(self, prompts: list[Any], sampling: Any, use_tqdm: bool, lora_request: list[Any]) -> list[Any]:
            asked.append(lora_request)
            tokens = SimpleNamespace(token_ids=[7] * sampling.max_tokens)
            return [SimpleNamespace(outputs=[tokens])] * len(prompts)

    stand_in, lora, request = ModuleType("vllm"), ModuleType("vllm.lora"), ModuleType("vllm.lora.request")
    stand_in.LLM, stand_in.SamplingParams = LLM, SimpleNamespace  # type: ignore[attr-defined]
    request.LoRARequest = lambda *one: one  # type: ignore[attr-defined]
    for module in (stand_in, lora, request):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    uses = make_adapters(tmp_path / "adapters", checkpoint.folder, 2, 8)
    paths = [str(use.folder) for use in uses]
    answer = vllm_peer.start(str(checkpoint.folder), 600, adapters=paths)
    asked.clear()
    answer([[1, 2], [3, 4], [5, 6]], 1)
    first, second = ("rank8-0", 1, paths[0]), ("rank8-1", 2, paths[1])
    assert asked == [[first, second, first]]
