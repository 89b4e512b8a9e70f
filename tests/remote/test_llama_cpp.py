"""The remote engine over llama-cpp-python's own server, which knows less than vLLM: what it can, and what is said."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from core.common.errors import EngineError
from core.engine.protocol import Conversation
from core.engine.sampling_params import Sampling
from core.remote.address import keep_key
from core.remote.connection import ProbeInterval, list_models
from core.remote.engine import RemoteEngine
from core.remote.selection import RemoteSelection
from tests.support.dashboard import free_port
from tests.support.peers import llama_cpp_folder, llama_cpp_server
from tests.support.processes import wait_until

CONTEXT_TOKENS = 512
KEY = "a-key-of-its-own"
WAIT_S = 120.0
QUICK = ProbeInterval(check_s=1.0, retry_s=0.2, longest_s=1.0)
PARIS = Conversation([("user", "What is the capital of France?")], is_open=False)
# With no system text, which the model's own template puts before it: then this small model knows the answer.
PLAIN = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
GREEDY = Sampling(temperature=0.0, max_new_tokens=16)

pytestmark = pytest.mark.skipif(not llama_cpp_folder().is_dir(), reason="./llamadeck test builds llama.cpp's server")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with llama_cpp_server(CONTEXT_TOKENS, KEY) as url:
        yield url


@pytest.fixture
def engine(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RemoteEngine]:
    monkeypatch.setenv("LLAMADECK_DATA", str(tmp_path))
    keep_key(address, KEY)
    engine = RemoteEngine(interval=QUICK)
    engine.connect(RemoteSelection(address, "smol", CONTEXT_TOKENS))
    assert engine.wait_while_loading(WAIT_S).phase == "ready"
    yield engine
    engine.disconnect()


def finished(engine: RemoteEngine, prompt: str, sampling: Sampling = GREEDY) -> str:
    answer = engine.generate(prompt, sampling)
    assert answer.wait(WAIT_S) and answer.error is None, answer.error
    return answer.text


def test_it_wants_its_key(address: str) -> None:
    with pytest.raises(EngineError) as caught:
        list_models(address, "another")
    assert caught.value.key == "remote_key"
    assert [model.name for model in list_models(address, KEY)] == ["smol"]


def test_a_chat_and_plain_text_are_answered_with_the_settings_that_it_takes(engine: RemoteEngine) -> None:
    facts = engine.state.facts
    assert facts is not None and facts.remote is not None and facts.remote.software == "llama-cpp-python"
    assert facts.context_tokens == CONTEXT_TOKENS and facts.remote.is_context_chosen
    assert facts.remote.ignored == ("typical_p", "xtc_probability", "dry_multiplier", "mirostat")
    assert finished(engine, PARIS) != ""
    assert finished(engine, PLAIN) == "The capital of France is Paris."
    settings = Sampling(temperature=0.7, top_k=5, min_p=0.05, repetition_penalty=1.2, seed=7, max_new_tokens=12)
    assert finished(engine, "Once upon a time", settings) != ""
    counted = finished(engine, "One, two, three,", Sampling(temperature=0.0, max_new_tokens=24, stop=("five",)))
    assert "four" in counted and "five" not in counted


def test_what_it_cannot_do_is_said(engine: RemoteEngine) -> None:
    begun = Conversation([*PARIS.turns, ("assistant", "The capital")], is_open=True)
    with pytest.raises(EngineError) as caught:
        engine.generate(begun, GREEDY)
    assert caught.value.key == "remote_no_continue"


def test_stop_ends_an_answer_and_the_next_one_comes(engine: RemoteEngine) -> None:
    answer = engine.generate("Once upon a time", Sampling(max_new_tokens=400))
    assert answer.wait_for_text(5, WAIT_S)
    answer.cancel()
    assert answer.wait(WAIT_S) and answer.reason == "cancelled" and len(answer.text) > 5
    assert "Paris" in finished(engine, PLAIN)


def test_two_answers_come_one_after_the_other(engine: RemoteEngine) -> None:
    answers = [engine.generate(PLAIN, GREEDY) for _ in range(2)]
    assert [answer.wait(WAIT_S) and answer.text for answer in answers] == ["The capital of France is Paris."] * 2


def test_a_server_that_is_killed_while_it_answers_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMADECK_DATA", str(tmp_path))
    port = free_port()
    engine = RemoteEngine(interval=QUICK)
    with llama_cpp_server(CONTEXT_TOKENS, KEY, port) as url:
        keep_key(url, KEY)
        engine.connect(RemoteSelection(url, "smol", CONTEXT_TOKENS))
        assert engine.wait_while_loading(WAIT_S).phase == "ready"
        answer = engine.generate("Once upon a time", Sampling(max_new_tokens=400))
        assert answer.wait_for_text(5, WAIT_S)
    assert answer.wait(WAIT_S) and answer.reason == "failed" and len(answer.text) > 5
    wait_until(lambda: engine.state.phase == "failed")
    with llama_cpp_server(CONTEXT_TOKENS, KEY, port):
        wait_until(lambda: engine.state.phase == "ready")
        assert "Paris" in finished(engine, PLAIN)
    engine.disconnect()
