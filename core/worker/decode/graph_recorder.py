"""What captured steps need of CUDA: recording, a memory pool, and copies of tokens that the host does not wait for."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch

from core.worker.decode.steps import PendingTokens


class AsyncTokens:
    """Tokens that a copy brings from the GPU."""

    def __init__(self, sampled: torch.Tensor) -> None:
        self._tokens = torch.empty(sampled.shape, dtype=sampled.dtype, pin_memory=True)
        self._tokens.copy_(sampled, non_blocking=True)
        # The next step is in flight meanwhile, so sleeping costs nothing; spinning would take a core.
        self._event = torch.cuda.Event(blocking=True)
        self._event.record(torch.cuda.current_stream(sampled.device))

    def wait(self) -> list[int | None]:
        self._event.synchronize()
        return [None if token < 0 else token for token in self._tokens.tolist()]

    def draw_rest(self) -> None:
        """Nothing is left to draw."""

    def logprobs(self) -> list[None]:
        return [None] * len(self._tokens)


class GraphRecorder:
    """What captured steps need of CUDA."""

    def new_pool(self) -> Any:
        """A memory pool for captured steps. Memory that torch caches and nothing holds is freed first."""
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.graph_pool_handle()

    def record(self, compute: Callable[[], torch.Tensor], pool: Any) -> tuple[Callable[[], None], torch.Tensor]:
        """Record `compute` as a graph: what replays it, and the tensor that holds its result."""
        graph = torch.cuda.CUDAGraph()
        # Collected garbage may hold events, graphs or pinned memory, which CUDA cannot free while it records.
        gc.disable()
        try:
            with torch.cuda.graph(graph, pool=pool, stream=torch.cuda.current_stream()):
                result = compute()
        finally:
            gc.enable()
        return graph.replay, result

    def copy(self, sampled: torch.Tensor) -> PendingTokens:
        return AsyncTokens(sampled)
