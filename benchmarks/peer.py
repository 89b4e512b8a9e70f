"""Another engine in a process of its own, asked line by line, so that its rounds can alternate with ours.

The other side is a program that calls benchmarks/peer_side.py, which says what is asked and answered.
"""

from __future__ import annotations

import json
import math
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from benchmarks.measuring import Decoded, TooSlow, Unable
from benchmarks.prompts import Prompts
from core.common.paths import ROOT

# Of what a peer wrote before it ended.
LINES_TOLD = 60


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds for its start, for one answer, and for all answers together; a peer that needs more is ended."""

    start_s: float = 600.0
    answer_s: float = 120.0
    all_answers_s: float = math.inf


class Peer:
    """Starts `python -m MODULE ARGUMENTS`; ready when the constructor returns. Raises Unable where it ends before."""

    def __init__(
        self,
        module: str,
        arguments: list[str],
        prompts: Prompts,
        max_chats: int,
        limits: Limits = Limits(),
        python: Sequence[str] = (sys.executable,),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """python: the interpreter that runs the module. environment: what is set for it besides."""
        self._prompts, self.max_chats, self._limits = prompts, max_chats, limits
        self._left_s = limits.all_answers_s
        self._too_slow: TooSlow | None = None
        self._said = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [*python, "-m", module, *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env=os.environ | dict(environment or {}),
        )
        try:
            self._read(limits.start_s, limits.start_s)
        except BaseException:
            self.close()
            raise

    def first_token_s(self, num_tokens: int) -> float:
        return self.first_tokens_s(1, num_tokens)

    def first_tokens_s(self, num_chats: int, num_tokens: int) -> float:
        """From `num_chats` prompts at once to the last of their first tokens."""
        seconds: float = self._ask(num_chats, num_tokens, 1)["first_token_s"]
        return seconds

    def decode(self, num_chats: int, prompt_tokens: int, new_tokens: int) -> Decoded:
        """All chats in one batch, all of the same length; the first tokens are the prompt's work."""
        answer = self._ask(num_chats, prompt_tokens, new_tokens)
        drawn = answer["num_tokens"]
        return Decoded((drawn - num_chats) / answer["decode_s"], drawn, drawn == num_chats * new_tokens)

    def close(self) -> None:
        """End the process, whatever it does: it has nothing to keep."""
        self._process.kill()
        # What a dead process did not take is still in the buffer.
        with suppress(OSError), self._process:
            pass
        self._said.close()

    def _ask(self, num_chats: int, prompt_tokens: int, new_tokens: int) -> dict[str, Any]:
        prompts = [self._prompts.take(prompt_tokens) for _ in range(num_chats)]
        assert self._process.stdin is not None
        with suppress(OSError):
            print(json.dumps({"prompts": prompts, "new_tokens": new_tokens}), file=self._process.stdin, flush=True)
        begin_s, limits = time.perf_counter(), self._limits
        try:
            if self._left_s < limits.answer_s:
                return self._read(self._left_s, limits.all_answers_s)
            return self._read(limits.answer_s, limits.answer_s)
        finally:
            self._left_s -= time.perf_counter() - begin_s

    def _read(self, timeout_s: float, limit_s: float) -> dict[str, Any]:
        """The next line, which a peer writes at once; one that has none after `timeout_s` is ended for `limit_s`."""
        assert self._process.stdout is not None
        if self._too_slow is None and not select.select([self._process.stdout], [], [], max(0.0, timeout_s))[0]:
            self._too_slow = TooSlow(limit_s)
            self._process.kill()
            self._last_words()
        if self._too_slow is not None:
            raise self._too_slow
        line = self._process.stdout.readline()
        if not line:
            raise Unable(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Unable(answer["error"])
        return answer

    def _last_words(self) -> str:
        """How the process ended: the signal that killed it, else the last line that it wrote."""
        exit_code = self._process.wait()
        self._said.seek(0)
        lines = self._said.read().strip().splitlines()
        # Its last line is seldom the cause.
        print(*lines[-LINES_TOLD:], sep="\n", file=sys.stderr, flush=True)
        said = (lines or [f"exit code {exit_code}"])[-1][:200]
        return signal.Signals(-exit_code).name if exit_code < 0 else said
