"""OpenAI's Responses API as its own SDK uses it, with an engine that has no model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from core.api.dialects.responses import ResponsesExchange
from core.api.dialects.responses_request import chat_body
from core.api.errors import ApiError, body_of
from core.api.generation import Usage
from core.engine.runner import Runner
from tests.support.api_server import MODEL, api_server, error

WAIT_S = 60.0


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none is needed", max_retries=0, timeout=WAIT_S)


def test_a_text_is_answered_whole(client: openai.OpenAI) -> None:
    done = client.responses.create(model=MODEL, input="hello there", max_output_tokens=50)
    assert (done.output_text, done.status, done.model, done.store) == (
        "You said: hello there ",
        "completed",
        MODEL,
        False,
    )
    assert [item.type for item in done.output] == ["message"]
    assert done.usage is not None and done.usage.output_tokens == 4
    assert done.usage.total_tokens == done.usage.input_tokens + 4


def test_a_talk_is_brought_along(client: openai.OpenAI) -> None:
    talk: Any = [
        {"role": "user", "content": "hi"},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Hi.", "annotations": []}],
        },
        {"role": "user", "content": [{"type": "input_text", "text": "hello"}]},
    ]
    assert client.responses.create(model=MODEL, input=talk).output_text == "You said: hello "
    done = client.responses.create(model=MODEL, input="hello", instructions="Be brief.")
    assert "Be brief." in done.output_text and done.instructions == "Be brief."


def test_a_response_comes_as_events(client: openai.OpenAI) -> None:
    with client.responses.stream(model=MODEL, input="think=2 words=30") as stream:
        kinds = [event.type for event in stream]
        whole = stream.get_final_response()
    thought, message = whole.output
    assert (thought.type, message.type) == ("reasoning", "message")
    assert whole.output_text == "one two three four five " * 6
    assert thought.content and thought.content[0].text.split() == ["thought0", "thought1"]
    assert kinds[:2] == ["response.created", "response.in_progress"] and kinds[-1] == "response.completed"
    assert kinds.count("response.output_item.added") == kinds.count("response.output_item.done") == 2
    assert whole.usage is not None and whole.usage.output_tokens > 30


def test_settings_reach_the_engine(client: openai.OpenAI) -> None:
    said = client.responses.create(
        model=MODEL, input="settings", temperature=0.25, top_p=0.5, max_output_tokens=99
    ).output_text
    for setting in ("temperature=0.25", "top_p=0.5", "max_new_tokens=99"):
        assert setting in said


def test_what_would_need_answers_of_before_is_refused(client: openai.OpenAI, url: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=MODEL, input="x", previous_response_id="resp_1")
    assert caught.value.param == "previous_response_id"
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="another", input="x")
    refused = httpx2.post(f"{url}/responses", json={"model": MODEL, "input": [{"type": "item_reference", "id": "x"}]})
    assert refused.status_code == 400 and error(refused)["code"] == "unsupported_content"
    assert httpx2.get(f"{url}/v1/responses/resp_1").status_code == 404


def test_a_stream_that_fails_ends_with_an_error(client: openai.OpenAI) -> None:
    with (
        pytest.raises(openai.APIError) as caught,
        client.responses.stream(model=MODEL, input="fail one two three four") as stream,
    ):
        list(stream)
    assert caught.value.code == "model_not_loaded"


def test_without_a_key_nothing_is_told_where_one_is_needed(api_runner: Runner, api_home: Path) -> None:
    with api_server(api_runner, api_home, needs_key=lambda: True) as url:
        for path in ("/v1/responses", "/responses"):
            assert httpx2.post(url + path, json={"model": MODEL, "input": "x"}).status_code == 401


# Translation alone ----------------------------------------------------------------------------------------------------

TOOL = {"type": "function", "name": "weather", "description": "Tells it.", "parameters": {"type": "object"},
        "strict": True}  # fmt: skip


def test_tools_and_their_results_become_ours() -> None:
    talk = [
        {"role": "user", "content": "Weather?"},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "I ask."}]},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"at":"Oslo"}'},
        {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": '{"at":"Rome"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "Snow."},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "Sun."}]},
    ]
    made = chat_body({"input": talk, "tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False})
    assert [message["role"] for message in made["messages"]] == ["user", "assistant", "tool", "tool"]
    said = made["messages"][1]
    assert said["reasoning_content"] == "I ask." and [call["id"] for call in said["tool_calls"]] == ["c1", "c2"]
    assert made["messages"][3] == {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "Sun."}]}
    assert made["tools"][0]["function"]["name"] == "weather" and made["tool_choice"] == "required"
    assert made["parallel_tool_calls"] is False
    named = chat_body({"input": "x", "tools": [TOOL], "tool_choice": {"type": "function", "name": "weather"}})
    assert named["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "weather"}]}
    some = chat_body({"input": "x", "tools": [TOOL, TOOL | {"name": "clock"}], "tool_choice": allowed})
    assert [one["function"]["name"] for one in some["tools"]] == ["weather"] and some["tool_choice"] == "auto"


def test_a_schema_and_an_effort_become_ours() -> None:
    wanted = {"type": "json_schema", "name": "city", "schema": {"type": "object"}, "strict": True}
    made = chat_body({"input": "x", "text": {"format": wanted}, "reasoning": {"effort": "low", "summary": "auto"}})
    assert made["response_format"] == {
        "type": "json_schema", "json_schema": {"name": "city", "schema": {"type": "object"}, "strict": True}
    }  # fmt: skip
    assert made["reasoning_effort"] == "low"


@pytest.mark.parametrize(
    "given",
    [
        {"input": 5},
        {"input": [5]},
        {"input": [{"type": "message", "role": "user", "content": 5}]},
        {"input": "x", "instructions": 5},
        {"input": "x", "reasoning": "low"},
        {"input": "x", "text": {"format": "json"}},
        {"input": "x", "tools": [{"type": "web_search"}]},
        {"input": "x", "background": True},
        {"input": [{"type": "reasoning", "content": [{"text": 5}]}]},
    ],
)
def test_what_cannot_be_meant_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ApiError):
        chat_body(given)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
    ],
)
def test_an_error_names_the_field_that_was_sent(given: dict[str, Any], field: str) -> None:
    """What was left out or too small was once blamed on `messages` or `max_tokens`, which nobody had sent."""
    with pytest.raises(ApiError) as refused:
        chat_body(given)
    assert body_of(refused.value, "en")["error"]["param"] == field


def test_calls_of_functions_come_as_items() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}
    exchange = ResponsesExchange()
    exchange.translate({"input": "x", "tools": [TOOL]})
    frames = [*exchange.begin(Usage(9, 0, 0))]
    calls = [
        {"index": 0, "id": "c1", "function": {"name": "weather", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"at":"Oslo"}'}},
        {"index": 1, "id": "c2", "function": {"name": "weather", "arguments": "{}"}},
    ]
    for delta in ({"content": "See:"}, *({"tool_calls": [call]} for call in calls)):
        frames += exchange.pieces({"choices": [{"delta": delta, "finish_reason": None}], "usage": None})
    frames += exchange.pieces({"choices": [{"delta": {}, "finish_reason": "tool_calls"}], "usage": None})
    frames += [*exchange.pieces({"choices": [], "usage": usage}), *exchange.end()]
    events = [json.loads(frame.partition("data: ")[2]) for frame in frames]
    assert [one["sequence_number"] for one in events] == list(range(len(events)))
    output = events[-1]["response"]["output"]
    assert [(item["type"], item["status"]) for item in output] == [
        ("message", "completed"), ("function_call", "completed"), ("function_call", "completed")
    ]  # fmt: skip
    assert (output[1]["call_id"], output[1]["arguments"], output[2]["call_id"]) == ("c1", '{"at":"Oslo"}', "c2")
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    choice = {"message": {"role": "assistant", "content": None, "tool_calls": [call]}, "finish_reason": "tool_calls"}
    whole = ResponsesExchange()
    whole.translate({"input": "x"})
    assert whole.whole({"choices": [choice], "usage": usage})["output"][0]["name"] == "weather"
