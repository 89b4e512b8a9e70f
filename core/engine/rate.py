"""How fast the engine writes, in tokens/s over all running answers."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

from core.engine.answer import Answer

WINDOW_S = 4.0


class TokenRate:
    """Counts the tokens of all answers whenever a page asks. Any thread may ask."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._counted: dict[Answer, int] = {}
        self._total = 0
        self._samples: deque[tuple[float, int]] = deque()

    def tokens_per_s(self, running: Iterable[Answer]) -> float:
        """The rate over the last WINDOW_S seconds in which a page asked; 0 at the first question."""
        with self._lock:
            now_s = self._clock()
            if self._samples and now_s - self._samples[-1][0] > WINDOW_S:
                self._samples.clear()
            self._count(running)
            self._samples.append((now_s, self._total))
            while now_s - self._samples[0][0] > WINDOW_S:
                self._samples.popleft()
            begin_s, before = self._samples[0]
            return (self._total - before) / (now_s - begin_s) if now_s > begin_s else 0.0

    def _count(self, running: Iterable[Answer]) -> None:
        """Add the tokens since the last question. A finished answer is counted once more, then forgotten."""
        for answer in {*self._counted, *(one for one in running if one.is_running)}:
            num_tokens = answer.num_tokens
            self._total += num_tokens - self._counted.get(answer, 0)
            self._counted[answer] = num_tokens
            if not answer.is_running:
                del self._counted[answer]
