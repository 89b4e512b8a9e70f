"""The processes in which chat templates are rendered, within limits (core/common/sandbox.py)."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from contextlib import suppress
from typing import Any

from core.common.sandbox import LimitReached, Sandbox, SandboxLimits

# A real template takes 0.2 ms and 1 MiB for a short chat, 20 ms and 10 MiB for 1,000 messages, 0.5 s for 10,000.
LIMITS = SandboxLimits(cpu_s=1.5, memory_mib=512, wait_s=20.0)
MAX_PROCESSES = 4
# A prompt may have so many characters of the template's own, and so many for each turn. A template may write a text
# twice, or as JSON, where one character takes 12.
MAX_OWN_CHARS, MAX_TURN_CHARS, MAX_GROWTH = 2**18, 2**10, 16
# Larger chats have a process of their own, so that a short one does not wait for them.
LARGE_TURNS, LARGE_CHARS = 200, 100_000
# After a template reached a limit, chats as large as that one are refused for this long; kept for so many templates.
PAUSE_S, MAX_PAUSED = 60.0, 16
# How many turns a chat has, and how many characters.
Size = tuple[int, int]


class TemplateRenderer:
    """The processes that render, and which chats they could not.

    What was stopped at a limit is not tried again for a while with a chat as large or larger: else each message, and
    each look at a page that counts tokens, would wait for the limit.
    """

    def __init__(self, limits: SandboxLimits = LIMITS) -> None:
        self._sandbox = Sandbox("core.chat.template_child", limits, MAX_PROCESSES)
        self._lock = threading.Lock()
        self._paused: OrderedDict[str, tuple[Size, float, LimitReached]] = OrderedDict()

    def render(self, source: str, values: dict[str, Any], size: Size) -> str:
        """Raises LimitReached, or SandboxError with the template's words."""
        num_turns, num_chars = size
        key = (source, num_turns > LARGE_TURNS or num_chars > LARGE_CHARS)
        self._check(source, size)
        try:
            return self._sandbox.ask(key, source, values, max_chars(size), lambda: self._check(source, size))
        except LimitReached as error:
            # A process that had no turn says nothing about the chat.
            if error.kind != "busy":
                self._pause(source, size, error)
            raise

    def warm(self) -> None:
        """Have a process ready for the first chat."""
        with suppress(LimitReached):  # The first chat says it.
            self._sandbox.warm()

    def close(self) -> None:
        self._sandbox.close()

    def _check(self, source: str, size: Size) -> None:
        with self._lock:
            least, until_s, error = self._paused.get(source, ((0, 0), 0.0, None))
        if error is not None and time.monotonic() < until_s and size[0] >= least[0] and size[1] >= least[1]:
            raise LimitReached(error.kind)

    def _pause(self, source: str, size: Size, error: LimitReached) -> None:
        with self._lock:
            self._paused[source] = (size, time.monotonic() + PAUSE_S, error)
            self._paused.move_to_end(source)
            while len(self._paused) > MAX_PAUSED:
                self._paused.popitem(last=False)


def max_chars(size: Size) -> int:
    """How long a prompt of a chat of that size may be."""
    num_turns, num_chars = size
    return MAX_OWN_CHARS + num_turns * MAX_TURN_CHARS + num_chars * MAX_GROWTH
