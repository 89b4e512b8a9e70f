"""What answers as a chat completion does, in other words: Anthropic's Messages API and OpenAI's Responses API."""

from __future__ import annotations

from core.api.completions import Completions
from core.api.dialects.anthropic import AnthropicExchange
from core.api.dialects.responses import ResponsesExchange
from core.api.http_call import HttpCall


class Messages:
    """Handlers; each of them raises DeckError or ClientGone."""

    def __init__(self, completions: Completions) -> None:
        self._completions = completions

    async def create(self, call: HttpCall) -> None:
        await self._completions.chat(call, AnthropicExchange())

    async def respond(self, call: HttpCall) -> None:
        await self._completions.chat(call, ResponsesExchange())

    async def count(self, call: HttpCall) -> None:
        await call.json({"input_tokens": await self._completions.count(call, AnthropicExchange())})
