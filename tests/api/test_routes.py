"""The API as its clients use it: the official openai client and plain requests, with an engine that has no model."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import openai
import pytest

from core.api.generation import Choices, begin
from core.api.generation_request import GenerationRequest
from core.api.http_call import HttpCall
from core.api.model_tag import without_tag
from core.api.served_model import ServedModel
from core.chat.model_prompt import ModelPrompt
from core.chat.template import ChatTemplate
from core.chat.tokens import TokenCounter
from core.common.errors import EngineError
from core.engine.answer import Answer
from core.engine.protocol import EngineState
from core.engine.runner import Runner
from core.engine.sampling_params import Sampling
from tests.support.api_server import MODEL, api_server, loaded_runner
from tests.support.chat_templates import OWN_LLAMA2
from tests.support.still_engine import StillEngine

WAIT_S = 60.0


@pytest.fixture(scope="module")
def url(api_home: Path, api_runner: Runner) -> Iterator[str]:
    with api_server(api_runner, api_home, max_waiting=9) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none is needed", max_retries=0, timeout=WAIT_S)


def asked(text: str) -> list:
    return [{"role": "user", "content": text}]


def until_idle(runner: Runner) -> None:
    """Wait until the engine has ended all answers; each of them is waited for, none is missed: nobody asks more."""
    for answer in runner.running_answers:
        assert answer.wait(WAIT_S)


def test_the_model_and_the_characters_are_listed(client: openai.OpenAI) -> None:
    listed = client.models.list().data
    assert listed[0].id == MODEL and listed[0].max_model_len == 1024
    assert {"Ada", "Lin Qiao 林桥", "Maren"} <= {one.id for one in listed}
    assert client.models.retrieve("Ada").parent == MODEL
    assert client.models.retrieve("Lin Qiao 林桥").id == "Lin Qiao 林桥"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-4")
    assert caught.value.code == "model_not_found"


def test_a_name_with_ollamas_tag_is_the_name_without_it(client: openai.OpenAI, url: str) -> None:
    """Ollama's routes alone knew that."""
    for name in (MODEL, "Ada"):
        assert client.models.retrieve(f"{name}:latest").id == name
        done = client.chat.completions.create(model=f"{name}:latest", messages=asked("hello there"))
        assert done.choices[0].message.content and done.model == f"{name}:latest"
    body = {"model": f"{MODEL}:latest", "prompt": "hello"}
    assert httpx2.post(f"{url}/v1/tokenize", json=body, timeout=WAIT_S).status_code == 200
    with pytest.raises(openai.NotFoundError, match="nobody"):
        client.chat.completions.create(model="nobody:latest", messages=asked("hello there"))


@pytest.mark.parametrize(
    "name", ["x:latest", "../x:latest", "\0:latest", "\ud800:latest", ":latest", "ü" * 300 + ":latest"]
)
def test_a_known_name_keeps_ollamas_tag_and_any_other_loses_it(api_home: Path, name: str) -> None:
    assert without_tag(name, (name,)) == name
    assert without_tag(name, (None, "other")) == name.removesuffix(":latest")


@pytest.mark.parametrize(("name", "shown"), [("", '""'), (" ", '" "'), (":latest", '""'), ("nobody", "nobody")])
def test_a_name_that_is_not_there_is_in_the_sentence_also_an_empty_one(url: str, name: str, shown: str) -> None:
    """An empty one left a gap where its name stands."""
    for path, body in (("completions", {"prompt": "hello"}), ("messages", {"messages": asked("x"), "max_tokens": 5})):
        refused = httpx2.post(f"{url}/v1/{path}", json=body | {"model": name}, timeout=WAIT_S)
        assert refused.status_code == 404
        assert f"There is no model {shown} here: {MODEL}" in refused.json()["error"]["message"]


def test_a_chat_is_answered_whole(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(model=MODEL, messages=asked("hello there"))
    assert done.choices[0].message.content == "You said: hello there "
    assert (done.choices[0].finish_reason, done.model, done.object) == ("stop", MODEL, "chat.completion")
    assert done.usage is not None and done.usage.completion_tokens == 4
    assert done.usage.total_tokens == done.usage.prompt_tokens + 4


def test_a_chat_is_answered_in_pieces(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=asked("words=30 wait=0.05"), stream=True, stream_options={"include_usage": True}
    )
    pieces = list(stream)
    texts = [piece.choices[0].delta.content or "" for piece in pieces if piece.choices]
    assert pieces[0].choices[0].delta.role == "assistant"
    assert "".join(texts) == "one two three four five " * 6
    assert sum(bool(text) for text in texts) > 1
    assert [piece.choices[0].finish_reason for piece in pieces if piece.choices][-2:] == [None, "stop"]
    assert pieces[-1].usage is not None and pieces[-1].usage.completion_tokens == 30
    assert all(piece.usage is None for piece in pieces[:-1])
    assert len({piece.id for piece in pieces}) == 1


def test_without_being_asked_for_a_stream_says_nothing_of_usage(client: openai.OpenAI) -> None:
    pieces = list(client.chat.completions.create(model=MODEL, messages=asked("words=2"), stream=True))
    assert all(piece.usage is None and piece.choices for piece in pieces)


def test_the_text_that_ended_an_answer_is_named_as_vllm_names_it(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(model=MODEL, messages=asked("words=9"), stop=["nine", "four"])
    assert (done.choices[0].message.content, done.choices[0].finish_reason) == ("one two three ", "stop")
    assert done.choices[0].stop_reason == "four"
    done = client.chat.completions.create(model=MODEL, messages=asked("words=2"), stop=["four"])
    assert done.choices[0].stop_reason is None


def test_several_answers_to_one_request(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(model=MODEL, messages=asked("settings"), n=3, seed=7, temperature=0.5)
    texts = [choice.message.content or "" for choice in done.choices]
    assert [choice.index for choice in done.choices] == [0, 1, 2]
    assert [f"seed={seed}" in text for seed, text in zip((7, 8, 9), texts, strict=True)] == [True] * 3


def test_several_answers_in_one_stream_keep_apart(client: openai.OpenAI) -> None:
    texts, ends = {}, {}
    for piece in client.completions.create(model=MODEL, prompt=["words=7", "other", "third"], stream=True):
        choice = piece.choices[0]
        texts[choice.index] = texts.get(choice.index, "") + choice.text
        ends[choice.index] = choice.finish_reason
    assert texts == {0: "one two three four five one two ", 1: "You said: other ", 2: "You said: third "}
    assert ends == {0: "stop", 1: "stop", 2: "stop"}


def test_settings_reach_the_engine(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(
        model=MODEL,
        messages=asked("settings"),
        temperature=0.25,
        top_p=0.5,
        max_completion_tokens=99,
        stop=["\n\n", "END"],
        seed=-1,
        extra_body={"top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1},
    )
    assert (done.choices[0].message.content or "").startswith(
        "Sampling(temperature=0.25, top_p=0.5, top_k=40, min_p=0.05, repetition_penalty=1.1, max_new_tokens=99, "
        "seed=9223372036854775807, stop=('\\n\\n', 'END'),"
    )


def test_what_is_left_out_is_as_the_model_recommends(client: openai.OpenAI, api_home: Path) -> None:
    recommendation = api_home / "models" / MODEL / "generation_config.json"
    recommendation.write_text('{"temperature": 0.31, "top_k": 12}', "utf-8")
    try:
        said = client.chat.completions.create(model=MODEL, messages=asked("settings")).choices[0].message.content
    finally:
        recommendation.unlink()
    assert said is not None and "temperature=0.31, top_p=0.9, top_k=12" in said and "max_new_tokens=1024" in said


def test_a_character_answers_by_its_name(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(model="ada", messages=asked("hello")).choices[0].message.content or ""
    assert "Speak only as Ada." in first and "patient private tutor" in first and first.endswith("hello ")


def test_a_character_has_its_own_ends_beside_those_of_the_request(client: openai.OpenAI) -> None:
    talk = [*asked("hello"), {"role": "assistant", "content": "Hi."}, *asked("settings")]
    done = client.chat.completions.create(model="Ada", messages=talk, stop="END")
    assert "stop=('\\nfriend:', '\\nAda:', 'END')" in (done.choices[0].message.content or "")


def test_parts_of_text_are_one_message(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "hello "}, {"type": "text", "text": "you"}]
    done = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": parts}])
    assert done.choices[0].message.content == "You said: hello you "


def test_a_developers_text_is_a_systems(client: openai.OpenAI) -> None:
    counts = [
        client.chat.completions.create(
            model=MODEL, messages=[{"role": role, "content": "Be brief."}, *asked("hello")]
        ).usage
        for role in ("system", "developer")
    ]
    assert counts[0] == counts[1]


def test_a_completion_can_begin_with_its_prompt(client: openai.OpenAI) -> None:
    done = client.completions.create(model=MODEL, prompt="hello", echo=True)
    assert done.choices[0].text == "helloYou said: hello "
    counted = httpx2.post(str(client.base_url) + "tokenize", json={"prompt": "hello you"}).json()
    done = client.completions.create(model=MODEL, prompt=counted["tokens"], echo=True, max_tokens=5)
    assert done.choices[0].text.startswith("hello you")


def test_tokens_there_and_back(url: str) -> None:
    counted = httpx2.post(f"{url}/v1/tokenize", json={"prompt": "What is 你好?", "model": MODEL}).json()
    assert counted["count"] == len(counted["tokens"]) > 3 and counted["max_model_len"] == 1024
    assert httpx2.post(f"{url}/v1/detokenize", json={"tokens": counted["tokens"]}).json() == {"prompt": "What is 你好?"}
    messages = httpx2.post(f"{url}/v1/tokenize", json={"messages": asked("hello")}).json()
    assert messages["tokens"][0] == 1 and messages["count"] > 5


def test_many_at_once_each_get_their_own_answer(client: openai.OpenAI) -> None:
    def ask(number: int) -> str:
        text = f"question {number}"
        if number % 2:
            return client.chat.completions.create(model=MODEL, messages=asked(text)).choices[0].message.content or ""
        stream = client.chat.completions.create(model=MODEL, messages=asked(text), stream=True)
        return "".join(piece.choices[0].delta.content or "" for piece in stream)

    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(ask, range(48)))
    assert said == [f"You said: question {number} " for number in range(48)]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_the_computing(url: str, api_runner: Runner, stream: bool) -> None:
    body = {"messages": asked("forever"), "stream": stream}
    with httpx2.Client(timeout=WAIT_S) as client:
        if stream:
            with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
                # Kept: the connection is closed as soon as nobody has it.
                lines = response.iter_lines()
                assert next(lines).startswith("data: ")
                answer = api_runner.running_answers[0]
                assert not answer.is_for_page
        else:
            with pytest.raises(httpx2.ReadTimeout):
                client.post(f"{url}/v1/chat/completions", json=body, timeout=1.0)
            answer = api_runner.running_answers[0] if api_runner.running_answers else None
    if answer is not None:
        assert answer.wait(WAIT_S) and answer.reason == "cancelled"
    until_idle(api_runner)
    left, deadline_s = 'route="/v1/chat/completions",status="499"}', time.monotonic() + WAIT_S
    while left not in httpx2.get(f"{url}/metrics").text:
        assert time.monotonic() < deadline_s, "it was never noticed"


def test_more_than_may_wait_are_sent_away_with_a_time(url: str, client: openai.OpenAI, api_runner: Runner) -> None:
    """The server of these tests lets ten answers in: one slot and nine that wait."""
    held = [client.chat.completions.create(model=MODEL, messages=asked("forever"), stream=True) for _ in range(10)]
    try:
        refused = httpx2.post(f"{url}/v1/chat/completions", json={"messages": asked("x")})
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 0
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        with pytest.raises(openai.RateLimitError):
            client.completions.create(model=MODEL, prompt="x")
    finally:
        for stream in held:
            stream.close()
    until_idle(api_runner)
    patient = client.with_options(max_retries=5)
    assert patient.chat.completions.create(model=MODEL, messages=asked("hi")).choices[0].message.content


def test_an_answer_that_fails_is_an_error_with_a_status(client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model=MODEL, messages=asked("fail one two three four"))
    assert caught.value.code == "model_not_loaded"


def test_an_answer_that_fails_in_its_middle_ends_the_stream_with_the_error(client: openai.OpenAI) -> None:
    said = ""
    with pytest.raises(openai.APIError) as caught:
        for piece in client.chat.completions.create(
            model=MODEL, messages=asked("fail one two three four"), stream=True
        ):
            said += piece.choices[0].delta.content or ""
    assert said == "You said: fail one " and caught.value.code == "model_not_loaded"


def test_what_was_written_comes_before_the_error(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that had failed before the stream looked at it lost its text: on a busy machine its last words."""
    first_sign = Choices.first_sign

    async def late(choices: Choices, timeout_s: float) -> None:
        while any(choice.answer.is_running for choice in choices.choices):
            await choices.change()
        await first_sign(choices, timeout_s)

    monkeypatch.setattr(Choices, "first_sign", late)
    test_an_answer_that_fails_in_its_middle_ends_the_stream_with_the_error(client)


def test_metrics_tell_what_happened(url: str) -> None:
    before = figures(url)
    httpx2.post(f"{url}/v1/chat/completions", json={"messages": asked("one two three")})
    httpx2.post(f"{url}/v1/chat/completions", json={"messages": 5})
    after = figures(url)
    route = 'llamadeck_api_requests_total{route="/v1/chat/completions",status="%d"}'
    assert after[route % 200] == before.get(route % 200, 0) + 1
    assert after[route % 400] == before.get(route % 400, 0) + 1
    assert after["llamadeck_api_completion_tokens_total"] == before["llamadeck_api_completion_tokens_total"] + 5
    assert after["llamadeck_api_first_token_seconds_count"] == before["llamadeck_api_first_token_seconds_count"] + 1
    assert after["llamadeck_answers_running"] == after["llamadeck_answers_queued"] == 0
    assert after[f'llamadeck_model_loaded{{model="{MODEL}"}}'] == 1


def test_metrics_have_the_form_that_prometheus_reads(url: str) -> None:
    lines = httpx2.get(f"{url}/metrics").text.splitlines()
    kinds = {line.split()[2] for line in lines if line.startswith("# TYPE ")}
    for line in lines:
        if not line.startswith("#"):
            found = re.fullmatch(r'([a-z_]+?)(_bucket|_sum|_count)?(\{([a-z]+="[^"]*",?)+\})? [0-9.]+', line)
            assert found is not None and {found[1], found[1] + (found[2] or "")} & kinds, line
    counts = [int(line.split()[1]) for line in lines if "_bucket{" in line]
    assert counts == sorted(counts) and len(counts) > 5


def figures(url: str) -> dict[str, float]:
    lines = httpx2.get(f"{url}/metrics").text.splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def test_thoughts_come_apart_from_answers_whole_and_streamed(client: openai.OpenAI) -> None:
    question = asked("think=3 words=2")
    message = client.chat.completions.create(model=MODEL, messages=question).choices[0].message
    thought = "thought0 thought1 thought2"
    assert message.content == "one two " and message.reasoning_content == thought  # type: ignore[attr-defined]
    assert message.reasoning == thought  # type: ignore[attr-defined]
    deltas = [
        one.choices[0].delta for one in client.chat.completions.create(model=MODEL, messages=question, stream=True)
    ]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == thought
    assert "".join(delta.content or "" for delta in deltas) == "one two "
    kinds = ["thought" if hasattr(delta, "reasoning_content") else "answer" for delta in deltas if delta.role is None]
    assert kinds == sorted(kinds, reverse=True) and set(kinds) == {"thought", "answer"}
    plain = client.chat.completions.create(model=MODEL, messages=asked("words=2")).choices[0].message
    assert not hasattr(plain, "reasoning_content")


@pytest.mark.parametrize(
    "fields",
    [
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"enable_thinking": True, "reasoning_effort": "high", "thinking_token_budget": 5},
    ],
)
def test_switches_of_thinking_are_taken_also_where_a_model_has_none(
    client: openai.OpenAI, fields: dict[str, object]
) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=asked("words=2"), extra_body=fields)
    assert answer.choices[0].message.content == "one two "


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"chat_template_kwargs": {"a b": 1}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"tools": [1]}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"x": "y" * 1001}}, "chat_template_kwargs"),
        ({"enable_thinking": "no"}, "enable_thinking"),
        ({"reasoning_effort": "most"}, "reasoning_effort"),
        ({"thinking_budget": 0}, "thinking_budget"),
    ],
)
def test_what_cannot_be_said_of_thinking_is_refused_by_name(url: str, fields: dict[str, object], field: str) -> None:
    refused = httpx2.post(f"{url}/v1/chat/completions", json={"messages": asked("hi"), **fields})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == field


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (EngineState(), "model_not_loaded"),
        (EngineState("loading", "some-model", fraction=0.42), "model_loading"),
        (EngineState("failed", "some-model", error=EngineError("worker_killed")), "model_not_loaded"),
    ],
)
def test_while_nothing_is_loaded_and_while_a_load_runs(api_home: Path, state: EngineState, code: str) -> None:
    with api_server(StillEngine(state), api_home) as url:
        for path, body in [("chat/completions", {"messages": asked("hi")}), ("completions", {"prompt": "x"}),
                           ("tokenize", {"prompt": "x"}), ("detokenize", {"tokens": [1]})]:  # fmt: skip
            refused = httpx2.post(f"{url}/v1/{path}", json=body)
            assert refused.status_code == 503 and int(refused.headers["retry-after"]) > 0
            assert refused.json()["error"]["code"] == code
        assert ("(42 %)" in refused.json()["error"]["message"]) == (code == "model_loading")
        assert httpx2.get(f"{url}/v1/models").json() == {"object": "list", "data": []}
        assert httpx2.get(f"{url}/v1/models/some-model").status_code == 503
        assert httpx2.get(f"{url}/health").json() == {"status": "ok"}
        assert "llamadeck_model_loaded{" not in httpx2.get(f"{url}/metrics").text


class Failing(StillEngine):
    """An engine that takes one prompt and no more."""

    def __init__(self) -> None:
        super().__init__(EngineState("ready", MODEL))
        self.cancelled: list[int] = []

    def answer(self) -> Answer:
        if self.running_answers:
            raise EngineError("nothing_loaded")
        self.running_answers.append(Answer(1, self.cancelled.append))
        return self.running_answers[0]


def test_where_not_all_answers_can_begin_none_goes_on() -> None:
    """Nobody would read the first, and it would keep its place in the engine to the end of the context."""
    engine = Failing()
    loaded = ServedModel(
        ModelPrompt(MODEL, None, ChatTemplate(OWN_LLAMA2, "", ""), TokenCounter(None), len), 1024, 1, {}, 0
    )
    with pytest.raises(EngineError):
        begin(engine, [GenerationRequest("x", Sampling(), num_choices=2)], loaded)
    assert engine.cancelled == [1]


def test_an_engine_that_dies_is_an_error_and_the_server_goes_on(api_home: Path) -> None:
    with loaded_runner(api_home / "models") as runner, api_server(runner, api_home) as url:
        died = httpx2.post(f"{url}/v1/chat/completions", json={"messages": asked("die one two three four")})
        assert died.status_code == 500 and died.json()["error"]["type"] == "server_error"
        assert httpx2.post(f"{url}/v1/chat/completions", json={"messages": asked("hi")}).status_code == 503
        runner.load(api_home / "models" / MODEL)
        assert runner.wait_while_loading(WAIT_S).phase == "ready"
        assert httpx2.post(f"{url}/v1/chat/completions", json={"messages": asked("hi")}).status_code == 200


def test_what_was_written_before_a_failure_is_sent_before_its_error(
    url: str, api_runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came while a piece was being sent was once left out where the answer had failed by then."""
    send = HttpCall.frame

    async def send_slowly(call: HttpCall, text: str) -> None:
        await send(call, text)
        for answer in api_runner.running_answers if "You " in text else ():
            await asyncio.to_thread(answer.wait, WAIT_S)

    monkeypatch.setattr(HttpCall, "frame", send_slowly)
    body = {"messages": asked("wait=0.1 fail two three four"), "stream": True}
    with httpx2.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
        sent = [json.loads(line.removeprefix("data: ")) for line in response.iter_lines() if line.startswith("data: ")]
    assert "error" in sent.pop()
    said = "".join(piece["choices"][0]["delta"].get("content") or "" for piece in sent)
    assert said == "You said: wait=0.1 fail "


def test_an_unload_ends_answers_with_a_sentence(api_home: Path) -> None:
    with loaded_runner(api_home / "models") as runner, api_server(runner, api_home) as url:
        with httpx2.stream(
            "POST", f"{url}/v1/chat/completions", json={"messages": asked("forever"), "stream": True}
        ) as (response):
            lines = response.iter_lines()
            assert next(lines).startswith("data: ")
            threading.Thread(target=runner.unload).start()
            last = [line for line in lines if line][-1]
    assert "The model was unloaded before the answer was finished" in last and last.startswith('data: {"error"')
