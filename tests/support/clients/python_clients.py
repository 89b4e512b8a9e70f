"""LangChain and Pydantic AI over all of the API's languages: prints {name: [an answer, a stream, a call's arguments]}.

Started with the server's address in an environment that has them.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from langchain_anthropic import ChatAnthropic
from langchain_ollama import ChatOllama
from langchain_openai import ChatOpenAI
from pydantic_ai import Agent, UsageLimitExceeded, UsageLimits
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

URL, MODEL = sys.argv[1:]
CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "Bern"}}</tool_call>'
# Settings of the clients' own that are for other places than ours.
KEY: Any = "none is needed"


def get_weather(city: str) -> str:
    """The weather."""
    return "dry"


def langchain(model: Any) -> list[Any]:
    # The stand-in repeats the last question, with what stands before it in the same turn.
    talk = [("user", "hi"), ("assistant", "Hello"), ("user", CALL)]
    stream = "".join(str(piece.text) for piece in model.stream("words=6"))
    (call,) = model.bind_tools([get_weather]).invoke(talk).tool_calls
    return [str(model.invoke("hello").text), stream, call["args"]]


def pydantic_ai(model: Any) -> list[Any]:
    agent, asked = Agent(model), []

    @agent.tool_plain
    def get_weather(city: str) -> str:
        """The weather."""
        asked.append({"city": city})
        return "dry"

    async def stream() -> str:
        async with Agent(model).run_stream("words=6") as result:
            return str(await result.get_output())

    # The stand-in would call the tool for ever.
    with suppress(UsageLimitExceeded):
        agent.run_sync(CALL, usage_limits=UsageLimits(request_limit=1))
    return [Agent(model).run_sync("hello").output, asyncio.run(stream()), asked[0]]


OPENAI = {"base_url": f"{URL}/v1", "api_key": KEY, "model": MODEL, "max_retries": 0}
CLIENTS: dict[str, Callable[[], list[Any]]] = {
    "LangChain, OpenAI": lambda: langchain(ChatOpenAI(**OPENAI)),
    "LangChain, Responses": lambda: langchain(ChatOpenAI(**OPENAI, use_responses_api=True)),
    "LangChain, Anthropic": lambda: langchain(
        ChatAnthropic(base_url=URL, api_key=KEY, model=MODEL, max_tokens=200, max_retries=0)
    ),
    "LangChain, Ollama": lambda: langchain(ChatOllama(base_url=URL, model=MODEL)),
    "Pydantic AI, OpenAI": lambda: pydantic_ai(
        OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=f"{URL}/v1", api_key=KEY))
    ),
    "Pydantic AI, Responses": lambda: pydantic_ai(
        OpenAIResponsesModel(MODEL, provider=OpenAIProvider(base_url=f"{URL}/v1", api_key=KEY))
    ),
    "Pydantic AI, Anthropic": lambda: pydantic_ai(
        AnthropicModel(MODEL, provider=AnthropicProvider(base_url=URL, api_key=KEY))
    ),
}


def tried(client: Callable[[], list[Any]]) -> list[Any] | str:
    try:
        return client()
    except Exception as error:  # What a client makes of an answer of ours is what the test wants to know.
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    print(json.dumps({name: tried(client) for name, client in CLIENTS.items()}))
