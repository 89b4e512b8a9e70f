"""Which steps a load takes where graphs have no room for the planned ones."""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from core.common.errors import EngineError
from core.memory.step_sizes import EXPERT_CHUNK_TOKENS, LEAN_SIZES, USUAL_SIZES, StepSizes, smaller_sizes
from core.worker import load
from core.worker.decode.steps import EagerSteps
from core.worker.kernels.packed_experts import PackedExperts


class Slots:
    """As much of a ModelRunner as is asked here."""

    adapters = None
    device = torch.device("cpu")

    def use_attention(self, name: str) -> None:
        pass


class Model(torch.nn.Module):
    """As much of a model: one layer has experts, whose captured products share a room."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(_attn_implementation="sdpa")
        self.experts = Experts()


class Experts(PackedExperts):
    """Counts how often its room was given up."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.num_dropped = 0

    def drop_room(self) -> None:
        self.num_dropped += 1


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """The tokens of prompts of the steps that were tried, and whether in graphs."""
    monkeypatch.setattr(load, "fuse_modules", lambda *_: [])
    monkeypatch.setattr(load, "embedding_name", lambda _: "embedding")
    monkeypatch.setattr(load, "EagerSteps", lambda _: EagerSteps)
    return []


def take(
    monkeypatch: pytest.MonkeyPatch, tried: list[tuple[int, bool]], most: int, error: Exception, captured: bool = True
) -> Any:
    """What a load takes where graphs of more than `most` tokens fail with `error`, and no others do."""

    def steps(slots: Slots, sizes: StepSizes, recorder: None, fuse: object, is_recorded: bool, split: None) -> Any:
        tried.append((sizes.chunk_tokens, is_recorded))
        if is_recorded and sizes.chunk_tokens > most:
            raise error
        return tried[-1]

    monkeypatch.setattr(load, "GraphSteps", steps)
    model, before = Model(), len(tried)
    taken = load.fuse_and_capture(Slots(), model, StepSizes(EXPERT_CHUNK_TOKENS[0]), captured)  # type: ignore[arg-type]
    # What a failed try was captured with is freed before the next one.
    num_failed = len(tried) - before - (taken is not EagerSteps)
    assert model.experts.num_dropped == num_failed
    return taken


def test_smaller_graphs_are_taken_where_larger_ones_have_no_room(
    monkeypatch: pytest.MonkeyPatch, tried: list[tuple[int, bool]]
) -> None:
    """A Qwen3-30B-A3B that read 4096 tokens at once ran kernel by kernel, with a tenth of its tokens a second."""
    out_of_memory = torch.OutOfMemoryError("256 MiB")
    assert take(monkeypatch, tried, 1024, out_of_memory) == (1024, True)
    assert tried == [(4096, True), (2048, True), (1024, True)]
    tried.clear()
    least = LEAN_SIZES.chunk_tokens
    assert take(monkeypatch, tried, 0, out_of_memory) == (least, False)
    assert tried[-3:] == [(USUAL_SIZES.chunk_tokens, True), (least, True), (least, False)]
    tried.clear()
    assert take(monkeypatch, tried, 0, out_of_memory, captured=False) == (4096, False)


def test_a_failed_try_is_gone_before_the_next_one(
    monkeypatch: pytest.MonkeyPatch, tried: list[tuple[int, bool]]
) -> None:
    """Its graphs would take the room of the smaller ones."""
    alive = list[weakref.ref[object]]()

    class Steps:
        def __init__(self, slots: Slots, sizes: StepSizes, *_: object) -> None:
            assert all(one() is None for one in alive)
            alive.append(weakref.ref(self))
            if sizes.chunk_tokens > 1024:
                raise torch.OutOfMemoryError("256 MiB")

    monkeypatch.setattr(load, "GraphSteps", Steps)
    model = Model()
    steps = load.fuse_and_capture(Slots(), model, StepSizes(4096))  # type: ignore[arg-type]
    assert len(alive) == 3 and alive[-1]() is steps


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("256 MiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("gemm_2_1: CUDA's error 2"), True),
        (RuntimeError("gemm_2_1: CUDA's error 209"), False),
        (RuntimeError("operation not permitted when stream is capturing"), False),
    ],
    ids=str,
)
def test_whatever_tells_it_a_gpu_without_room_is_known(error: Exception, expected: bool) -> None:
    """A graph that ends in the middle says so of its end alone; what came before is the error's context."""
    assert load.is_out_of_memory(error) is expected
    try:
        try:
            raise error
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
    except RuntimeError as later:
        assert load.is_out_of_memory(later) is expected


@pytest.mark.parametrize(
    "error", [EngineError("captured_differs"), RuntimeError("a kernel"), TypeError("a type")], ids=str
)
def test_what_fails_otherwise_is_not_tried_with_less(
    error: Exception, monkeypatch: pytest.MonkeyPatch, tried: list[tuple[int, bool]]
) -> None:
    assert take(monkeypatch, tried, 0, error) == (4096, False)
    assert tried == [(4096, True), (4096, False)]


def test_smaller_sizes_end_with_the_least() -> None:
    assert [one.chunk_tokens for one in smaller_sizes(StepSizes(2048))] == [1024, 512, 256]
    assert smaller_sizes(USUAL_SIZES) == [LEAN_SIZES] and smaller_sizes(LEAN_SIZES) == []
