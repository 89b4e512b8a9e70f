"""Signals that end a command as Ctrl-C does, in the same way for all commands."""

from __future__ import annotations

import signal


class StopSignals:
    """A context in which each of `numbers` raises KeyboardInterrupt, also where the shell made this process ignore it.

    `has_come` remembers the signal: an exception that is raised while Python frees an object gets lost.
    """

    def __init__(self, *numbers: signal.Signals) -> None:
        self._numbers = numbers
        self.has_come = False

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.signal(number, self._come) for number in self._numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _come(self, number: int, frame: object) -> None:
        self.has_come = True
        raise KeyboardInterrupt
