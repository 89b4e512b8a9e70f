"""A stranger's patterns, JavaScript's, looked for in texts in a process that can be ended.

A pattern is bounded before it is compiled, and while it is compiled and looked for: "(a+)+b" takes longer than anybody
lives.
"""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from core.common.sandbox import LimitReached, Sandbox, SandboxError, SandboxLimits

# Limits for all patterns of a book in one text. A usual one compiles in 5 µs and looks through 20 KB in 20 µs.
LIMITS = SandboxLimits(cpu_s=1.0, memory_mib=192, wait_s=20.0)
NUM_PROCESSES = 2
# No person wrote a longer one.
MAX_PATTERN_CHARS = 10_000
# Where so many patterns of a book reach a limit, its others are not tried: it means harm. At most so many are kept.
MAX_BAD, MAX_UNUSABLE = 3, 1000
# Where a book's patterns together reach a limit, each is tried alone, for ALONE_S in all. The rest is not found.
ALONE_S = 5.0
FOUND, ABSENT, WRONG = "+", "-", "w"
FLAGS = frozenset("dgimsuvy")
SLASHED = re.compile(r"/((?:[^/\\]|\\.)+)/([a-z]*)", re.DOTALL)


class Pattern(NamedTuple):
    """One pattern with its flags, such as "im", as JavaScript has them."""

    text: str
    flags: str = ""


def read_pattern(key: str) -> Pattern | None:
    """The pattern that is written as /…/flags; None for any other text, such as "and/or"."""
    match = SLASHED.fullmatch(key) if key.startswith("/") else None
    if match is None or not _are_flags(match[2]):
        return None
    return Pattern(match[1], match[2])


def _are_flags(flags: str) -> bool:
    return set(flags) <= FLAGS and len(set(flags)) == len(flags) and not {"u", "v"} <= set(flags)


class Patterns:
    """Some patterns, all looked for at once in each text that is asked about. One that cannot be used is nowhere."""

    def __init__(self, patterns: Iterable[Pattern]) -> None:
        self._patterns = list(dict.fromkeys(one for one in patterns if len(one.text) <= MAX_PATTERN_CHARS))
        # By the texts' hashes: a long chat is looked at as it was before each of its answers, which is gigabytes.
        self._found: dict[tuple[int, int], frozenset[Pattern]] = {}

    def finds(self, pattern: Pattern, text: str) -> bool:
        key = hash(text), len(text)
        if key not in self._found:
            self._found[key] = frozenset(one for one, answer in self._answers(text) if answer == FOUND)
        return pattern in self._found[key]

    def wrong(self) -> set[Pattern]:
        """Those that are no patterns to JavaScript, or take more than any may."""
        wrong = {one for one, answer in self._answers("") if answer == WRONG}
        return wrong.union(filter(_unusable.holds, self._patterns))

    def _answers(self, text: str) -> list[tuple[Pattern, str]]:
        usable = self._usable()
        try:
            answers = _ask(text, usable)
        except LimitReached as error:
            # One of them is to blame: each alone tells which.
            answers = "" if error.kind == "busy" else self._one_by_one(text, usable)
        return list(zip(usable, answers, strict=False))

    def _usable(self) -> list[Pattern]:
        usable = [one for one in self._patterns if not _unusable.holds(one)]
        return usable if len(self._patterns) - len(usable) < MAX_BAD else []

    def _one_by_one(self, text: str, patterns: list[Pattern]) -> str:
        answers, until_s = "", time.monotonic() + ALONE_S
        if len(patterns) == 1:
            _unusable.add(patterns[0])
            return WRONG
        for one in patterns:
            if not self._usable():
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
                answers += WRONG
        return answers


class _Unusable:
    """The patterns that reached a limit, the last ones."""

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
    # Half characters cannot be looked through.
    question = (text.encode("utf-8", "replace").decode(), [tuple(one) for one in patterns])
    try:
        return _sandbox.ask(key, None, question, len(patterns))
    except SandboxError:
        return ABSENT * len(patterns)
