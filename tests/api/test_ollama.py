"""Ollama's API as its own client uses it, with an engine that has no model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import ollama
import pytest

from core.api.dialects.ollama import OllamaExchange
from core.api.dialects.ollama_request import NothingAsked, chat_body, generate_body
from core.api.dialects.reading import arguments_of
from core.api.errors import ApiError
from core.engine.runner import Runner
from core.standby.loader import ModelLoader
from tests.support.api_server import MODEL, api_server
from tests.support.processes import wait_until

WAIT_S = 60.0


@pytest.fixture(scope="module")
def url(api_home: Path, api_runner: Runner) -> Iterator[str]:
    with api_server(api_runner, api_home, loader=ModelLoader(api_runner)) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> ollama.Client:
    return ollama.Client(url, timeout=WAIT_S)


def asked(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def test_the_models_are_listed_and_shown(client: ollama.Client, url: str) -> None:
    models = {model.model: model for model in client.list().models}
    assert {MODEL, "Ada"} <= set(models) and models[MODEL].size and len(models[MODEL].digest or "") == 64
    details = models[MODEL].details
    assert details is not None and details.quantization_level == "4 bit, group 32" and details.family == "llama"
    assert models["Ada"].details is not None and models["Ada"].details.parent_model == MODEL
    shown = client.show(MODEL)
    assert shown.modelinfo is not None and shown.modelinfo["llama.context_length"] == 1024
    assert "[INST]" in (shown.template or "") and "completion" in (shown.capabilities or ())
    assert client.show(f"{MODEL}:latest").details == shown.details
    assert [model.name for model in client.ps().models] == [MODEL]
    assert httpx2.get(f"{url}/api/version").json()["version"].count(".") == 2


def test_when_an_idle_model_is_unloaded_is_told(api_runner: Runner, api_home: Path) -> None:
    """It was said to stay forever, and to be from 1970."""
    left_s: list[float | None] = [None, 7200.0]
    with api_server(api_runner, api_home, unload_s=lambda: left_s.pop(0)) as url:
        stays, goes = (ollama.Client(host=url).ps().models[0] for _ in range(2))
    assert stays.expires_at is not None and stays.expires_at.year == 9999
    assert goes.expires_at is not None and goes.expires_at.year < 9999


def test_a_chat_is_answered_whole_and_in_pieces(client: ollama.Client) -> None:
    done = client.chat(MODEL, asked("hello there"))
    assert (done.message.content, done.message.role, done.done_reason) == (
        "You said: hello there ",
        "assistant",
        "stop",
    )
    assert done.eval_count == 4 and (done.prompt_eval_count or 0) > 3 and (done.eval_duration or 0) > 0
    parts = list(client.chat(f"{MODEL}:latest", asked("words=30 wait=0.05"), stream=True))
    assert "".join(part.message.content or "" for part in parts) == "one two three four five " * 6
    assert [part.done for part in parts[-2:]] == [False, True] and len(parts) > 2
    assert parts[-1].eval_count == 30


def test_a_text_is_answered_and_a_raw_one_goes_on(client: ollama.Client) -> None:
    assert client.generate(MODEL, "hello").response == "You said: hello "
    assert "Be brief." in (client.generate(MODEL, "hello", system="Be brief.").response or "")
    parts = list(client.generate(MODEL, "words=3", raw=True, stream=True))
    assert "".join(part.response or "" for part in parts) == "one two three " and parts[-1].done_reason == "stop"


def test_a_thought_stands_apart(client: ollama.Client) -> None:
    done = client.chat(MODEL, asked("think=2 words=1"), think=True)
    assert (done.message.thinking or "").split() == ["thought0", "thought1"] and done.message.content == "one "
    parts = list(client.generate(MODEL, "think=2 words=1", think=True, stream=True))
    assert "".join(part.thinking or "" for part in parts).split() == ["thought0", "thought1"]


def test_options_reach_the_engine(client: ollama.Client) -> None:
    options = {"temperature": 0.25, "top_k": 40, "num_predict": 99, "stop": ["END"], "num_ctx": 8192, "seed": 7,
               "repeat_penalty": 1.1, "num_gpu": 99}  # fmt: skip
    said = client.chat(MODEL, asked("settings"), options=options).message.content or ""
    for setting in ("temperature=0.25", "top_k=40", "max_new_tokens=99", "stop=('END',)", "seed=7",
                    "repetition_penalty=1.1"):  # fmt: skip
        assert setting in said
    for endless in (-2, -1, 0):
        answer = client.chat(MODEL, asked("settings"), options={"num_predict": endless})
        assert "max_new_tokens=1024" in (answer.message.content or "")


def test_a_model_is_loaded_by_asking_nothing(client: ollama.Client, url: str, api_runner: Runner) -> None:
    wait_until(api_runner.sleep)  # A request is left a moment after its answer has come.
    done = client.generate(MODEL)
    assert (done.done, done.done_reason) == (True, "load") and api_runner.state.phase == "ready"
    assert client.chat(MODEL, []).done_reason == "load"


def test_errors_are_in_ollamas_own_shape(client: ollama.Client, url: str) -> None:
    for ask in (lambda: client.chat("another", asked("x")), lambda: client.show("another"),
                lambda: client.generate("another", "x", stream=False)):  # fmt: skip
        with pytest.raises(ollama.ResponseError) as caught:
            ask()
        assert caught.value.status_code == 404 and MODEL in caught.value.error
    with pytest.raises(ollama.ResponseError) as refused:
        client.generate(MODEL, "x", suffix="y")
    assert refused.value.status_code == 400 and "suffix" in refused.value.error
    for path in ("/api/pull", "/api/embed", "/api/create"):
        assert httpx2.post(url + path, json={"model": MODEL}).status_code == 404
    assert httpx2.get(f"{url}/api/chat").status_code == 405


def test_a_stream_that_fails_ends_with_an_error(client: ollama.Client) -> None:
    said = ""
    with pytest.raises(ollama.ResponseError):
        for part in client.chat(MODEL, asked("fail one two three four"), stream=True):
            said += part.message.content or ""
    assert said == "You said: fail one "


def test_without_a_key_nothing_is_told_where_one_is_needed(api_runner: Runner, api_home: Path) -> None:
    with api_server(api_runner, api_home, needs_key=lambda: True) as url:
        for path in ("/api/tags", "/api/version", "/api/ps"):
            assert httpx2.get(url + path).status_code == 401
        for path in ("/api/chat", "/api/generate", "/api/show"):
            refused = httpx2.post(url + path, json={"model": MODEL})
            assert refused.status_code == 401 and isinstance(refused.json()["error"], str)


# Translation alone ----------------------------------------------------------------------------------------------------


def test_tools_and_their_results_become_ours() -> None:
    call = {"function": {"name": "weather", "arguments": {"at": "Oslo"}}}
    talk = [
        *asked("Weather?"),
        {"role": "assistant", "content": "", "tool_calls": [call, call]},
        {"role": "tool", "tool_name": "weather", "content": "Snow."},
        {"role": "tool", "tool_name": "weather", "content": "Rain."},
    ]
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    made = chat_body({"model": "x:latest", "messages": talk, "tools": [tool], "format": "json"})
    calls = made["messages"][1]["tool_calls"]
    assert calls[0]["function"] == {"name": "weather", "arguments": '{"at":"Oslo"}'}
    assert [message["tool_call_id"] for message in made["messages"][2:]] == [one["id"] for one in calls]
    assert (made["model"], made["stream"], made["tools"]) == ("x:latest", True, [tool])
    assert made["response_format"] == {"type": "json_object"}


@pytest.mark.parametrize(
    "given",
    [
        {"messages": "x"},
        {"messages": [1]},
        {"messages": asked("x"), "options": 5},
        {"messages": [{"role": "user", "content": "x", "images": ["AAAA"]}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"function": 5}]}]},
        {"messages": asked("x"), "format": "xml"},
        {"messages": asked("x"), "tools": 5},
    ],
)
def test_what_cannot_be_meant_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ApiError):
        chat_body(given)


def test_what_a_text_cannot_have_is_refused() -> None:
    for more in ({"context": [1]}, {"template": "x"}, {"raw": True, "format": "json"}):
        with pytest.raises(ApiError):
            generate_body({"prompt": "x"} | more)
    with pytest.raises(NothingAsked):
        generate_body({"model": "x"})
    assert generate_body({"prompt": "a", "suffix": "c"})["suffix"] == "c", "models that can fill in are asked to"


def test_log_probabilities_are_listed_as_they_come() -> None:
    told = {"content": [{"token": "one", "logprob": -0.5, "bytes": [111], "top_logprobs": []}]}
    choice = {"delta": {"content": "one"}, "logprobs": told, "finish_reason": None}
    (part,) = OllamaExchange("chat").pieces({"choices": [choice], "usage": None})
    assert json.loads(part)["logprobs"] == told["content"]
    assert chat_body({"messages": asked("x"), "logprobs": True, "top_logprobs": 2})["top_logprobs"] == 2


def test_calls_of_tools_come_whole() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 5}
    exchange = OllamaExchange("chat")
    lines = []
    for delta in (
        {
            "tool_calls": [
                {"index": 0, "id": "c1", "type": "function", "function": {"name": "weather", "arguments": ""}}
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"at":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"Oslo"}'}}]},
    ):
        lines += exchange.pieces({"choices": [{"delta": delta, "finish_reason": None}], "usage": None})
    lines += exchange.pieces({"choices": [{"delta": {}, "finish_reason": "tool_calls"}], "usage": None})
    lines += exchange.pieces({"choices": [], "usage": usage})
    called, last = map(json.loads, lines)
    assert called["message"]["tool_calls"] == [{"function": {"name": "weather", "arguments": {"at": "Oslo"}}}]
    assert (last["done"], last["done_reason"], last["eval_count"]) == (True, "stop", 5)


@pytest.mark.parametrize("written", ['{"city": "Be', "[1]", "[" * 5000])
def test_arguments_that_are_no_object_are_none(written: str) -> None:
    assert arguments_of({"arguments": written}) == {}


def test_options_make_no_other_request_of_a_chat() -> None:
    asked = {"messages": [{"role": "user", "content": "hi"}], "options": {"prompt": "x", "n": 3, "top_k": 5}}
    made = chat_body(asked)
    assert made["top_k"] == 5 and not {"prompt", "n"} & set(made)


def test_a_name_that_is_no_text_is_refused(url: str) -> None:
    """It came back as it was in an answer that only let the model go."""
    for path, more in (("/api/chat", {"messages": []}), ("/api/generate", {"prompt": ""})):
        refused = httpx2.post(url + path, json={"model": [None], "keep_alive": 0, **more})
        assert refused.status_code == 400 and "model" in refused.json()["error"]
