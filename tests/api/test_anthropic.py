"""Anthropic's Messages API as its own SDK uses it, with an engine that has no model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import pytest

from core.access.keys import KeyStore
from core.api.dialects.anthropic import AnthropicExchange
from core.api.dialects.anthropic_request import chat_body
from core.api.errors import ApiError
from core.api.generation import Usage
from core.engine.runner import Runner
from tests.support.api_server import MODEL, api_server

WAIT_S = 60.0


@pytest.fixture(scope="module")
def client(url: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=url, api_key="none is needed", max_retries=0, timeout=WAIT_S)


def asked(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def test_a_message_is_answered_whole(client: anthropic.Anthropic) -> None:
    done = client.messages.create(model=MODEL, max_tokens=50, messages=asked("hello there"))
    assert [(block.type, block.text) for block in done.content] == [("text", "You said: hello there ")]
    assert (done.role, done.model, done.stop_reason) == ("assistant", MODEL, "end_turn")
    assert done.usage.output_tokens == 4 and done.usage.input_tokens > 0 and done.id.startswith("msg_")


def test_a_message_comes_as_events(client: anthropic.Anthropic) -> None:
    with client.messages.stream(model=MODEL, max_tokens=50, messages=asked("words=30")) as stream:
        kinds = [event.type for event in stream]
        whole = stream.get_final_message()
    assert whole.content[0].text == "one two three four five " * 6
    assert whole.usage.output_tokens == 30 and whole.usage.input_tokens > 0 and whole.stop_reason == "end_turn"
    own = [kind for kind in kinds if kind != "text"]
    assert (own[0], own[1], own[-3:]) == (
        "message_start",
        "content_block_start",
        ["content_block_stop", "message_delta", "message_stop"],
    )
    assert "content_block_delta" in own


@pytest.mark.parametrize("stream", [False, True])
def test_a_thought_is_a_block_of_its_own(client: anthropic.Anthropic, stream: bool) -> None:
    wanted: dict[str, Any] = {"model": MODEL, "max_tokens": 400, "messages": asked("think=3 words=2"),
                              "thinking": {"type": "enabled", "budget_tokens": 100}}  # fmt: skip
    if stream:
        with client.messages.stream(**wanted) as events:
            done = events.get_final_message()
    else:
        done = client.messages.create(**wanted)
    thought, text = done.content
    assert (thought.type, text.type, text.text) == ("thinking", "text", "one two ")
    assert thought.thinking.split() == ["thought0", "thought1", "thought2"]


def test_a_thought_can_be_left_out(client: anthropic.Anthropic) -> None:
    thinking: Any = {"type": "enabled", "budget_tokens": 100, "display": "omitted"}
    with client.messages.stream(
        model=MODEL, max_tokens=400, messages=asked("think=3 words=2"), thinking=thinking
    ) as stream:
        thought, text = stream.get_final_message().content
    assert (thought.thinking, text.text) == ("", "one two ")


def test_settings_reach_the_engine(client: anthropic.Anthropic) -> None:
    done = client.messages.create(
        model=MODEL, max_tokens=99, messages=asked("settings"), stop_sequences=["END"],
        extra_body={"top_k": 40, "temperature": 0.25, "top_p": 0.5},
    )  # fmt: skip
    said = done.content[0].text
    for setting in ("temperature=0.25", "top_p=0.5", "top_k=40", "max_new_tokens=99", "stop=('END',)"):
        assert setting in said


@pytest.mark.parametrize("stream", [False, True])
def test_the_sequence_that_ended_a_message_is_named(client: anthropic.Anthropic, stream: bool) -> None:
    wanted: dict[str, Any] = {"model": MODEL, "max_tokens": 50, "messages": asked("words=9"),
                              "stop_sequences": ["nine", "four"]}  # fmt: skip
    if stream:
        with client.messages.stream(**wanted) as events:
            done = events.get_final_message()
    else:
        done = client.messages.create(**wanted)
    assert done.content[0].text == "one two three "
    assert (done.stop_reason, done.stop_sequence) == ("stop_sequence", "four")


def test_tokens_are_counted_also_of_what_is_too_long(client: anthropic.Anthropic) -> None:
    short = client.messages.count_tokens(model=MODEL, messages=asked("hello"))
    system = client.messages.count_tokens(model=MODEL, messages=asked("hello"), system="Be brief.")
    long = client.messages.count_tokens(model=MODEL, messages=asked("hello " * 3000))
    assert 5 < short.input_tokens < system.input_tokens < 1024 < long.input_tokens


def test_a_character_answers_by_its_name(client: anthropic.Anthropic) -> None:
    done = client.messages.create(model="Ada", max_tokens=50, messages=asked("hello"))
    assert "Speak only as Ada." in done.content[0].text


def test_the_models_are_listed_as_anthropic_lists_them(client: anthropic.Anthropic) -> None:
    listed = list(client.models.list())
    assert listed[0].id == MODEL and {"Ada", "Maren"} <= {one.display_name for one in listed}


def test_errors_are_in_anthropics_own_shape(client: anthropic.Anthropic, url: str) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(model="another", max_tokens=5, messages=asked("x"))
    assert missing.value.type == "not_found_error" and MODEL in str(missing.value)
    with pytest.raises(anthropic.BadRequestError) as long:
        client.messages.create(model=MODEL, max_tokens=5, messages=asked("hello " * 3000))
    assert long.value.type == "invalid_request_error"
    with pytest.raises(anthropic.BadRequestError):
        picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
        client.messages.create(model=MODEL, max_tokens=5, messages=[{"role": "user", "content": [picture]}])
    assert httpx2.get(f"{url}/v1/messages").json()["type"] == "error"
    assert httpx2.post(f"{url}/messages", json={}).status_code == 400


def test_a_stream_that_fails_ends_with_an_error(client: anthropic.Anthropic) -> None:
    said = ""
    with pytest.raises(anthropic.APIStatusError) as caught:
        with client.messages.stream(model=MODEL, max_tokens=50, messages=asked("fail one two three four")) as stream:
            for text in stream.text_stream:
                said += text
    assert said == "You said: fail one " and caught.value.type == "overloaded_error"


def test_the_key_may_come_in_anthropics_own_header(api_runner: Runner, api_home: Path) -> None:
    key = KeyStore(api_home / "keys.json").make("for anthropic")
    with api_server(api_runner, api_home, needs_key=lambda: True) as url:
        for path in ("/v1/messages", "/messages", "/v1/messages/count_tokens"):
            body = {"model": MODEL, "max_tokens": 5, "messages": asked("hi")}
            refused = httpx2.post(url + path, json=body)
            assert refused.status_code == 401 and refused.json()["error"]["type"] == "authentication_error"
            wrong = httpx2.post(url + path, json=body, headers={"x-api-key": "ld-wrong"})
            assert wrong.status_code == 401
            for header in ({"x-api-key": key}, {"authorization": f"Bearer {key}"}):
                assert httpx2.post(url + path, json=body, headers=header).status_code == 200


# Translation alone ----------------------------------------------------------------------------------------------------

TOOL = {"name": "weather", "description": "Tells it.", "input_schema": {"type": "object", "properties": {"at": {}}}}


def test_tools_and_their_results_become_ours() -> None:
    talk = [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "I ask.", "signature": "x"},
                {"type": "text", "text": "Let me see."},
                {"type": "tool_use", "id": "t1", "name": "weather", "input": {"at": "Oslo"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "Snow."}]},
                {"type": "text", "text": "And tomorrow?"},
            ],
        },
    ]
    made = chat_body({"messages": talk, "tools": [TOOL], "tool_choice": {"type": "any"}, "system": "Be brief."})
    assert [message["role"] for message in made["messages"]] == ["system", "user", "assistant", "tool", "user"]
    said = made["messages"][2]
    assert said["reasoning_content"] == "I ask." and said["content"] == [{"type": "text", "text": "Let me see."}]
    assert said["tool_calls"] == [
        {"id": "t1", "type": "function", "function": {"name": "weather", "arguments": '{"at":"Oslo"}'}}
    ]
    assert made["messages"][3] == {"role": "tool", "tool_call_id": "t1", "content": "Snow."}
    assert made["tools"] == [
        {"type": "function", "function": {"name": "weather", "description": "Tells it.",
                                          "parameters": TOOL["input_schema"]}}
    ]  # fmt: skip
    assert made["tool_choice"] == "required"
    named = chat_body({"messages": talk, "tools": [TOOL], "tool_choice": {"type": "tool", "name": "weather"}})
    assert named["tool_choice"] == {"type": "function", "function": {"name": "weather"}}


def test_several_messages_of_one_speaker_are_one() -> None:
    made = chat_body({"messages": [*asked("a"), *asked("b"), {"role": "assistant", "content": "c"}]})
    assert [message["role"] for message in made["messages"]] == ["user", "assistant"]
    assert "".join(part["text"] for part in made["messages"][0]["content"]) == "a\n\nb"
    assert made["continue_final_message"], "the answer goes on from what the assistant has said"


def test_thousands_of_messages_of_one_speaker_are_each_copied_once() -> None:
    """Joined one after the other they kept Python's lock for minutes."""
    many = 60_000
    made = chat_body({"messages": [{"role": "user", "content": f"{place}"} for place in range(many)]})
    (message,) = made["messages"]
    assert len(message["content"]) == 2 * many - 1


@pytest.mark.parametrize("tokens", [0, -1, "many", True])
def test_a_thought_of_no_tokens_is_refused_by_the_name_that_was_sent(tokens: object) -> None:
    thinking = {"type": "enabled", "budget_tokens": tokens}
    with pytest.raises(ApiError) as refused:
        chat_body({"messages": asked("x"), "thinking": thinking})
    assert refused.value.params["field"] == "thinking.budget_tokens"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, {"enable_thinking": False}),
        ({"thinking": {"type": "disabled"}}, {"enable_thinking": False}),
        ({"thinking": {"type": "adaptive"}}, {"enable_thinking": True}),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 1024}},
            {"enable_thinking": True, "thinking_budget": 1024},
        ),
        ({"output_config": {"effort": "max"}}, {"reasoning_effort": "xhigh"}),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
            {"response_format": {"type": "json_schema",
                                 "json_schema": {"name": "answer", "schema": {"type": "object"}}}},
        ),
    ],
)  # fmt: skip
def test_thinking_and_output_become_ours(given: dict[str, Any], wanted: dict[str, Any]) -> None:
    made = chat_body({"messages": asked("x"), **given})
    assert {name: made.get(name) for name in wanted} == wanted


@pytest.mark.parametrize(
    "given",
    [
        {"messages": "x"},
        {"messages": [1]},
        {"messages": [{"role": "robot", "content": "x"}]},
        {"messages": [{"role": "user", "content": [1]}]},
        {"messages": [{"role": "assistant", "content": [{"type": "thinking", "thinking": 5}]}]},
        {"messages": asked("x"), "system": [{"type": "image"}]},
        {"messages": asked("x"), "system": 5},
        {"messages": asked("x"), "thinking": "yes"},
        {"messages": asked("x"), "output_config": 5},
        {"messages": asked("x"), "output_config": {"format": {"type": "xml"}}},
        {"messages": asked("x"), "tools": {}},
        {"messages": asked("x"), "tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        {"messages": asked("x"), "tools": [{"name": 5}]},
        {"messages": asked("x"), "tools": [TOOL], "tool_choice": {"type": "some"}},
        {"messages": asked("x"), "tools": [TOOL], "tool_choice": "auto"},
        {"messages": asked("x"), "mcp_servers": [{"name": "x"}]},
    ],
)
def test_what_cannot_be_meant_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ApiError):
        chat_body(given)


def test_calls_of_tools_come_as_blocks() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}}
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"at":"Oslo"}'}}
    message = {"role": "assistant", "content": "See:", "tool_calls": [call]}
    exchange = AnthropicExchange()
    whole = exchange.whole({"choices": [{"message": message, "finish_reason": "tool_calls"}], "usage": usage})
    assert whole["stop_reason"] == "tool_use" and whole["content"][1] == {
        "type": "tool_use", "id": "c1", "name": "weather", "input": {"at": "Oslo"}}  # fmt: skip
    assert (whole["usage"]["input_tokens"], whole["usage"]["cache_read_input_tokens"]) == (5, 4)
    frames = [*exchange.begin(Usage(9, 0, 0))]
    for delta in (
        {"content": "See:"},
        {"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "weather", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"at":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"Oslo"}'}}]},
        {"tool_calls": [{"index": 1, "id": "c2", "function": {"name": "weather", "arguments": "{}"}}]},
    ):
        frames += exchange.pieces({"choices": [{"delta": delta, "finish_reason": None}], "usage": None})
    frames += exchange.pieces({"choices": [{"delta": {}, "finish_reason": "tool_calls"}], "usage": None})
    frames += [*exchange.pieces({"choices": [], "usage": usage}), *exchange.end()]
    events = [json.loads(frame.partition("data: ")[2]) for frame in frames]
    started = [one["content_block"] for one in events if one["type"] == "content_block_start"]
    assert [block["type"] for block in started] == ["text", "tool_use", "tool_use"]
    parts = [one for one in events if one["type"] == "content_block_delta" and one["index"] == 1]
    assert "".join(one["delta"]["partial_json"] for one in parts) == '{"at":"Oslo"}'
    assert [one["index"] for one in events if one["type"] == "content_block_stop"] == [0, 1, 2]
    assert events[-2]["delta"]["stop_reason"] == "tool_use"
