"""Tools by OpenAI's own client: what is told of them, what comes back as calls, whole and in streams."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from core.api.choice_stream import ChoiceStream
from core.api.generation import Choice
from core.api.prompts import read_chat_request
from core.api.responses import ResponseWriter
from core.api.schema import ChatRequest, read_body
from core.api.served_model import read_served_model
from core.common.errors import DeckError
from core.engine.answer import Answer
from core.engine.protocol import AnswerStats, Finished, TextChunk
from core.engine.request_options import Grammar
from core.engine.runner import Runner
from tests.support.api_server import MODEL, api_server

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TIME: Any = {"type": "function", "function": {"name": "get_time"}}
CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "Bern"}}</tool_call>'
# The stand-in repeats the last question, with what stands before it in the same turn.
BEFORE: list[Any] = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello"}]


@pytest.fixture(scope="module")
def client(api_home: Path, api_runner: Runner) -> Iterator[openai.OpenAI]:
    with api_server(api_runner, api_home) as url:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0)


def says(text: str) -> list[Any]:
    return [*BEFORE, {"role": "user", "content": text}]


def test_a_call_comes_apart_from_the_words_before_it(client: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "messages": says(f"{CALL} {CALL}"), "tools": [WEATHER]}
    choice = client.chat.completions.create(**asked).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content == "You said:"
    first, second = choice.message.tool_calls
    assert first.type == "function" and first.function.name == "get_weather"
    assert json.loads(first.function.arguments) == {"city": "Bern"} and first.id != second.id
    alone = client.chat.completions.create(**asked, parallel_tool_calls=False).choices[0]
    assert len(alone.message.tool_calls) == 1
    # Without tools it is a text like any other.
    plain = client.chat.completions.create(model=MODEL, messages=says(CALL)).choices[0]
    assert plain.message.tool_calls is None and CALL in plain.message.content and plain.finish_reason == "stop"
    none = client.chat.completions.create(**asked, tool_choice="none").choices[0]
    assert none.message.tool_calls is None


def test_a_stream_brings_a_calls_arguments_as_they_come(client: openai.OpenAI) -> None:
    text, name, arguments, ends = "", "", [], []
    for piece in client.chat.completions.create(model=MODEL, messages=says(CALL), tools=[WEATHER], stream=True):
        choice = piece.choices[0]
        text += choice.delta.content or ""
        for call in choice.delta.tool_calls or ():
            assert call.index == 0
            name += call.function.name or ""
            arguments.append(call.function.arguments or "")
        ends.append(choice.finish_reason)
    assert text == "You said:" and name == "get_weather" and ends[-1] == "tool_calls"
    assert json.loads("".join(arguments)) == {"city": "Bern"}


def test_arguments_go_out_as_far_as_they_are_written(client: openai.OpenAI, api_runner: Runner) -> None:
    asked, answer = generation(api_runner), Answer(1, lambda request: None)
    stream = ChoiceStream(0, Choice(asked, answer, 0), ResponseWriter("chat", MODEL))
    calls = []
    for text in (
        "Well.\n<tool",
        '_call>\n{"name": "get_w',
        'eather", "arg',
        'uments": {"ci',
        'ty": "Bern"}}\n</tool_call>',
    ):
        answer.apply(TextChunk(1, text, 1))
        deltas = [piece["choices"][0]["delta"] for piece in stream.pieces()]
        calls.append([part["function"].get("arguments") for delta in deltas for part in delta.get("tool_calls", ())])
    assert calls == [[], [], [""], ['{"ci'], ['ty": "Bern"}']]
    answer.apply(Finished(1, "end", AnswerStats(1, 0, 5, 0, 0, 0, 1)))
    (end,) = stream.pieces()
    assert end["choices"][0]["finish_reason"] == "tool_calls" and stream.has_ended and not stream.pieces()


def test_results_of_tools_come_back_into_the_prompt(client: openai.OpenAI) -> None:
    function = {"name": "get_weather", "arguments": '{"city": "Bern"}'}
    called: Any = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "a1", "type": "function", "function": function}],
    }
    result: Any = {"role": "tool", "tool_call_id": "a1", "content": "dry"}
    done = client.chat.completions.create(model=MODEL, messages=[*BEFORE[:1], called, result], tools=[WEATHER])
    assert done.choices[0].message.content == "You said: <tool_response>\ndry\n</tool_response> "
    counted = client.post("/tokenize", body={"messages": [*BEFORE[:1], called, result]}, cast_to=object)
    assert counted["count"] > 0
    again = client.chat.completions.create(model=MODEL, messages=[*BEFORE[:1], called, result])
    assert "dry" in again.choices[0].message.content


@pytest.mark.parametrize("arguments", ['{"city": "Bern"}', {"city": "Bern"}])
def test_arguments_come_back_as_a_text_or_as_what_it_says(client: openai.OpenAI, arguments: Any) -> None:
    called = {"id": "a1", "function": {"name": "get_weather", "arguments": arguments}}
    talk: Any = [*BEFORE[:1], {"role": "assistant", "tool_calls": [called]}]
    request = read_body(ChatRequest, json.dumps({"messages": talk}).encode())
    (call,) = request.messages[1].tool_calls or ()
    assert call.as_turns_have_it()["function"]["arguments"] == {"city": "Bern"}


def test_a_tool_without_arguments_and_one_that_tells_nothing_come_back(client: openai.OpenAI) -> None:
    """Go writes null for what is empty: the second request of every such agent was refused."""
    called = {"id": "a1", "type": "function", "function": {"name": "get_time", "arguments": None}}
    result = {"role": "tool", "tool_call_id": "a1", "content": None}
    talk: Any = [*BEFORE[:1], {"role": "assistant", "content": None, "tool_calls": [called]}, result]
    odd: Any = {"name": "get_time", "parameters": {"type": "object", "properties": None, "required": None}}
    done = client.chat.completions.create(model=MODEL, messages=talk, tools=[{"type": "function", "function": odd}])
    assert done.choices[0].message.content == "You said: <tool_response>\n\n</tool_response> "


def test_a_schema_that_allows_any_value_still_asks_for_json() -> None:
    """It was taken for no schema at all, and the answer was prose."""
    form = {"type": "json_schema", "json_schema": {"name": "any", "schema": {}}}
    request = read_body(ChatRequest, json.dumps({"messages": BEFORE, "response_format": form}).encode())
    assert request.grammar == Grammar("json", "{}")


def test_some_of_the_tools_can_be_allowed(api_runner: Runner) -> None:
    def allowed(mode: str, *names: str) -> dict[str, Any]:
        tools = [{"type": "function", "function": {"name": name}} for name in names]
        return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}

    free = generation(api_runner, tool_choice=allowed("auto", "get_time"))
    assert set(free.tools.tools) == {"get_time"} and "get_weather" not in free.prompt and not free.tools.is_forced
    assert generation(api_runner, tool_choice=allowed("required", "get_time")).tools.is_forced
    for wrong in (allowed("auto", "another"), allowed("none", "get_time"), allowed("auto"), {"type": "allowed_tools"}):
        with pytest.raises(DeckError) as caught:
            generation(api_runner, tool_choice=wrong)
        assert caught.value.params["field"] == "tool_choice"


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
    ({"tools": [WEATHER], "tool_choice": "sometimes"}, "tool_choice"),
    ({"tools": [WEATHER], "response_format": {"type": "json_object"}}, "response_format"),
    ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
    ({"tools": [WEATHER], "model": "Ada"}, "tools"),
    ({"functions": [WEATHER["function"]]}, "functions"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=lambda one: str(one)[:50])
def test_what_cannot_be_is_refused_by_its_name(client: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": MODEL, "messages": says("hi"), "extra_body": fields})
    assert caught.value.param == param or str(caught.value.param).startswith(param)


def generation(runner: Runner, **fields: Any) -> Any:
    body = {"messages": says("hi"), "tools": [WEATHER, TIME], **fields}
    request = read_body(ChatRequest, json.dumps(body).encode())
    return read_chat_request(request, read_served_model(runner), None)


def test_a_call_that_has_to_be_is_begun_in_the_prompt_and_held_to_its_schema(
    client: openai.OpenAI, api_runner: Runner
) -> None:
    free, forced = generation(api_runner), generation(api_runner, tool_choice="required")
    # Its template knows no tools.
    assert free.options.grammar.kind == "calls" and "<tool_call>" in free.options.shown
    assert forced.prompt.endswith("<tool_call>\n") and not free.prompt.endswith("<tool_call>\n")
    assert {one["properties"]["name"]["const"] for one in json.loads(forced.options.grammar.text)["anyOf"]} == {
        "get_weather",
        "get_time",
    }
    name = {"type": "function", "function": {"name": "get_time"}}
    (named,) = json.loads(generation(api_runner, tool_choice=name).options.grammar.text)["anyOf"]
    assert named["properties"]["name"]["const"] == "get_time"
    parts, (call,) = forced.visible_message('{"name": "get_time", "arguments": {}}', True)
    assert parts.answer == "" and (call.name, call.arguments) == ("get_time", "{}")
    assert forced.visible_message('{"name": "get_ti', False)[1] == ()


def test_tools_count_where_a_request_is_far_too_long(client: openai.OpenAI, api_runner: Runner) -> None:
    large = {"type": "function", "function": {"name": "f", "description": "words " * 40_000}}
    with pytest.raises(DeckError) as caught:
        generation(api_runner, tools=[large])
    assert caught.value.key in ("api_far_too_long", "api_too_long")
