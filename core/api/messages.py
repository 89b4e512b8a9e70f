"""Anthropic's Messages API: messages are answered and counted."""

from __future__ import annotations

from core.api.completions import Completions
from core.api.dialects.anthropic import AnthropicExchange
from core.api.http_call import HttpCall


class Messages:
    """Handlers; each of them raises DeckError or ClientGone."""

    def __init__(self, completions: Completions) -> None:
        self._completions = completions

    async def create(self, call: HttpCall) -> None:
        await self._completions.chat(call, AnthropicExchange())

    async def count(self, call: HttpCall) -> None:
        await call.json({"input_tokens": await self._completions.count(call, AnthropicExchange())})
