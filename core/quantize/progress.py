"""How far a job of quantizing is, as pages and commands show it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from core.common.errors import DeckError
from core.hub.progress import JobState
from core.quantize.folders import LeftFolder

Phase = Literal["queued", "running", "stopping", "paused", "done", "failed", "cancelled"]
Stage = Literal["download", "start", "convert", "merge", "before", "quantize", "after", "answer", "place"]
# What each stage is of the whole, but for a download, which has bytes of its own.
SPANS = {
    "download": (0.0, 0.0),
    "start": (0.0, 0.01),
    "convert": (0.01, 0.05),
    "merge": (0.05, 0.08),
    "before": (0.08, 0.14),
    "quantize": (0.14, 0.93),
    "after": (0.93, 0.97),
    "answer": (0.97, 0.99),
    "place": (0.99, 1.0),
}


@dataclass(frozen=True, slots=True)
class QuantizeState:
    """A job at one moment. `layer` is the one that is worked at, from 1; `layers` is 0 until that is known.

    `layer_s` and `left_s` are None while they cannot be told. `result`: what the child process found, once it is done.
    `left`: what lies on the disk of one that failed.
    """

    phase: Phase = "queued"
    stage: Stage = "start"
    fraction: float = 0.0
    layer: int = 0
    layers: int = 0
    layer_s: float | None = None
    left_s: float | None = None
    error: DeckError | None = None
    result: dict[str, Any] | None = field(default=None, compare=False)
    download: JobState | None = None
    left: tuple[LeftFolder, ...] = ()


class StageClock:
    """Turns what the child process tells into how long is left. `fraction` never goes back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.stage: Stage = "start"
        self.fraction = 0.0
        self.layer = self.layers = 0
        self._first: tuple[float, float] | None = None
        self._latest = (clock(), 0.0)

    def take(self, stage: Stage, fraction: float, layer: int = 0, layers: int = 0) -> None:
        if stage != self.stage:
            self.stage, self._first = stage, None
        low, high = SPANS[stage]
        self.fraction = max(self.fraction, low + (high - low) * fraction)
        self.layer, self.layers = layer or self.layer, layers or self.layers
        self._latest = (self._clock(), fraction)
        # A job that goes on begins in the middle, and before its first layer it reads all texts: that is no speed.
        if layer or stage != "quantize":
            self._first = self._first or self._latest

    @property
    def layer_s(self) -> float | None:
        """Seconds a layer, as far as layers are worked at."""
        rate = self._rate()
        return 1 / (rate * self.layers) if rate and self.layers and self.stage == "quantize" else None

    @property
    def left_s(self) -> float | None:
        """Until the layers are done; None while nothing tells, and in the short stages."""
        rate = self._rate()
        if not rate or self.stage != "quantize":
            return None
        since = self._clock() - self._latest[0]
        return max(0.0, (1 - self._latest[1]) / rate - since)

    def _rate(self) -> float:
        """Fractions a second; 0 where none is known."""
        if self._first is None or self._latest[0] <= self._first[0]:
            return 0.0
        return (self._latest[1] - self._first[1]) / (self._latest[0] - self._first[0])
