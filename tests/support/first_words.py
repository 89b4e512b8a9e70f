"""Stands in for the engine that asks a finished model."""

from __future__ import annotations

import threading
from pathlib import Path

from core.quantize.answer import FirstWords

ASKED = {"asked": "Who?", "prompt": "<user>Who?"}


class FakeCheck:
    """Says `found`; where `waits`, not before it is stopped."""

    found = FirstWords("Nobody.")
    waits = False
    at_work = threading.Event()

    def __init__(self) -> None:
        self._stopped = threading.Event()

    def ask(self, folder: Path, name: str, prompt: str, on_cpu: bool) -> FirstWords:
        assert prompt == ASKED["prompt"] and folder.is_dir()
        self.at_work.set()
        if self.waits:
            assert self._stopped.wait(60)
        return self.found

    def stop(self) -> None:
        self._stopped.set()
