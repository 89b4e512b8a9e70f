"""The API over a model on another server, and one LlamaDeck over another: the same routes, the same answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from core.engine.protocol import Conversation
from core.engine.runner import Runner
from core.engine.sampling_params import Sampling
from core.remote.connection import ProbeInterval
from core.remote.engine import RemoteEngine
from core.remote.router import EngineRouter
from core.remote.selection import RemoteSelection
from tests.support.api_server import MODEL, api_server, loaded_runner
from tests.support.openai_standin import OpenAiStandin

WAIT_S = 60.0
HELLO = [{"role": "user", "content": "Hello?"}]


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMADECK_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("LLAMADECK_MODELS", str(tmp_path / "models"))


@pytest.fixture
def server() -> Iterator[OpenAiStandin]:
    with OpenAiStandin() as standin:
        standin.behaviour.models = [{"id": "far/away", "owned_by": "vllm", "max_model_len": 2048}]
        yield standin


@pytest.fixture
def engines(server: OpenAiStandin) -> Iterator[EngineRouter]:
    made = EngineRouter(Runner("tests.support.fake_worker"), RemoteEngine(interval=ProbeInterval(0.1, 0.05, 0.1)))
    made.connect(RemoteSelection(server.url, "far/away"))
    assert made.wait_while_loading(WAIT_S).phase == "ready"
    yield made
    made.close()


@pytest.fixture
def client(engines: EngineRouter, tmp_path: Path) -> Iterator[openai.OpenAI]:
    with api_server(engines, tmp_path) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as made:
        yield made


def test_the_servers_model_answers_alone_and_as_a_character(client: openai.OpenAI, server: OpenAiStandin) -> None:
    assert client.models.list().data[0].id == "far/away"
    answer = client.chat.completions.create(model="far/away", messages=HELLO)  # type: ignore[arg-type]
    assert answer.choices[0].message.content == "Hello from there"
    client.chat.completions.create(model="Ada", messages=HELLO)  # type: ignore[arg-type]
    plain, character = (request.body["messages"] for request in server.asked("/v1/chat/completions"))
    assert plain == HELLO
    assert character[0]["role"] == "system" and "Ada" in character[0]["content"]


def test_it_streams_and_goes_on_with_plain_text(client: openai.OpenAI, server: OpenAiStandin) -> None:
    stream = client.chat.completions.create(model="far/away", messages=HELLO, stream=True)  # type: ignore[call-overload]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == "Hello from there"
    assert client.completions.create(model="far/away", prompt="Once").choices[0].text == "Hello from there"
    assert server.asked("/v1/completions")[0].body["prompt"] == "Once"


def test_a_server_that_is_lost_is_a_status_of_its_own(client: openai.OpenAI, server: OpenAiStandin) -> None:
    server.behaviour.statuses["completions"] = (500, b"")
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="far/away", messages=HELLO)  # type: ignore[arg-type]
    assert caught.value.status_code == 502
    server.behaviour.statuses["completions"] = (400, b'{"error": {"message": "too long"}}')
    with pytest.raises(openai.BadRequestError, match="too long"):
        client.chat.completions.create(model="far/away", messages=HELLO)  # type: ignore[arg-type]


def test_one_llamadeck_answers_over_another(tmp_path: Path) -> None:
    with loaded_runner(tmp_path / "models") as runner, api_server(runner, tmp_path) as url:
        engine = RemoteEngine()
        engine.connect(RemoteSelection(url, MODEL))
        facts = engine.wait_while_loading(WAIT_S).facts
        assert facts is not None and facts.remote is not None and facts.remote.software == "LlamaDeck"
        assert facts.context_tokens == 1024
        prompt = Conversation([("user", "Hello there")], is_open=False)
        answer = engine.generate(prompt, Sampling(top_k=5, min_p=0.1, repetition_penalty=1.1, seed=3))
        assert answer.wait(WAIT_S) and answer.text.strip() == "You said: Hello there"
        assert 0 < engine.count_prompt(prompt) < 200
        begun = Conversation([("user", "Hello there"), ("assistant", "You")], is_open=True)
        answer = engine.generate(begun, Sampling())
        assert answer.wait(WAIT_S) and answer.error is None and answer.text
        engine.disconnect()
