"""What the API's clients do to each other: each has a share of its own, and nobody takes a place of the pages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx2
import openai
import pytest

from core.access.keys import KeyStore
from core.api.errors import ApiError
from core.api.generation import AdmissionLimit
from core.api.served_model import ServedModel
from core.chat.model_prompt import ModelPrompt
from core.chat.template import ChatTemplate
from core.chat.tokens import TokenCounter
from core.common.paths import models_dir
from core.engine.protocol import EngineState, ModelFacts
from core.engine.runner import Runner
from core.engine.sampling_params import Sampling
from tests.support.api_server import MODEL, api_server
from tests.support.chat_templates import OWN_LLAMA2
from tests.support.still_engine import StillEngine

CHAT = "/v1/chat/completions"
FOREVER = [{"role": "user", "content": "forever"}]
WAIT_S = 60.0
LOADED = ServedModel(
    ModelPrompt(MODEL, None, ChatTemplate(OWN_LLAMA2, "", ""), TokenCounter(None), len), 1024, 2, {}, 0
)


def test_a_client_over_its_share_takes_nothing_from_another() -> None:
    places = AdmissionLimit(max_waiting=3)
    with places.take(5, LOADED, "one"):
        with pytest.raises(ApiError) as caught:
            places.take(1, LOADED, "one").__enter__()
        assert (caught.value.key, caught.value.params) == ("api_busy", {"limit": 5})
        with places.take(5, LOADED, "two"):
            pass
    with places.take(2, LOADED, "one"), places.take(3, LOADED, "one"):
        pass
    assert not places._num_taken, "who has nothing is not remembered"


def test_more_than_a_share_holds_is_no_matter_of_waiting() -> None:
    with pytest.raises(ApiError) as caught:
        AdmissionLimit(max_waiting=3).take(6, LOADED, "one").__enter__()
    assert caught.value.key == "api_many"


@pytest.fixture
def url(api_home: Path, api_runner: Runner, tmp_path: Path) -> Iterator[str]:
    with api_server(api_runner, tmp_path, max_waiting=3) as url:
        yield url


def test_a_key_that_holds_all_its_places_leaves_those_of_others_and_the_pages(
    url: str, tmp_path: Path, api_runner: Runner
) -> None:
    """70 streams of one key were once a 429 for everybody else."""
    keys = KeyStore(tmp_path / "keys.json")
    one, two = (
        openai.OpenAI(base_url=f"{url}/v1", api_key=keys.make(name), max_retries=0, timeout=WAIT_S)
        for name in ("one", "two")
    )
    held = [one.chat.completions.create(model=MODEL, messages=FOREVER, stream=True) for _ in range(4)]  # type: ignore[arg-type]
    try:
        with pytest.raises(openai.RateLimitError) as caught:
            one.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi"}])
        assert int(caught.value.response.headers["retry-after"]) > 0
        for client in (two, openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0, timeout=WAIT_S)):
            said = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi"}])
            assert said.choices[0].message.content == "You said: hi "
        page = api_runner.generate("[INST] hi [/INST]", Sampling())
        assert page.wait(WAIT_S) and page.reason == "end"
    finally:
        for stream in held:
            stream.close()
    for answer in api_runner.running_answers:
        assert answer.wait(WAIT_S)


def test_the_engine_is_told_who_asks_a_key_else_an_address_and_never_the_pages(
    api_home: Path, api_runner: Runner, tmp_path: Path
) -> None:
    facts = ModelFacts(MODEL, "", "cpu", "dense", "dense", 1024, 1, 0.0, 0, 0)
    engine = StillEngine(EngineState("ready", MODEL, facts=facts, folder=models_dir() / MODEL))
    keys = KeyStore(tmp_path / "keys.json")
    texts = [keys.make(name) for name in ("one", "two")]
    with api_server(engine, tmp_path) as url:
        for key in (*texts, texts[0], "made up", ""):
            headers = {"authorization": f"Bearer {key}"} if key else {}
            asked = {"messages": [{"role": "user", "content": "hi"}]}
            assert httpx2.post(url + CHAT, json=asked, headers=headers).status_code == 503
    one, two = (key.id for key in keys.keys())
    # A key that was made up is nobody's: else whoever makes up many would have as many shares.
    assert engine.clients == [f"key {one}", f"key {two}", f"key {one}", "address 127.0.0.1", "address 127.0.0.1"]
