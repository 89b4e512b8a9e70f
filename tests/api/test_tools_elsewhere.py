"""Tools by the clients of other APIs than OpenAI's chat: told of, called whole and in streams, results brought back."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import ollama
import openai
import pytest

from tests.support.api_server import MODEL

CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "Bern"}}</tool_call>'
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
# The stand-in repeats the last question, with what stands before it in the same turn.
BEFORE: list[Any] = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello"}]
TALK: list[Any] = [*BEFORE, {"role": "user", "content": CALL}]


@pytest.mark.parametrize("stream", [False, True])
def test_anthropics_client_calls_tools_and_brings_results(url: str, stream: bool) -> None:
    client = anthropic.Anthropic(base_url=url, api_key="-", max_retries=0)
    wanted: dict[str, Any] = {"model": MODEL, "max_tokens": 200, "messages": TALK,
                              "tools": [{"name": "get_weather", "input_schema": SCHEMA}]}  # fmt: skip
    if stream:
        with client.messages.stream(**wanted) as events:
            done = events.get_final_message()
    else:
        done = client.messages.create(**wanted)
    text, call = done.content
    assert (text.type, call.type, done.stop_reason) == ("text", "tool_use", "tool_use")
    assert (call.name, call.input) == ("get_weather", {"city": "Bern"})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "dry"}
    talk = [BEFORE[0], {"role": "assistant", "content": [call.model_dump()]}, {"role": "user", "content": [result]}]
    after = client.messages.create(**wanted | {"messages": talk})
    assert "dry" in after.content[0].text and after.stop_reason == "end_turn"


@pytest.mark.parametrize("stream", [False, True])
def test_the_client_of_responses_calls_functions_and_brings_results(url: str, stream: bool) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0)
    wanted: dict[str, Any] = {
        "model": MODEL, "input": TALK,
        "tools": [{"type": "function", "name": "get_weather", "parameters": SCHEMA, "strict": False}],
    }  # fmt: skip
    if stream:
        with client.responses.stream(**wanted) as events:
            done = events.get_final_response()
    else:
        done = client.responses.create(**wanted)
    message, call = done.output
    assert (message.type, call.type, call.name) == ("message", "function_call", "get_weather")
    assert json.loads(call.arguments) == {"city": "Bern"}
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "dry"}
    after = client.responses.create(**wanted | {"input": [BEFORE[0], call.model_dump(exclude_none=True), result]})
    assert "dry" in after.output_text


@pytest.mark.parametrize("stream", [False, True])
def test_ollamas_client_calls_tools_and_brings_results(url: str, stream: bool) -> None:
    client = ollama.Client(url)
    tools: list[Any] = [{"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}]
    if stream:
        parts = list(client.chat(MODEL, TALK, tools=tools, stream=True))
        (call,) = [call for part in parts for call in part.message.tool_calls or ()]
    else:
        (call,) = client.chat(MODEL, TALK, tools=tools).message.tool_calls or ()
    assert (call.function.name, dict(call.function.arguments)) == ("get_weather", {"city": "Bern"})
    called = {"role": "assistant", "content": "", "tool_calls": [call.model_dump()]}
    result = {"role": "tool", "tool_name": "get_weather", "content": "dry"}
    after = client.chat(MODEL, [BEFORE[0], called, result], tools=tools)
    assert "dry" in (after.message.content or "")
    assert "tools" in (client.show(MODEL).capabilities or ())
