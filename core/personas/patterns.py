"""A stranger's patterns, looked for in texts in a process that can be ended.

A pattern is bounded while it searches and while it is compiled: "a{8000000}" unrolls to two gigabytes before anything
is looked for.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from core.common.sandbox import LimitReached, Sandbox, SandboxError, SandboxLimits

# A hostile pattern may run for ever: after this long it counts as not found, and after so many of them all others do.
TIMEOUT_S, MAX_SLOW = 0.05, 10
# Limits for all patterns of a book, which compile with the first text. A usual one takes 0.3 ms and 20 KiB.
LIMITS = SandboxLimits(cpu_s=1.0, memory_mib=192, wait_s=20.0)
NUM_PROCESSES = 2
# No person wrote a longer one.
MAX_PATTERN_CHARS = 10_000
# Where so many patterns of a book reach a limit, its others are not tried: it means harm. At most so many are kept.
MAX_BAD, MAX_UNUSABLE = 3, 1000
# Where a book's patterns together reach a limit, each is tried alone, for ALONE_S in all. The rest is not found.
ALONE_S = 5.0
FOUND, ABSENT, SLOW = "+", "-", "s"


class Pattern(NamedTuple):
    """One pattern with the flags i and s."""

    text: str
    ignores_case: bool = False
    dot_is_all: bool = False


class Patterns:
    """Some patterns, all looked for at once in each text that is asked about. One that cannot be used is nowhere."""

    def __init__(self, patterns: Iterable[Pattern]) -> None:
        self._patterns = list(dict.fromkeys(one for one in patterns if len(one.text) <= MAX_PATTERN_CHARS))
        # By the texts' hashes: a long chat is looked at as it was before each of its answers, which is gigabytes.
        self._found: dict[tuple[int, int], frozenset[Pattern]] = {}

    def finds(self, pattern: Pattern, text: str) -> bool:
        key = hash(text), len(text)
        if key not in self._found:
            self._found[key] = self._search(text)
        return pattern in self._found[key]

    def _search(self, text: str) -> frozenset[Pattern]:
        """Those in `text`. A pattern that was slow once is not looked for again."""
        usable = self._usable()
        try:
            answers = _ask(text, usable)
        except LimitReached as error:
            # One of them is to blame: each alone tells which.
            answers = "" if error.kind == "busy" else self._one_by_one(text, usable)
        answered = list(zip(usable, answers, strict=False))
        slow = {one for one, answer in answered if answer == SLOW}
        self._patterns = [one for one in self._patterns if one not in slow] if len(slow) < MAX_SLOW else []
        return frozenset(one for one, answer in answered if answer == FOUND)

    def _usable(self) -> list[Pattern]:
        usable = [one for one in self._patterns if not _unusable.holds(one)]
        return usable if len(self._patterns) - len(usable) < MAX_BAD else []

    def _one_by_one(self, text: str, patterns: list[Pattern]) -> str:
        answers, until_s = "", time.monotonic() + ALONE_S
        if len(patterns) == 1:
            _unusable.add(patterns[0])
            return ABSENT
        for one in patterns:
            if not self._usable() or answers.count(SLOW) >= MAX_SLOW:
                break
            if time.monotonic() > until_s:
                self._patterns = patterns[: len(answers)]
                break
            try:
                answers += _ask(text, [one])
            except LimitReached as error:
                if error.kind == "busy":
                    break
                _unusable.add(one)
                answers += ABSENT
        return answers


class _Unusable:
    """The patterns that reached a limit, the last ones: what one is compiled to does not depend on any text."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._patterns: OrderedDict[Pattern, None] = OrderedDict()

    def holds(self, pattern: Pattern) -> bool:
        return pattern in self._patterns

    def add(self, pattern: Pattern) -> None:
        with self._lock:
            self._patterns[pattern] = None
            while len(self._patterns) > MAX_UNUSABLE:
                self._patterns.popitem(last=False)


_unusable = _Unusable()
_sandbox = Sandbox("core.personas.pattern_child", LIMITS, NUM_PROCESSES)


def _ask(text: str, patterns: list[Pattern]) -> str:
    """A letter for each. Raises LimitReached."""
    if not patterns:
        return ""
    # The same book goes to the same process, which has its patterns compiled.
    key = hash(patterns[0]) % NUM_PROCESSES
    try:
        settings, question = (TIMEOUT_S, MAX_SLOW), (text, [tuple(one) for one in patterns])
        return _sandbox.ask(key, settings, question, len(patterns))
    except SandboxError:
        return ABSENT * len(patterns)
