"""On a GPU: a load is held to its plan, refused where it cannot be honoured, and takes no more afterwards.

Run with `pytest -m gpu` on a GPU host.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.steady_memory import Watch, fill, process_mib
from core.checkpoint.checkpoint import read_checkpoint
from core.common.errors import EngineError
from core.engine.protocol import EngineState
from core.engine.runner import Runner
from core.gpu.snapshot import read_snapshot
from core.memory.device_memory import DeviceMemory
from core.memory.fit import check_fit
from core.memory.kernels.registry import has_c_compiler
from core.memory.sizes import MIB
from tests.support.checkpoints import Recipe, make_checkpoint
from tests.support.gpu_session import GpuSession

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
LOAD_S = 600.0
CONTEXT_TOKENS, CHATS = 1024, 3
LACKING_MIB = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "small"
    make_checkpoint(path, Recipe(hidden=512, intermediate=1024, vocabulary=512, context_tokens=CONTEXT_TOKENS))
    return path


@pytest.fixture
def runner(gpu_tests: GpuSession) -> Iterator[Runner]:
    with waiting_runner(gpu_tests) as runner:
        yield runner


@contextmanager
def waiting_runner(gpu_tests: GpuSession) -> Iterator[Runner]:
    """A runner whose warm worker was begun before; nothing else gives back memory of the GPU meanwhile."""
    gpu_tests.wait_for_compilers()
    runner = gpu_tests.runner()
    try:
        yield runner
    finally:
        runner.close()


def load(runner: Runner, folder: Path, **how: object) -> EngineState:
    runner.load(folder, CONTEXT_TOKENS, CHATS, "triton", **how)  # type: ignore[arg-type]
    return runner.wait_while_loading(LOAD_S)


def least_mib(folder: Path, card: DeviceMemory) -> int:
    """What must be free for a load. Of so small a model captured steps may take less than plain ones do."""
    checkpoint, least, most = read_checkpoint(folder), 0, card.available_mib
    while most - least > 1:
        tried = (least + most) // 2
        with_so_much = replace(card, others_mib=card.others_mib + card.available_mib - tried)
        fits = check_fit(checkpoint, [with_so_much], CONTEXT_TOKENS, CHATS, "triton").fits
        least, most = (least, tried) if fits else (tried, most)
    return most


def test_what_is_held_is_the_plan_and_does_not_grow(runner: Runner, folder: Path) -> None:
    facts = load(runner, folder).facts
    assert facts is not None and facts.memory is not None and runner.worker_pid is not None
    plan, loaded_mib = facts.memory.plan, process_mib(runner.worker_pid)
    assert 0 < facts.memory.peak_bytes <= plan.allocated
    assert 0 < loaded_mib <= plan.total / MIB
    with Watch(runner.worker_pid) as watch:
        fill(runner, CONTEXT_TOKENS, CHATS)
    assert watch.most_mib == loaded_mib


def test_a_load_that_cannot_be_honoured_is_refused_with_the_numbers_and_can_be_forced(
    runner: Runner, folder: Path, gpu_tests: GpuSession
) -> None:
    """What lacks is less than the plan has to spare, so that the load can be had by force."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.zeros(1, device="cuda")
    card = DeviceMemory.measured(read_snapshot().gpus[0], has_c_compiler=has_c_compiler())
    hog = torch.empty((card.available_mib - least_mib(folder, card) + LACKING_MIB) * MIB, dtype=torch.uint8,
                      device="cuda")  # fmt: skip
    try:
        state = load(runner, folder)
        assert state.phase == "failed" and isinstance(state.error, EngineError)
        assert state.error.key in ("load_too_large", "load_context_too_long")
        assert state.error.params["needed"] > state.error.params["available"] > 0
        with waiting_runner(gpu_tests) as other:
            assert load(other, folder, force=True).phase == "ready"
    finally:
        del hog
        torch.cuda.empty_cache()


def test_steps_are_captured_where_there_is_no_compiler(
    folder: Path, gpu_tests: GpuSession, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """PyTorch's runtime images have none. Steps were plain there, and a 7B many times slower."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    gpu_tests.wait_for_compilers()
    runner = Runner()  # None that was begun before.
    try:
        runner.load(folder, CONTEXT_TOKENS, CHATS, "llamadeck")
        facts = runner.wait_while_loading(LOAD_S).facts
        assert facts is not None and facts.captured
    finally:
        runner.close()


def test_a_warm_worker_holds_no_memory_of_a_gpu_and_loads_as_any_other(runner: Runner, folder: Path) -> None:
    runner.warm_worker.start(idle_s=0.0)
    try:
        assert runner.warm_worker.wait(LOAD_S), "the imports touched the GPU, or the host has no memory to spare"
        waiting = runner.warm_worker.pid
        assert waiting not in [process.pid for gpu in read_snapshot().gpus for process in gpu.processes]
        assert load(runner, folder).phase == "ready"
        assert runner.worker_pid == waiting
    finally:
        runner.close()
