"""How many tokens a prompt is for a model on another server: asked where the server counts, else estimated."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from core.common.errors import EngineError
from core.common.values import is_whole
from core.engine.protocol import Conversation
from core.remote.dialect import RemoteModel, count_request
from core.remote.http import Server, wait_for

# Estimates are rather too high: a prompt that is cut a little early is answered, one that is too long is not.
BYTES_PER_TOKEN = 3.0
MOST_BYTES_PER_TOKEN = 8.0
# How long a page waits for a count, and how long a server that took longer is not asked again.
WAIT_S = 2.0
PAUSE_S = 30.0
MAX_CACHED_PROMPTS = 256
MAX_TOKENS = 1_000_000_000


class RemoteTokenCount:
    """Pieces of a prompt are always estimated: a long chat has hundreds, and each question is a round trip.

    The estimate follows the server's own counts.
    """

    def __init__(self, server: Server, model: Callable[[], RemoteModel | None]) -> None:
        self._server, self._model = server, model
        self._bytes_per_token = BYTES_PER_TOKEN
        self._quiet_until_s = 0.0
        self._asked = lru_cache(MAX_CACHED_PROMPTS)(self._ask)

    @staticmethod
    def guess(prompt: str | tuple[int, ...], bytes_per_token: float = BYTES_PER_TOKEN) -> int:
        if not isinstance(prompt, str):
            return len(prompt)
        return math.ceil(round(len(prompt.encode("utf-8", "replace")) / bytes_per_token, 6))

    def count(self, text: str) -> int:
        """The tokens of a piece of a prompt, estimated."""
        return self.guess(text, self._bytes_per_token)

    def count_prompt(self, prompt: str | tuple[int, ...]) -> int:
        """The tokens of a whole prompt."""
        model = self._model()
        can_ask = model is not None and model.capabilities.count_path and time.monotonic() > self._quiet_until_s
        if not can_ask or not isinstance(prompt, str):
            return self.guess(prompt, self._bytes_per_token)
        # Two prompts may read alike and differ in their turns.
        turns: object = None
        if isinstance(prompt, Conversation):
            turns = (prompt.turns, prompt.is_open, prompt.thoughts, tuple(sorted(prompt.variables.items())))
        try:
            return self._asked(prompt, turns, model)
        except EngineError:
            self._quiet_until_s = time.monotonic() + PAUSE_S
            return self.guess(prompt, self._bytes_per_token)

    def learn(self, prompt: str | tuple[int, ...], tokens: int) -> None:
        """Note that the server counted `tokens` in `prompt`. Estimates alone stay high."""
        model = self._model()
        if isinstance(prompt, str) and prompt and tokens > 0:
            is_counted = model is not None and bool(model.capabilities.count_path)
            most = MOST_BYTES_PER_TOKEN if is_counted else BYTES_PER_TOKEN
            self._bytes_per_token = min(most, max(1.0, len(prompt.encode("utf-8", "replace")) / tokens))

    def _ask(self, prompt: str, turns: object, model: RemoteModel) -> int:
        found = wait_for(self._request(model, count_request(model, prompt)))
        count = found.get("count") if isinstance(found, dict) else None
        if not is_whole(count) or not 0 <= count <= MAX_TOKENS:
            raise EngineError("remote_garbled", server=self._server.name)
        self.learn(prompt, count)
        return count

    async def _request(self, model: RemoteModel, body: dict[str, Any]) -> Any:
        try:
            async with asyncio.timeout(WAIT_S):
                return await self._server.ask(model.capabilities.count_path, body)
        except TimeoutError:
            raise EngineError("remote_silent", server=self._server.name, seconds=f"{WAIT_S:g}") from None
