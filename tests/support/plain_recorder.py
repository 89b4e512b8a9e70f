"""Captured steps without CUDA: what a graph would replay is run anew each time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from core.worker.decode.graph_recorder import GraphRecorder
from core.worker.decode.steps import PendingTokens, ReadyTokens


class PlainRecorder(GraphRecorder):
    """Runs what CUDA would replay."""

    def new_pool(self) -> Any:
        return None

    def record(self, compute: Callable[[], torch.Tensor], pool: Any) -> tuple[Callable[[], None], torch.Tensor]:
        result = torch.empty(0, dtype=torch.float16)

        def replay() -> None:
            result.resize_(0).set_(compute())

        replay()
        return replay, result

    def copy(self, sampled: torch.Tensor) -> PendingTokens:
        return ReadyTokens([None if token < 0 else token for token in sampled.tolist()])
