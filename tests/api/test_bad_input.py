"""What nobody should send to the API, and everybody does: the right status, a sentence, and the server goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from core.access.keys import KeyStore
from core.api.prompts import read_chat_request
from core.engine.runner import Runner
from tests.support.api_server import MODEL, api_server, error, raw, received
from tests.support.damaged import TOO_HARD, damage, giving_up

HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
# Deeper than a schema may be. It once was too deep to be counted, and the request failed as the server's fault.
DEEP: dict[str, Any] = {}
for _ in range(200):
    DEEP = {"type": "object", "properties": {"inner": DEEP}}
# The server of these tests waits so long for a body.
BODY_S = 1.0


@pytest.fixture(scope="module")
def url(api_home: Path, api_runner: Runner) -> Iterator[str]:
    with api_server(api_runner, api_home, body_s=BODY_S) as url:
        yield url


@pytest.mark.parametrize("body", [b"", b"{", b"nonsense", b"[" * 100_000, b'{"messages": "\xff"}', b"NaN"])
def test_what_is_no_json(url: str, body: bytes) -> None:
    response = httpx2.post(url + CHAT, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert error(response)["code"] in ("invalid_json", "invalid_value")


WRONG: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {}, "messages"),
    (CHAT, {"messages": []}, "messages"),
    (CHAT, {"messages": "hello"}, "messages"),
    (CHAT, {"messages": [5]}, "messages.0"),
    (CHAT, {"messages": [{"role": "user"}]}, "messages.0.content"),
    (CHAT, {"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
    (CHAT, {"messages": [{"role": "function", "content": "x"}]}, "messages.0.role"),
    (CHAT, HELLO | {"temperature": "0.5"}, "temperature"),
    (CHAT, HELLO | {"temperature": True}, "temperature"),
    (CHAT, HELLO | {"temperature": -0.1}, "temperature"),
    (CHAT, HELLO | {"top_p": 1.1}, "top_p"),
    (CHAT, HELLO | {"top_k": 0.5}, "top_k"),
    (CHAT, HELLO | {"max_tokens": 0}, "max_tokens"),
    (CHAT, HELLO | {"max_completion_tokens": 10**30}, "max_completion_tokens"),
    (CHAT, HELLO | {"n": 17}, "n"),
    (CHAT, HELLO | {"seed": 2**63}, "seed"),
    (CHAT, {"messages": HELLO["messages"] * 10_001}, "messages"),
    (CHAT, HELLO | {"stop": ""}, "stop"),
    (CHAT, HELLO | {"stop": ["x"] * 241}, "stop"),
    (CHAT, HELLO | {"stop": {"x": 1}}, "stop"),
    (CHAT, HELLO | {"logprobs": 0}, "logprobs"),
    (CHAT, HELLO | {"top_logprobs": 3}, "top_logprobs"),
    (CHAT, HELLO | {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    (CHAT, HELLO | {"logit_bias": {"x": 1}}, "logit_bias"),
    (CHAT, HELLO | {"logit_bias": {"5": 101}}, "logit_bias"),
    (CHAT, HELLO | {"logit_bias": {str(place): 1 for place in range(1025)}}, "logit_bias"),
    (CHAT, HELLO | {"presence_penalty": 2.1}, "presence_penalty"),
    (CHAT, HELLO | {"dry_sequence_breakers": "[1]"}, "dry_sequence_breakers"),
    (CHAT, HELLO | {"response_format": {"type": "json_schema"}}, "response_format"),
    (CHAT, HELLO | {"guided_choice": [1]}, "guided_choice"),
    (CHAT, HELLO | {"guided_json": {"a": 1}, "guided_regex": "a"}, "guided_regex"),
    (CHAT, HELLO | {"tools": [{}]}, "tools.0.type"),
    (
        CHAT,
        HELLO | {"tools": [{"type": "function", "function": {"name": "f", "parameters": DEEP}}]},
        "tools.0.function.parameters",
    ),
    (CHAT, HELLO | {"stream": "yes"}, "stream"),
    (CHAT, HELLO | {"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    (CHAT, HELLO | {"model": 5}, "model"),
    (CHAT, HELLO | {"continue_final_message": True}, "continue_final_message"),
    (COMPLETIONS, {}, "prompt"),
    (COMPLETIONS, {"prompt": None}, "prompt"),
    (COMPLETIONS, {"prompt": []}, "prompt"),
    (COMPLETIONS, {"prompt": ["x", [1]]}, "prompt"),
    (COMPLETIONS, {"prompt": [-1]}, "prompt"),
    (COMPLETIONS, {"prompt": [[]]}, "prompt"),
    (COMPLETIONS, {"prompt": ["x"] * 17}, "prompt"),
    (COMPLETIONS, {"prompt": "x", "echo": "yes"}, "echo"),
    (COMPLETIONS, {"prompt": "x", "logprobs": 21}, "logprobs"),
    ("/v1/tokenize", {}, "prompt"),
    ("/v1/tokenize", {"prompt": "x", **HELLO}, "prompt"),
    ("/v1/detokenize", {"tokens": "x"}, "tokens"),
    ("/v1/detokenize", {"tokens": [-1]}, "tokens.0"),
    ("/v1/detokenize", {"tokens": [10**6]}, "prompt"),
]


@pytest.mark.parametrize(("path", "body", "param"), WRONG, ids=[f"{path} {str(body)[:50]}" for path, body, _ in WRONG])
def test_what_has_the_wrong_form_is_named(url: str, path: str, body: dict[str, Any], param: str) -> None:
    response = httpx2.post(url + path, json=body)
    assert response.status_code == 400
    assert error(response)["param"] == param


@pytest.mark.parametrize(
    ("name", "value"),
    [("best_of", 2), ("suffix", "x"), ("functions", [{}]), ("prompt_logprobs", 1), ("n_probs", 3),
     ("modalities", ["audio"])],
)  # fmt: skip
def test_what_cannot_be_done_is_refused(url: str, name: str, value: object) -> None:
    response = httpx2.post(url + CHAT, json=HELLO | {name: value})
    assert response.status_code == 400
    assert (error(response)["code"], error(response)["param"]) == ("unsupported_parameter", name)


def test_what_asks_for_nothing_and_what_is_unknown_passes(url: str) -> None:
    tool = {"type": "function", "function": {"name": "f", "note": DEEP}}
    assert httpx2.post(url + CHAT, json=HELLO | {"tools": [tool]}).status_code == 200
    asks_nothing = {"presence_penalty": 0, "frequency_penalty": 0.0, "logprobs": False, "tools": [], "n": None,
                    "response_format": {"type": "text"}, "stop": None, "user": "me", "other": [1]}  # fmt: skip
    assert httpx2.post(url + CHAT, json=HELLO | asks_nothing).status_code == 200


def test_more_answers_than_there_can_be_are_not_asked_for_again(url: str) -> None:
    """The server once said that it was busy, whatever was going on, and clients asked again until they gave up."""
    response = httpx2.post(url + COMPLETIONS, json={"prompt": ["x"] * 16, "n": 16})
    assert response.status_code == 400 and "retry-after" not in response.headers
    assert error(response)["param"] == "n" and "256 answers" in error(response)["message"]


def test_pictures_are_refused_in_words(url: str) -> None:
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "http://x/y.png"}}]
    response = httpx2.post(url + CHAT, json={"messages": [{"role": "user", "content": parts}]})
    assert response.status_code == 400
    assert "image_url" in error(response)["message"] and error(response)["param"] == "messages"


def test_a_prompt_beyond_the_context(url: str) -> None:
    words = "word " * 2000
    for path, body in [
        (CHAT, {"messages": [{"role": "user", "content": words}]}),
        (CHAT, {"messages": [{"role": "user", "content": words}, *HELLO["messages"]], "model": "Ada"}),
        (CHAT, {"messages": [{"role": "user", "content": words}], "model": "Ada"}),
        (COMPLETIONS, {"prompt": words}),
        (COMPLETIONS, {"prompt": [5] * 1024}),
    ]:
        for stream in (False, True):
            response = httpx2.post(url + path, json=body | {"stream": stream})
            assert response.status_code == 400, body
            assert error(response)["code"] == "context_length_exceeded"
            assert error(response)["param"] == ("prompt" if path == COMPLETIONS else "messages")
    response = httpx2.post(url + "/v1/responses", json={"input": words})
    assert error(response)["param"] == "input"


@pytest.mark.parametrize(
    ("prompt", "why"),
    [([-1], "a number from 0"), ([[5], [6, 2**63]], "a number from 0"), (["a", [5]], "every prompt"), ([5.5], "every")],
)
def test_a_prompt_that_is_none_is_told_why(url: str, prompt: object, why: str) -> None:
    """A number outside of the vocabulary was said to be no list of token ids."""
    assert why in error(httpx2.post(url + COMPLETIONS, json={"prompt": prompt}))["message"]


def test_a_prompt_may_fill_the_context_where_nothing_is_to_be_written(url: str) -> None:
    alone = {"prompt": [5] * 1024, "echo": True, "max_tokens": 0}
    assert httpx2.post(url + COMPLETIONS, json=alone).status_code == 200
    assert httpx2.post(url + COMPLETIONS, json=alone | {"prompt": [5] * 1025}).status_code == 400
    for number, status in ((1023, 200), (1024, 400)):
        body = {"prompt": [5] * number, "max_tokens": 1}
        assert httpx2.post(url + COMPLETIONS, json=body).status_code == status


def test_a_template_that_refuses_says_so_in_its_own_words(url: str, api_home: Path) -> None:
    template = api_home / "models" / MODEL / "chat_template.jinja"
    before = template.read_text("utf-8")
    template.write_text(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('No system texts!') }}{% endif %}"
        "{{ m.content }}{% endfor %}",
        "utf-8",
    )
    try:
        talk = [{"role": "system", "content": "x"}, *HELLO["messages"]]
        response = httpx2.post(url + CHAT, json={"messages": talk})
        assert response.status_code == 400
        assert "No system texts!" in error(response)["message"] and error(response)["param"] == "messages"
        # A character's text finds its place whatever the template refuses, as on the page.
        assert httpx2.post(url + CHAT, json=HELLO | {"model": "Ada"}).status_code == 200
    finally:
        template.write_text(before, "utf-8")


@pytest.mark.parametrize("name", ["gpt-4", "", "../../etc/passwd", "x" * 5000, "密\n钥"])
def test_models_that_are_not_there(url: str, name: str) -> None:
    for path, body in [(CHAT, HELLO), (COMPLETIONS, {"prompt": "x"}), ("/v1/tokenize", {"prompt": "x"})]:
        response = httpx2.post(url + path, json=body | {"model": name})
        assert response.status_code == 404
        assert (error(response)["code"], error(response)["param"]) == ("model_not_found", "model")


def test_a_character_does_not_complete_texts(url: str) -> None:
    response = httpx2.post(url + COMPLETIONS, json={"prompt": "x", "model": "Ada"})
    assert response.status_code == 400 and "/v1/chat/completions" in error(response)["message"]


def test_paths_and_methods_that_are_none(url: str) -> None:
    for path in ("/v1", "/v1/", "/v1/embeddings", "/v1/chat", "/v1/../v1/x", "/v1/models/%2e%2e/%2e%2e/etc/passwd"):
        assert error(httpx2.get(url + path))["code"] in ("unknown_url", "model_not_found")
    response = httpx2.get(url + CHAT)
    assert response.status_code == 405 and response.headers["allow"] == "POST"
    assert error(response)["code"] == "method_not_allowed"
    assert httpx2.delete(f"{url}/metrics").status_code == 405
    assert httpx2.head(f"{url}/v1/models").status_code == 200


def test_a_body_has_to_say_that_it_is_json(url: str) -> None:
    """A page of somebody else's may send a form or plain text to this machine, but not JSON."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        response = httpx2.post(url + CHAT, content=json.dumps(HELLO), headers={"content-type": kind})
        assert response.status_code == 415 and error(response)["code"] == "unsupported_content_type"
    kind = "application/json; charset=utf-8"
    assert httpx2.post(url + CHAT, content=json.dumps(HELLO), headers={"content-type": kind}).status_code == 200


def test_a_huge_body_is_not_read(url: str) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    with raw(url, head + b"Content-Length: 9000000000\r\n\r\n") as connection:
        assert b"413" in connection.recv(4096)
    with raw(url, head + b"Transfer-Encoding: chunked\r\n\r\n") as connection:
        chunk = b"%x\r\n%s\r\n" % (2**20, b"x" * 2**20)
        try:
            for _ in range(5):
                connection.sendall(chunk)
        except OSError:
            pass  # It is closed while there is more to send: that is the point.
        assert b"413" in received(connection)


def test_a_body_that_trickles_is_given_up(url: str) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    with raw(url, head + b'Content-Length: 100\r\n\r\n{"prompt": "') as connection:
        said = received(connection)
    assert b"408" in said.splitlines()[0] and b"request_timeout" in said
    assert httpx2.post(url + CHAT, json=HELLO).status_code == 200


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_error(url: str) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    with raw(url, head + b'Content-Length: 100\r\n\r\n{"prompt": "'):
        pass
    wanted = 'llamadeck_api_requests_total{route="/v1/completions",status="499"}'
    deadline_s = time.monotonic() + 30
    while wanted not in httpx2.get(f"{url}/metrics").text:
        assert time.monotonic() < deadline_s, "it was never noticed"


def test_errors_are_in_the_readers_language(url: str) -> None:
    response = httpx2.get(f"{url}/v1/nothing", headers={"accept-language": "zh-CN,zh;q=0.9"})
    assert "没有内容" in error(response)["message"]


def test_a_character_sees_who_made_the_key(
    api_home: Path, api_runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two keys of two people, both once spoke as whoever had described themselves."""
    keys, owners = KeyStore(tmp_path / "keys.json"), []
    texts = {owner: keys.make("notebook", owner) for owner in ("id ann", "id bob", "")}

    def ask(request: Any, loaded: Any, character: Any, owner: str, key: str) -> Any:
        owners.append(owner)
        return read_chat_request(request, loaded, character, owner, key)

    monkeypatch.setattr("core.api.completions.read_chat_request", ask)
    body = {"model": "Ada", "messages": [{"role": "user", "content": "hello"}]}
    with api_server(api_runner, tmp_path, needs_key=lambda: True) as url:
        for text in texts.values():
            response = httpx2.post(url + CHAT, json=body, headers={"authorization": f"Bearer {text}"}, timeout=30)
            assert response.status_code == 200
    assert owners == list(texts)


def test_a_key_can_be_tried_where_none_is_needed(api_runner: Runner, tmp_path: Path) -> None:
    keys = KeyStore(tmp_path / "keys.json")
    made = keys.make("notebook")
    with api_server(api_runner, tmp_path) as url:
        for text, status in ((made, 200), (f"{made}x", 401), ("x", 401)):
            bearer = {"authorization": f"Bearer {text}"}
            assert httpx2.get(f"{url}/v1/key", headers=bearer).status_code == status
            assert httpx2.get(f"{url}/v1/models", headers=bearer).status_code == 200
    assert keys.keys()[0].used


def test_where_others_can_reach_the_server_a_key_is_needed(api_home: Path, api_runner: Runner, tmp_path: Path) -> None:
    keys = KeyStore(tmp_path / "keys.json")
    text = keys.make("notebook")
    with api_server(api_runner, tmp_path, needs_key=lambda: True) as url:
        for path in ("/v1/models", "/v1/models/Ada", "/metrics", "/openapi.json", "/v1/nothing"):
            response = httpx2.get(url + path)
            assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
            assert error(response)["code"] == "invalid_api_key"
        assert httpx2.post(url + CHAT, content=b"{").status_code == 401
        assert httpx2.get(f"{url}/health").json() == {"status": "ok"}
        for wrong in ("Bearer", "Bearer ld-wrong", f"Basic {text}", text, f"Bearer {text}x"):
            assert httpx2.get(f"{url}/v1/models", headers={"authorization": wrong}).status_code == 401
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=text, max_retries=0)
        assert client.models.list().data[0].id == MODEL
        assert KeyStore(tmp_path / "keys.json").keys()[0].used
        keys.revoke(keys.keys()[0].id)
        with pytest.raises(openai.AuthenticationError):
            client.models.list()


def test_on_loopback_a_foreign_name_is_asked_for_a_key(url: str) -> None:
    """A page in a browser here could make its own name point to this machine."""
    for host, status in [("evil.example", 401), ("evil.example:80", 401), ("127.0.0.1.evil.example", 401),
                         ("", 401), ("localhost:6006", 200), ("[::1]:6006", 200), ("127.0.0.1", 200)]:  # fmt: skip
        assert httpx2.get(f"{url}/v1/models", headers={"host": host}).status_code == status, host


def test_a_text_that_the_tokenizer_panics_at_is_refused_in_the_apis_own_shape(url: str, api_home: Path) -> None:
    path = api_home / "models" / MODEL / "tokenizer.json"
    whole = path.read_bytes()
    damage(path.parent, giving_up)
    hard, easy = ({"messages": [{"role": "user", "content": text}]} for text in (TOO_HARD, "hello"))
    try:
        for route, body in (
            ("/v1/chat/completions", hard),
            ("/v1/chat/completions", hard | {"stream": True}),
            ("/v1/chat/completions", hard | {"model": "Ada"}),
            ("/v1/completions", {"prompt": TOO_HARD}),
            ("/v1/tokenize", {"prompt": TOO_HARD}),
            ("/v1/tokenize", hard),
        ):
            response = httpx2.post(url + route, json=body)
            assert response.status_code == 400, (route, response.text)
            assert response.json()["error"]["code"] == "tokenizer"
        assert httpx2.post(url + "/v1/chat/completions", json=easy | {"max_tokens": 2}).status_code == 200
    finally:
        path.write_bytes(whole)


def test_a_model_that_fills_in_nothing_says_so(url: str) -> None:
    response = httpx2.post(url + COMPLETIONS, json={"prompt": "x", "suffix": "y"})
    assert response.status_code == 400 and error(response)["param"] == "suffix"
    assert httpx2.post(url + COMPLETIONS, json={"prompt": "x", "suffix": ""}).status_code == 200


@pytest.mark.parametrize(
    ("body", "param", "told"),
    [
        ({"max_tokens": 0}, "max_tokens", "(sent: 0)"),
        ({"n_predict": "many"}, "n_predict", '(sent: "many")'),
        ({"temperature": "热"}, "temperature", '(sent: "热")'),
        ({"seed": 2**70}, "seed", f"(sent: {2**70})"),
        ({"seed": "9" * 100}, "seed", "integer"),
    ],
)
def test_a_value_that_cannot_be_used_is_told_under_the_name_it_came_with(
    url: str, body: dict[str, Any], param: str, told: str
) -> None:
    response = httpx2.post(url + CHAT, json=HELLO | body)
    assert response.status_code == 400 and error(response)["param"] == param
    assert error(response)["message"].startswith(f"{param} cannot be used") and told in error(response)["message"]
    assert "9" * 50 not in error(response)["message"]


def test_ollamas_own_name_of_the_length_is_told(url: str) -> None:
    """It was told that max_tokens was wrong, which it had not sent."""
    asked = HELLO | {"stream": False, "options": {"num_predict": "x"}}
    response = httpx2.post(f"{url}/api/chat", json=asked)
    assert response.status_code == 400 and response.json()["error"].startswith("num_predict cannot be used")
