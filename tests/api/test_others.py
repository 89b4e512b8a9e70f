"""What clients of other servers send and look for: served where it can be, else refused in the API's own shape."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import openai
import pytest
from starlette.applications import Starlette
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.routing import Route

from core.access.api_paths import OTHERS_PATHS, OTHERS_PREFIXES, is_api
from core.api.strays import Strays
from core.api.unsupported import NEUTRAL, OFF_BELOW
from tests.support.api_server import MODEL, error
from ui.shared.routing import PATHS

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
SETTINGS: dict[str, Any] = {"messages": [{"role": "user", "content": "settings"}]}


def settings(url: str, **fields: Any) -> str:
    """The generation settings that reached the engine."""
    response = httpx2.post(url + CHAT, json=SETTINGS | fields)
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


LOOKED_FOR = [
    *(("GET", path) for path in ("/api/blobs/x", "/props", "/slots", "/slots/0", "/info")),
    *(("GET", path) for path in ("/api/v1/model", "/api/extra/version", "/sdapi/v1/sd-models", "/version", "/api")),
    *(("GET", path) for path in ("/.well-known/ai-plugin.json", "/v1/internal/model/info", "/health/readiness")),
    *(("POST", path) for path in ("/api/embed", "/api/pull", "/completion", "/v1/embeddings")),
    *(("POST", path) for path in ("/v1/audio/transcriptions", "/v1/images/asks", "/v1/responses/x/cancel", "/infill")),
    *(
        ("POST", path)
        for path in ("/generate", "/v1/messages/batches", "/embeddings", "/openai/deployments/x/completions")
    ),
    *((method, "/api/delete") for method in ("DELETE", "PUT", "PATCH", "OPTIONS")),
]


@pytest.mark.parametrize(("method", "path"), LOOKED_FOR)
def test_who_looks_for_another_server_hears_in_json_that_this_is_none(url: str, method: str, path: str) -> None:
    """They took the dashboard's page for the answer: "Unexpected token '<'"."""
    assert is_api(path), "the gate asks for no session there"
    response = httpx2.request(method, url + path, json={} if method == "POST" else None)
    assert response.status_code == 404 and error(response)["code"] == "unknown_url"
    assert path in error(response)["message"]


def test_paths_of_others_are_none_of_the_dashboards() -> None:
    assert not any(is_api(path) for path in PATHS if path)
    assert not any(is_api(path) for path in ("/", "/_stcore/health", "/static/x.js", "/sign-in", "/auth/login"))
    assert not any(path.startswith(OTHERS_PREFIXES) for path in OTHERS_PATHS)
    assert {"/Chat", "/Load_Model", "/home"} <= PATHS


def test_a_client_whose_address_lacks_v1_is_served_all_the_same(url: str) -> None:
    client = openai.OpenAI(base_url=url, api_key="-", max_retries=0)
    assert client.models.list().data[0].id == MODEL
    assert client.models.retrieve("Ada").parent == MODEL
    done = client.chat.completions.create(model=MODEL, messages=HELLO["messages"])
    assert done.choices[0].message.content == "You said: hello "
    assert client.completions.create(model=MODEL, prompt="hello").choices[0].text == "You said: hello "
    counted = httpx2.post(f"{url}/tokenize", json={"prompt": "hello you"}).json()
    assert httpx2.post(f"{url}/detokenize", json={"tokens": counted["tokens"]}).json() == {"prompt": "hello you"}
    response = httpx2.get(f"{url}/tokenize")
    assert response.status_code == 405 and response.headers["allow"] == "POST"
    assert error(response)["code"] == "method_not_allowed"


def test_content_of_the_assistant_may_be_null_or_missing(url: str) -> None:
    """As OpenAI's own answers are where a tool was called."""
    for said in ({"role": "assistant", "content": None}, {"role": "assistant"}, {"role": "assistant", "content": []}):
        talk = [*HELLO["messages"], said, *HELLO["messages"]]
        assert httpx2.post(url + CHAT, json={"messages": talk}).status_code == 200


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"max_tokens": 12.0}, "max_new_tokens=12,"),
        ({"top_k": 40.0, "seed": 7.0}, "top_k=40,"),
        ({"seed": 7.0}, "seed=7,"),
        ({"max_tokens": -1}, "max_new_tokens=1024,"),
        ({"max_completion_tokens": -1, "max_tokens": 5}, "max_new_tokens=1024,"),
        ({"max_tokens": 2**31 - 1}, "max_new_tokens=1024,"),
        ({"n_predict": 9}, "max_new_tokens=9,"),
        ({"max_new_tokens": 9, "max_tokens": None}, "max_new_tokens=9,"),
        ({"n_predict": 9, "max_tokens": 8}, "max_new_tokens=8,"),
        ({"repeat_penalty": 1.2}, "repetition_penalty=1.2,"),
        ({"rep_pen": 1.2, "repetition_penalty": 1.1, "rep_pen_range": 0}, "repetition_penalty=1.1,"),
        ({"stopping_strings": ["A"]}, "stop=('A',)"),
        ({"stop_sequence": "A", "stop": ["B"]}, "stop=('B',)"),
        ({"stop": ["A", "", "B"]}, "stop=('A', 'B')"),
        ({"temperature": 1}, "temperature=1"),
        ({"typical": 0.9}, "typical_p=0.9,"),
        ({"mirostat_mode": 2, "mirostat_tau": 4}, "mirostat=2, mirostat_tau=4"),
        ({"dry_multiplier": 0.8, "dry_penalty_last_n": -1}, "dry_range=0,"),
        ({"dry_sequence_breakers": '["\\n", ":"]'}, r"dry_sequence_breakers=('\n', ':')"),
        ({"logit_bias": {"5": -100}}, "logit_bias=((5, -100.0),)"),
        ({"logit_bias": [[5, 1.5]]}, "logit_bias=((5, 1.5),)"),
        ({"ban_eos_token": True}, "ignore_eos=True"),
        ({"min_length": 5}, "min_tokens=5,"),
        ({"response_format": {"type": "json_object"}}, "grammar=Grammar(kind='json'"),
        ({"guided_choice": ["a.b", "c"]}, r"Grammar(kind='regex', text='a\\.b|c')"),
        ({"grammar": "root ::= x"}, "Grammar(kind='gbnf', text='root ::= x')"),
        ({"structured_outputs": {"regex": "[ab]"}}, "Grammar(kind='regex', text='[ab]')"),
        ({"logprobs": True, "top_logprobs": 3}, "logprobs=3,"),
        ({"stop": [str(place) for place in range(100)]}, "'99')"),
    ],
)
def test_what_others_write_otherwise_is_understood(url: str, fields: dict[str, Any], wanted: str) -> None:
    assert wanted in settings(url, **fields)


def test_a_mark_of_byte_order_is_no_part_of_a_body(url: str) -> None:
    body = b"\xef\xbb\xbf" + json.dumps(HELLO).encode()
    response = httpx2.post(url + CHAT, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 200


def test_best_of_what_is_sent_anyway_asks_for_nothing(url: str) -> None:
    for path, body in ((COMPLETIONS, {"prompt": "hi"}), (CHAT, HELLO)):
        assert httpx2.post(url + path, json=body | {"n": 2, "best_of": 2}).status_code == 200
        assert httpx2.post(url + path, json=body | {"best_of": 1.0}).status_code == 200
        for more in ({"n": 3, "best_of": 2}, {"best_of": 2, "stream": True}, {"best_of": "1"}):
            response = httpx2.post(url + path, json=body | more)
            assert response.status_code == 400 and error(response)["param"] == "best_of"


CHANGES = [("tfs", 0.95), ("top_a", 0.2), ("smoothing_factor", 0.3), ("dynatemp_range", 0.5),
           ("guidance_scale", 1.5), ("response_format", {"type": "structural_tag"}),
           ("do_sample", False), ("num_beams", 4),
           ("banned_strings", ["x"]), ("stop_token_ids", [2]), ("top_n_sigma", 1.5), ("skip_special_tokens", False),
           ("add_generation_prompt", False), ("epsilon_cutoff", 0.001), ("tfs_z", 0.5)]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), CHANGES)
def test_a_sampler_that_is_not_there_is_refused_where_it_would_change_the_answer(
    url: str, name: str, value: Any
) -> None:
    response = httpx2.post(url + CHAT, json=HELLO | {name: value})
    assert response.status_code == 400
    assert (error(response)["code"], error(response)["param"]) == ("unsupported_parameter", name)


def test_all_samplers_that_are_off_pass_together(url: str) -> None:
    """As text clients send them with every request, set to nothing, beside what only matters when they are on."""
    off = {name: neutral[-1] for name, neutral in NEUTRAL.items()} | dict.fromkeys(OFF_BELOW, 0)
    off |= {"presence_penalty": 0, "logit_bias": {}, "logprobs": False, "top_logprobs": 0, "min_tokens": 0,
            "mirostat": 0, "typical_p": 1, "dry_multiplier": 0, "ignore_eos": False,
            "dry_sequence_breakers": ""}  # fmt: skip
    beside = {"dry_base": 1.75, "xtc_threshold": 0.1, "mirostat_tau": 5, "mirostat_eta": 0.1, "smoothing_curve": 1,
              "repeat_last_n": 64, "rep_pen": 1, "temperature_last": True, "top_n_sigma": -1}  # fmt: skip
    assert httpx2.post(url + CHAT, json=HELLO | off | beside).status_code == 200


def test_a_penalty_that_looks_not_all_the_way_is_refused(url: str) -> None:
    response = httpx2.post(url + CHAT, json=HELLO | {"repeat_penalty": 1.1, "repeat_last_n": 64})
    assert response.status_code == 400 and error(response)["param"] == "repeat_last_n"
    assert httpx2.post(url + CHAT, json=HELLO | {"repeat_penalty": 1.1, "repeat_last_n": -1}).status_code == 200


async def page(request: object) -> HTMLResponse:
    return HTMLResponse("<!doctype html>")


async def own(request: object) -> PlainTextResponse:
    return PlainTextResponse("words", 404)


STREAMLIT = Starlette(routes=[Route("/_stcore/x", own), Route("/own", own), Route("/{rest:path}", page)])


@pytest.mark.parametrize(
    ("method", "path", "accept", "status"),
    [
        ("GET", "/", "*/*", 200),
        ("GET", "/Chat", "*/*", 200),
        ("GET", "/Chat/", "*/*", 200),
        ("GET", "/Caht", "text/html,*/*", 200),
        ("GET", "/_stcore/nothing", "*/*", 200),
        ("GET", "/anything/else", "application/json", 404),
        ("GET", "/lmstudio/tags", "*/*", 404),
        ("HEAD", "/lmstudio/tags", "*/*", 404),
        ("POST", "/anything/else", "text/html", 404),
        ("POST", "/Chat", "*/*", 405),
        ("POST", "/", "*/*", 405),
        ("GET", "/own", "*/*", 404),
    ],
)
def test_programs_get_no_page_for_an_answer(method: str, path: str, accept: str, status: int) -> None:
    async def ask() -> httpx2.Response:
        transport = httpx2.ASGITransport(Strays(STREAMLIT, PATHS))
        async with httpx2.AsyncClient(transport=transport, base_url="http://here") as client:
            return await client.request(method, path, headers={"accept": accept})

    response = asyncio.run(ask())
    assert response.status_code == status
    if method != "HEAD" and status != 200:
        assert error(response)["code"] == ("method_not_allowed" if status == 405 else "unknown_url")
    assert ("<!doctype" in response.text) == (status == 200 and method == "GET")
