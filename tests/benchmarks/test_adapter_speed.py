"""What adapters cost: what is asked of the engine and of vLLM, and what stands in the cells."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from benchmarks import vllm_peer
from benchmarks.adapter_speed import make_adapters, measure, measure_vllm, table
from benchmarks.engine import options_of
from benchmarks.measuring import Decoded, Extent
from benchmarks.prompts import Prompts
from core.checkpoint.adapters import read_adapter
from core.checkpoint.checkpoint import Checkpoint, read_checkpoint
from core.engine.request_options import PLAIN, AdapterUse
from core.memory.adapter_room import NO_ROOM, AdapterRoom, adaptable_matrices, match_adapter
from tests.support.checkpoints import make_checkpoint

EXTENT = Extent({}, (1, 8), prompt_tokens=64, new_tokens=32, rounds=2)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    make_checkpoint(tmp_path / "tiny")
    return read_checkpoint(tmp_path / "tiny")


class FakeEngine:
    """Writes 100 tokens a second in each chat, 80 with adapters."""

    max_chats = 8

    def __init__(self, prompts: Prompts) -> None:
        self.adapters: Sequence[AdapterUse] = ()
        self.rooms: list[AdapterRoom] = []
        self.is_closed = False

    def load(
        self,
        folder: Path,
        context_tokens: int,
        num_chats: int,
        kernel: str | None = None,
        adapters: AdapterRoom = NO_ROOM,
    ) -> float:
        self.rooms.append(adapters)
        return 1.0

    def first_token_s(self, num_tokens: int) -> float:
        raise AssertionError("first tokens are not measured")

    def decode(self, num_chats: int, prompt_tokens: int, new_tokens: int) -> Decoded:
        return Decoded((80.0 if self.adapters else 100.0) * num_chats, num_chats * new_tokens, True)

    def close(self) -> None:
        self.is_closed = True


def test_adapters_are_of_all_matrices_and_made_once(checkpoint: Checkpoint, tmp_path: Path) -> None:
    uses = make_adapters(tmp_path / "adapters", checkpoint.folder, 2, 8)
    adapter = read_adapter(uses[1].folder)
    assert set(match_adapter(adapter, checkpoint)) == set(adaptable_matrices(checkpoint)) and adapter.rank == 8
    before = adapter.weights.stat().st_mtime_ns
    assert make_adapters(tmp_path / "adapters", checkpoint.folder, 2, 8) == uses
    assert adapter.weights.stat().st_mtime_ns == before


def test_our_engine_is_loaded_without_room_and_with_it(checkpoint: Checkpoint, tmp_path: Path) -> None:
    engines: list[FakeEngine] = []

    def make_engine(prompts: Prompts) -> FakeEngine:
        engines.append(FakeEngine(prompts))
        return engines[0]

    uses = [AdapterUse(str(number), tmp_path) for number in range(4)]
    pair = measure(checkpoint, uses, 16, make_engine, EXTENT)
    assert engines[0].rooms == [NO_ROOM, AdapterRoom(4, 16)] and engines[0].is_closed
    assert [len(pair.without.decoded[1]), len(pair.with_adapters.decoded[8])] == [2, 2]
    titles, _, cells = table([pair], EXTENT).splitlines()
    assert titles == "| engine | 1 chats: without / with | 8 chats: without / with |"
    assert cells == "| LlamaDeck | 100 / 80 (80%) | 800 / 640 (80%) |"


def test_chats_use_adapters_in_turns() -> None:
    uses = [AdapterUse("a", Path("a")), AdapterUse("b", Path("b"))]
    assert [options_of(chat, uses).adapter for chat in range(3)] == [uses[0], uses[1], uses[0]]
    assert options_of(1, ()) == PLAIN


def test_where_vllm_is_not_to_be_had_the_table_says_why(checkpoint: Checkpoint, tmp_path: Path) -> None:
    pair = measure_vllm(checkpoint, [], tmp_path / "nothing", sys.executable, EXTENT)
    assert [len(pair.without.failures), len(pair.with_adapters.failures)] == [1, 1]
    *_, cells, said, _ = table([pair], EXTENT).splitlines()
    assert cells == "| vLLM | – / – | – / – |" and "vllm" in said


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
    answer = vllm_peer.start(str(checkpoint.folder), 600, paths)
    asked.clear()
    answer([[1, 2], [3, 4], [5, 6]], 1)
    first, second = ("rank8-0", 1, paths[0]), ("rank8-1", 2, paths[1])
    assert asked == [[first, second, first]]
