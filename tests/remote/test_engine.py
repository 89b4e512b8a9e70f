"""The engine on another server, against a stand-in that fails in every way that a real one can."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.chat.recorder import Recorder
from core.chat.store import ChatStore
from core.common.errors import EngineError
from core.engine.answer import Answer
from core.engine.protocol import Conversation
from core.engine.sampling_params import Sampling
from core.engine.thought import ThoughtRules, split_thought
from core.remote.address import keep_key
from core.remote.connection import Connection, ProbeInterval, list_models
from core.remote.engine import RemoteEngine
from core.remote.http import HttpLimits, Server, loop
from core.remote.selection import RemoteSelection
from core.remote.stream import AnswerStream
from tests.support.openai_standin import OpenAiStandin
from tests.support.processes import wait_until

WAIT_S = 60.0
QUESTION = Conversation([("system", "Be brief."), ("user", "What is 1 + 1?")], is_open=False)
OPEN = Conversation([("user", "What is 1 + 1?"), ("assistant", "It is")], is_open=True)
SHORT = HttpLimits(connect_s=2.0, whole_s=1.0, first_s=0.5, stall_s=0.5, whole_bytes=50_000, line_bytes=20_000)
QUICK = ProbeInterval(check_s=0.05, retry_s=0.02, longest_s=0.05)


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLAMADECK_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def server() -> Iterator[OpenAiStandin]:
    with OpenAiStandin() as standin:
        yield standin


@pytest.fixture
def engine() -> Iterator[RemoteEngine]:
    engine = RemoteEngine(interval=QUICK)
    yield engine
    engine.disconnect()


@pytest.fixture
def hasty() -> Iterator[RemoteEngine]:
    """One that waits for nothing for long."""
    engine = RemoteEngine(SHORT, QUICK)
    yield engine
    engine.disconnect()


def connect(engine: RemoteEngine, server: OpenAiStandin, model: str = "small", context: int | None = None) -> None:
    engine.connect(RemoteSelection(server.url, model, context))
    engine.wait_while_loading(WAIT_S)


def ask(engine: RemoteEngine, prompt: str = QUESTION, sampling: Sampling | None = None) -> Answer:
    answer = engine.generate(prompt, sampling or Sampling())
    assert answer.wait(WAIT_S)
    return answer


def error_key(answer: Answer) -> str:
    assert answer.reason == "failed" and answer.error is not None
    return answer.error.key


def test_a_chat_is_sent_as_its_messages_and_answered_as_it_comes(engine: RemoteEngine, server: OpenAiStandin) -> None:
    server.behaviour.models = [{"id": "small", "owned_by": "vllm", "max_model_len": 512}]
    server.behaviour.usage = {"prompt_tokens": 21, "completion_tokens": 3}
    connect(engine, server)
    state = engine.state
    assert state.phase == "ready" and state.server == f"127.0.0.1:{server.port}"
    assert state.facts is not None and state.facts.context_tokens == 512
    answer = ask(engine, sampling=Sampling(temperature=0.5, top_k=7, min_p=0.1, stop=("STOP",), seed=5))
    assert answer.text == "Hello from there" and answer.reason == "end"
    assert answer.stats is not None and (answer.stats.prompt_tokens, answer.stats.num_tokens) == (21, 3)
    body = server.asked("/v1/chat/completions")[0].body
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 1 + 1?"},
    ]
    sent = {
        name: body[name] for name in ("model", "temperature", "top_k", "min_p", "repetition_penalty", "stop", "seed")
    }
    assert sent == {"model": "small", "temperature": 0.5, "top_k": 7, "min_p": 0.1, "repetition_penalty": 1.0,
                    "stop": ["STOP"], "seed": 5}  # fmt: skip
    assert "continue_final_message" not in body


def test_an_answer_goes_on_from_given_words_where_the_server_can(engine: RemoteEngine, server: OpenAiStandin) -> None:
    connect(engine, server)
    ask(engine, OPEN)
    body = server.asked("/v1/chat/completions")[0].body
    assert body["continue_final_message"] is True and body["add_generation_prompt"] is False


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_what_a_server_tells_of_a_thought_stands_before_the_answer(
    engine: RemoteEngine, server: OpenAiStandin, name: str
) -> None:
    server.behaviour.thought, server.behaviour.thought_name = ["One and", " one."], name
    connect(engine, server)
    answer = engine.generate(QUESTION, Sampling(stop=("one",)), thought=ThoughtRules())
    assert answer.wait(WAIT_S)
    assert answer.text == "<think>\nOne and one.\n</think>\n\nHello from there"
    assert split_thought(answer.text, ThoughtRules()).thought == "One and one."
    # Whoever asks for none, such as a plain continuation, gets none.
    assert ask(engine).text == "Hello from there"
    # A thought that goes on needs no mark.
    answer = engine.generate(OPEN, Sampling(), thought=ThoughtRules(is_open=True))
    assert answer.wait(WAIT_S) and answer.text == "One and one.\n</think>\n\nHello from there"


@pytest.mark.parametrize("rules", [None, ThoughtRules()])
def test_an_answer_that_goes_on_is_no_thought_whatever_a_server_takes_it_for(
    engine: RemoteEngine, server: OpenAiStandin, rules: ThoughtRules | None
) -> None:
    server.behaviour.thought = ["Two, ", "and "]
    connect(engine, server)
    answer = engine.generate(OPEN, Sampling(stop=("from",)), thought=rules)
    assert answer.wait(WAIT_S) and answer.text == "Two, and Hello "


def test_a_thought_without_an_answer_and_content_in_parts_are_read() -> None:
    stream = AnswerStream("server", Sampling(), 1, False, ThoughtRules())
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}, 5, {"text": None}]}
    said = stream.push({"choices": [{"delta": {"content": [thinking]}}]})
    assert said == "<think>\nHm" and stream.push({"choices": [{"delta": {"reasoning": 5}}]}) == ""
    said = stream.push({"choices": [{"delta": {"content": [{"type": "text", "text": "Hi"}, "x"]}}]})
    assert said == "\n</think>\n\nHi"
    # After an answer nothing is a thought any more.
    assert stream.push({"choices": [{"delta": {"reasoning": "late"}}]}) == ""


def test_thoughts_and_switches_are_sent_where_the_server_takes_them(
    engine: RemoteEngine, server: OpenAiStandin
) -> None:
    chat = Conversation([("user", "Hi"), ("assistant", "Hello"), ("user", "So?")], False, ["", "hm", ""],
                        {"enable_thinking": False, "reasoning_effort": "low"})  # fmt: skip
    server.behaviour.models = [{"id": "small", "owned_by": "vllm"}, {"id": "other", "owned_by": "openai"}]
    for model in ("small", "other"):
        connect(engine, server, model)
        ask(engine, chat)
    ours, theirs = (request.body for request in server.asked("/v1/chat/completions"))
    assert ours["messages"][1] == {
        "role": "assistant", "content": "Hello", "reasoning_content": "hm", "reasoning": "hm",
    }  # fmt: skip
    assert ours["chat_template_kwargs"] == {"enable_thinking": False} and ours["reasoning_effort"] == "low"
    assert theirs["messages"][1] == {"role": "assistant", "content": "Hello"}
    assert "chat_template_kwargs" not in theirs and theirs["reasoning_effort"] == "low"
    assert server.asked("/tokenize")[-1].body["chat_template_kwargs"] == {"enable_thinking": False}


@pytest.mark.parametrize("owner", ["me", "llamacpp", "somebody", None])
def test_a_server_that_cannot_go_on_says_so_and_is_asked_nothing(
    engine: RemoteEngine, server: OpenAiStandin, owner: str | None
) -> None:
    server.behaviour.models = [{"id": "small", "owned_by": owner}]
    connect(engine, server)
    with pytest.raises(EngineError) as caught:
        engine.generate(OPEN, Sampling())
    assert caught.value.key == "remote_no_continue"
    assert ask(engine, "Once upon a time").text == "Hello from there"
    assert [request.path for request in server.requests if "completions" in request.path] == ["/v1/completions"]


def test_only_what_a_server_takes_is_sent_to_it(engine: RemoteEngine, server: OpenAiStandin) -> None:
    server.behaviour.models = [{"id": "small", "owned_by": "openai"}, {"id": "lama", "owned_by": "me"}]
    stop = tuple("abcdef")
    connect(engine, server)
    facts = engine.state.facts
    assert facts is not None and facts.remote is not None
    assert facts.remote.ignored == ("top_k", "min_p", "repetition_penalty", "typical_p", "xtc_probability",
                                    "dry_multiplier", "mirostat")  # fmt: skip
    ask(engine, sampling=Sampling(top_k=5, stop=stop))
    connect(engine, server, "lama")
    ask(engine, sampling=Sampling(repetition_penalty=1.2, stop=stop))
    plain, lama = (request.body for request in server.asked("/v1/chat/completions"))
    assert "top_k" not in plain and "repetition_penalty" not in plain and len(plain["stop"]) == 4
    assert lama["repeat_penalty"] == 1.2 and len(lama["stop"]) == 6


def test_a_stop_string_ends_the_answer_also_where_the_server_does_not_know_it(
    engine: RemoteEngine, server: OpenAiStandin
) -> None:
    server.behaviour.words = ["one\nYo", "u", ": two", " three"]
    connect(engine, server)
    answer = ask(engine, sampling=Sampling(stop=("\nYou:",)))
    assert answer.text == "one" and answer.reason == "stop"
    server.behaviour.words = ["one\nYo"]
    assert ask(engine, sampling=Sampling(stop=("\nYou:",))).text == "one\nYo"


def test_an_answer_takes_no_more_than_the_context_leaves(engine: RemoteEngine, server: OpenAiStandin) -> None:
    server.behaviour.models = [{"id": "small", "owned_by": "vllm", "max_model_len": 100}]
    server.behaviour.count = 60
    server.behaviour.finish = "length"
    connect(engine, server)
    assert ask(engine, sampling=Sampling(max_new_tokens=1000)).reason == "context"
    assert ask(engine, sampling=Sampling(max_new_tokens=10)).reason == "length"
    assert [request.body["max_tokens"] for request in server.asked("/v1/chat/completions")] == [40, 10]


@pytest.mark.parametrize("count", [None, "7", -1, True, 10**12])
def test_a_count_that_is_none_becomes_an_estimate(engine: RemoteEngine, server: OpenAiStandin, count: object) -> None:
    server.behaviour.count = count
    connect(engine, server)
    assert engine.count_prompt("x" * 30) == 10
    server.behaviour.count = 8
    assert engine.count_prompt("y" * 30) == 10, "a server that failed is left alone for a while"


def test_counts_are_asked_once_and_pieces_are_estimated_by_them(engine: RemoteEngine, server: OpenAiStandin) -> None:
    server.behaviour.count = 20
    connect(engine, server)
    assert [engine.count_prompt(QUESTION) for _ in range(3)] == [20, 20, 20]
    assert len(server.asked("/tokenize")) == 1
    assert server.asked("/tokenize")[0].body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert engine.count(QUESTION) == 20


def test_without_a_count_estimates_learn_from_what_the_server_says_afterwards(
    engine: RemoteEngine, server: OpenAiStandin
) -> None:
    server.behaviour.models = [{"id": "small", "owned_by": "me"}]
    server.behaviour.usage = {"prompt_tokens": 300, "completion_tokens": 3}
    connect(engine, server, context=1000)
    prompt = "一二三四五六七八九十" * 15
    assert engine.count_prompt(prompt) == 150
    ask(engine, prompt)
    assert engine.count_prompt(prompt) == 300
    assert server.asked("/tokenize") == []


def test_stop_lets_go_of_the_connection_at_once_and_keeps_what_was_said(
    engine: RemoteEngine, server: OpenAiStandin
) -> None:
    server.behaviour.silent_after = 2
    connect(engine, server)
    answer = engine.generate(QUESTION, Sampling())
    assert answer.wait_for_text(len("Hello"), WAIT_S) and engine.running_answers == [answer]
    answer.cancel()
    assert answer.wait(WAIT_S) and answer.reason == "cancelled" and answer.text == "Hello from"
    assert server.was_left.wait(WAIT_S) and engine.running_answers == []


def test_stop_works_before_the_first_sign_of_an_answer(engine: RemoteEngine, server: OpenAiStandin) -> None:
    connect(engine, server)
    server.behaviour.is_hanging = True
    answer = engine.generate("Once", Sampling())
    answer.cancel()
    assert answer.wait(WAIT_S) and answer.reason == "cancelled" and answer.stats is not None


def test_a_connection_that_breaks_is_a_reason_and_the_partial_answer_is_written_down(
    engine: RemoteEngine, server: OpenAiStandin, tmp_path: Path
) -> None:
    server.behaviour.breaks_after = 2
    connect(engine, server)
    store = ChatStore(tmp_path / "chats.sqlite3")
    recorder = Recorder(store)
    chat = store.create("instruct")
    question = store.append_user(chat, "Hello?", None)
    message = store.begin_answer(chat, question)
    recorder.follow(message, engine.generate(QUESTION, Sampling()), "small")
    assert recorder.wait(message, WAIT_S)
    last = store.read(chat).messages[-1]
    assert last.text == "Hello from" and last.state == "failed"
    assert last.stats["error"]["key"] == "remote_broken"
    recorder.close()
    store.close()


@pytest.mark.parametrize(
    ("then", "key"),
    [
        (b"data: {not json}\n\n", "remote_garbled"),
        (b"data: [1, 2]\n\n", "remote_garbled"),
        (b'data: {"choices": ["x"]}\n\n', "remote_garbled"),
        (b"data: " + b"[" * 15_000 + b"\n\n", "remote_garbled"),
        (b"\xff\xfe\x00garbage", "remote_broken"),
        (b": only a comment\n\n", "remote_broken"),
        (b'data: {"error": {"message": "out of memory"}}\n\n', "remote_error"),
        (b"data: " + b"x" * 60_000, "remote_too_much"),
        (b"data: xxxxxxxxxx\n" * 6_000 + b"\n", "remote_too_much"),
        (b'data: {"choices": [{"delta": {"content": "' + b"a" * 10_000 + b'"}}]}\n\n', "remote_too_much"),
    ],
)
def test_what_a_server_says_wrongly_ends_the_answer_with_a_sentence(
    hasty: RemoteEngine, server: OpenAiStandin, then: bytes, key: str
) -> None:
    server.behaviour.then = then
    connect(hasty, server)
    answer = ask(hasty, sampling=Sampling(max_new_tokens=16))
    assert error_key(answer) == key and answer.text == "Hello from there"
    assert hasty.running_answers == []


def test_what_can_be_misread_is_read_as_the_standard_says(engine: RemoteEngine, server: OpenAiStandin) -> None:
    """Carriage returns, comments, names of events, half characters, two lines of data, a missing [DONE]."""
    server.behaviour.then = (
        b": ping\r\n\r\nevent: token\r\nid: 1\r\ndata:"
        + b'{"choices": [{"delta": {"content": "\\ud83d"}}]}\r\n\r\n'
        + b'data: {"choices":\ndata: [{"delta": {"content": " more"}, "finish_reason": "stop"}]}'
    )
    connect(engine, server)
    answer = ask(engine)
    assert answer.text == "Hello from there? more" and answer.reason == "end"


@pytest.mark.parametrize(
    ("status", "body", "key"),
    [
        (401, b"", "remote_key"),
        (403, b"{}", "remote_key"),
        (404, b'{"detail": "Not Found"}', "remote_no_route"),
        (404, b'{"error": {"message": "The model does not exist."}}', "remote_refused"),
        (400, b'{"error": {"message": "too long"}}', "remote_refused"),
        (422, b"<html>", "remote_refused"),
        (429, b"", "remote_busy"),
        (500, b"\xff\xfe", "remote_fault"),
        (503, b"x" * 200_000, "remote_fault"),
        (200, b"{}", "remote_garbled"),
    ],
)
def test_a_status_is_a_sentence(hasty: RemoteEngine, server: OpenAiStandin, status: int, body: bytes, key: str) -> None:
    connect(hasty, server)
    server.behaviour.statuses["completions"] = (status, body)
    answer = ask(hasty)
    assert error_key(answer) == key and answer.error is not None
    assert all(answer.error.sentence(language) for language in ("en", "zh"))
    assert hasty.state.phase == "ready", "the server answers, and only this request failed"


def test_what_is_no_web_server_is_a_broken_connection(hasty: RemoteEngine, server: OpenAiStandin) -> None:
    connect(hasty, server)
    server.behaviour.raw["completions"] = b"SSH-2.0-OpenSSH_9.6\r\n"
    assert error_key(ask(hasty)) == "remote_broken"
    server.behaviour.raw["completions"] = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    assert error_key(ask(hasty)) == "remote_broken"


def test_a_server_that_says_nothing_is_waited_for_only_so_long(hasty: RemoteEngine, server: OpenAiStandin) -> None:
    server.behaviour.silent_after = 1
    connect(hasty, server)
    answer = ask(hasty)
    assert error_key(answer) == "remote_silent" and answer.text == "Hello"


@pytest.mark.parametrize(
    ("behaviour", "key"),
    [
        ({"statuses": {"models": (404, b"<html>")}}, "remote_not_openai"),
        ({"statuses": {"models": (200, b"[]")}}, "remote_not_openai"),
        ({"statuses": {"models": (200, b"<html>a page</html>")}}, "remote_not_openai"),
        ({"statuses": {"models": (200, b"x" * 60_000)}}, "remote_not_openai"),
        ({"statuses": {"models": (502, b"")}}, "remote_fault"),
        ({"key": "right"}, "remote_key"),
        ({"is_hanging": True}, "remote_silent"),
        ({"models": [{"id": "other"}, {"id": 5}, "x", {"id": "y" * 1000}]}, "remote_no_model"),
        ({"models": []}, "remote_no_model"),
    ],
)
def test_why_a_server_cannot_be_used_is_its_state(
    hasty: RemoteEngine, server: OpenAiStandin, behaviour: dict[str, object], key: str
) -> None:
    for name, value in behaviour.items():
        setattr(server.behaviour, name, value)
    connect(hasty, server)
    state = hasty.state
    assert state.phase == "failed" and state.error is not None and state.error.key == key
    with pytest.raises(EngineError) as caught:
        hasty.generate(QUESTION, Sampling())
    assert caught.value.key == key


def test_a_server_that_comes_back_is_found_by_itself(engine: RemoteEngine) -> None:
    with OpenAiStandin() as first:
        connect(engine, first)
        first.behaviour.silent_after = 1
        answer = engine.generate(QUESTION, Sampling())
        assert answer.wait_for_text(1, WAIT_S)
    assert answer.wait(WAIT_S)
    # The first look may still meet a connection that breaks off.
    wait_until(lambda: engine.state.error is not None and engine.state.error.key == "remote_unreachable")
    assert answer.text == "Hello" and engine.state.phase == "failed"
    with OpenAiStandin(first.port):
        wait_until(lambda: engine.state.phase == "ready")
        assert ask(engine).text == "Hello from there"


def test_a_server_that_writes_one_answer_at_a_time_is_asked_nothing_meanwhile(
    engine: RemoteEngine, server: OpenAiStandin
) -> None:
    """llama-cpp-python breaks off an answer when any other request comes, and be it for the list of models."""
    server.behaviour.models = [{"id": "small", "owned_by": "me"}]
    server.behaviour.silent_after = 1
    connect(engine, server)
    first = engine.generate(QUESTION, Sampling())
    assert first.wait_for_text(1, WAIT_S)
    num_asked = len(server.requests)
    second = engine.generate(QUESTION, Sampling())
    # Many looks would have come by now.
    assert not second.wait(10 * QUICK.check_s) and second.phase == "queued"
    assert len(server.requests) == num_asked
    server.behaviour.silent_after = None
    first.cancel()
    assert second.wait(WAIT_S) and second.text == "Hello from there" and second.reason == "end"


def test_a_wrong_key_is_not_tried_again_until_somebody_says_so(hasty: RemoteEngine, server: OpenAiStandin) -> None:
    server.behaviour.key = "right"
    connect(hasty, server)
    num_asked = len(server.requests)
    keep_key(server.url, "right")
    hasty.reconnect()
    assert hasty.wait_while_loading(WAIT_S).phase == "ready"
    assert num_asked == 1 and server.requests[1].headers["Authorization"] == "Bearer right"


def test_a_redirect_is_not_followed_and_the_key_stays_where_it_belongs(
    engine: RemoteEngine, server: OpenAiStandin
) -> None:
    keep_key(server.url, "secret")
    with OpenAiStandin() as elsewhere:
        server.behaviour.redirect = elsewhere.url
        connect(engine, server)
        error = engine.state.error
        assert error is not None and error.key == "remote_redirect"
        assert error.params["place"] == f"127.0.0.1:{elsewhere.port}" and elsewhere.requests == []
        connect(engine, elsewhere)
        assert "Authorization" not in elsewhere.requests[0].headers


def test_disconnecting_ends_what_runs_and_keeps_its_words(engine: RemoteEngine, server: OpenAiStandin) -> None:
    server.behaviour.silent_after = 1
    connect(engine, server)
    answer = engine.generate(QUESTION, Sampling())
    assert answer.wait_for_text(1, WAIT_S)
    engine.disconnect()
    assert error_key(answer) == "answer_model_unloaded" and answer.text == "Hello"
    assert server.was_left.wait(WAIT_S) and engine.state.phase == "empty"


def test_many_answers_come_side_by_side_and_none_is_mixed_up(engine: RemoteEngine, server: OpenAiStandin) -> None:
    server.behaviour.words = [f"{number} " for number in range(200)]
    connect(engine, server)
    answers = [engine.generate(QUESTION, Sampling()) for _ in range(16)]
    assert all(answer.wait(WAIT_S) for answer in answers)
    assert [str(answer.error) for answer in answers] == ["None"] * 16
    assert {answer.text for answer in answers} == {"".join(server.behaviour.words)}


def test_what_a_server_counts_wrongly_is_not_believed(engine: RemoteEngine, server: OpenAiStandin) -> None:
    server.behaviour.usage = {"prompt_tokens": -5, "completion_tokens": "many", "prompt_tokens_details": []}
    connect(engine, server)
    stats = ask(engine).stats
    assert stats is not None and stats.prompt_tokens == 7 and stats.num_tokens == 3


def test_models_are_listed_with_what_the_server_tells(server: OpenAiStandin) -> None:
    server.behaviour.models = [
        {"id": "a", "owned_by": "vllm", "max_model_len": 2048},
        {"id": "b", "owned_by": ["x"], "max_model_len": True},
        {"id": "c\ud83d", "max_model_len": -1},
    ]
    found = list_models(server.url)
    assert [(model.name, model.context_tokens, model.capabilities.software) for model in found] == [
        ("a", 2048, "vLLM"),
        ("b", None, ""),
    ]
    assert json.dumps(server.requests[0].body) == "null"


def test_a_look_that_goes_wrong_in_an_unknown_way_is_not_the_last(
    engine: RemoteEngine, server: OpenAiStandin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task that looks ended with the exception: the state was "loading" for ever."""
    monkeypatch.setattr("core.remote.connection.read_models", lambda *_: 1 // 0)
    connect(engine, server)
    assert engine.state.phase == "failed" and "ZeroDivisionError" in str(engine.state.error)
    monkeypatch.undo()
    wait_until(lambda: engine.state.phase == "ready")
    assert ask(engine).text == "Hello from there"


def test_a_listener_that_fails_does_not_end_the_looks(
    engine: RemoteEngine, server: OpenAiStandin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.remote.engine.facts_of", lambda *_: 1 // 0)
    connect(engine, server)
    assert engine.state.phase == "failed"
    monkeypatch.undo()
    wait_until(lambda: engine.state.phase == "ready")


def test_a_connection_that_is_let_go_before_its_first_look_leaves_nothing_open(server: OpenAiStandin) -> None:
    """Nobody closed the client of a watch that was cancelled before it began."""
    held = threading.Event()
    # The loop is held up meanwhile, so that nothing begins before it is let go of.
    loop().call_soon_threadsafe(held.wait, WAIT_S)
    connection = Connection(
        RemoteSelection(server.url, "small"), Server(server.url), QUICK, lambda *_: None, lambda *_: None
    )
    connection.start()
    connection.stop()
    held.set()
    wait_until(lambda: connection.server._client.is_closed)
    assert server.asked("/v1/models") == []


def test_what_is_answered_is_read_without_a_lock(engine: RemoteEngine, server: OpenAiStandin) -> None:
    connect(engine, server)
    seen: list[object] = []
    with engine.changed:
        reading = threading.Thread(target=lambda: seen.append((engine.state.phase, engine.running_answers)))
        reading.start()
        reading.join(WAIT_S)
    assert seen == [("ready", [])]
