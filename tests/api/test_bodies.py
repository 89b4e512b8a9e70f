"""What strangers may send: counted while it comes, mended where it is no Unicode, refused in words, never a hang."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.api import models
from core.api.errors import ApiError
from core.api.http_call import HttpCall
from core.api.intake import LARGE_BYTES, MAX_LARGE, MAX_LARGE_OF_ONE, NUM_THREADS, Intake
from core.api.json_text import MAX_VALUES, mend, read_json
from core.api.prompt_size import FEW_CHARS, PIECE_CHARS, check_size
from core.api.schema import TokenizeRequest
from core.api.served_model import ServedModel
from core.chat.model_prompt import ModelPrompt
from core.chat.template import ChatTemplate
from core.common.plain_json import ValueCounter
from tests.support.api_server import MODEL, error, raw, received

CHAT, COMPLETIONS, TOKENIZE = "/v1/chat/completions", "/v1/completions", "/v1/tokenize"
WAIT_S = 60.0
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def post(url: str, body: bytes) -> httpx2.Response:
    return httpx2.post(url, content=body, headers={"content-type": "application/json"}, timeout=WAIT_S)


def count(value: Any) -> int:
    """The values in a value, keys and itself with them; an empty list is two, for what might have been in it."""
    if isinstance(value, dict):
        return 1 + sum(1 + count(one) for one in value.values()) + (not value)
    return 1 + sum(map(count, value)) + (not value) if isinstance(value, list) else 1


@given(values, st.integers(1, 7), st.booleans())
def test_values_are_counted_as_a_parser_makes_them_however_they_come(value: Any, size: int, is_ascii: bool) -> None:
    body = json.dumps(value, ensure_ascii=is_ascii).encode("utf-8", "surrogatepass")
    counter = ValueCounter()
    for begin in range(0, len(body), size):
        counter.take(body[begin : begin + size])
    assert counter.num_values == count(value)


@given(st.lists(st.sampled_from(["\\", '"', "\\\\", '\\"', "[", ",", "x"])))
def test_escapes_hide_nothing(parts: list[str]) -> None:
    body = ('["' + "".join(parts) + '",1]').encode()
    counter = ValueCounter()
    for one in body:
        counter.take(bytes([one]))
    try:
        value = json.loads(body)
    except ValueError:
        return
    assert counter.num_values == count(value)


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'"\\ud83d"', "\ufffd"),
        (b'"a\\uDE00b"', "a\ufffdb"),
        (b'"\\ud83d\\ude00 \\ude00\\ud83d"', "\U0001f600 \ufffd\ufffd"),
        (b'{"\\ud83dx": ["\\udfff"]}', {"\ufffdx": ["\ufffd"]}),
        (b'"\\\\ud83d"', "\\ud83d"),
        (b'"caf\xe9"', "caf\ufffd"),
        (b'"\xed\xa0\xbd"', "\ufffd\ufffd\ufffd"),
        (b"\xef\xbb\xbf[16.0, 1e2, -0.0, 0.5]", [16, 100, 0, 0.5]),
    ],
)
def test_half_a_character_a_mark_and_whole_floats_are_read(body: bytes, value: Any) -> None:
    assert read_json(body) == value
    assert json.dumps(read_json(body)) == json.dumps(value)


@given(st.text(st.characters(), max_size=50))
def test_mended_text_can_be_written_and_keeps_the_rest(text: str) -> None:
    mended = mend(text)
    mended.encode("utf-8")
    for one, other in zip(text, mended, strict=True):
        assert one == other or (other == "\ufffd" and "\ud800" <= one <= "\udfff")


@pytest.mark.parametrize("body", [b"", b"NaN", b"[Infinity]", b"[" * 100_000, b'{"a":' * 3000, b"9" * 5000, b"[]x",
                                  b'["\\ud83d",' + b"[" * 900 + b"]" * 901, b'"\n"'])  # fmt: skip
def test_what_is_no_json_is_an_error_and_no_crash(body: bytes) -> None:
    try:
        read_json(body)
    except ValueError as failure:
        assert str(failure)


HALF = "half \ud83d"


@pytest.mark.parametrize(
    ("path", "fields", "is_repeated"),
    [
        (CHAT, {"messages": [{"role": "user", "content": HALF}]}, True),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": HALF}]}], "stream": True}, True),
        (CHAT, {"messages": [{"role": "user", "content": HALF}], "model": "Ada"}, True),
        (CHAT, {"messages": [{"role": "user", "content": "hi"}], "stop": [HALF], "user": HALF, HALF: HALF}, False),
        (COMPLETIONS, {"prompt": HALF, "echo": True}, True),
        (TOKENIZE, {"prompt": HALF}, False),
    ],
)
def test_half_a_character_in_a_history_does_not_fail_its_requests(
    url: str, path: str, fields: dict[str, Any], is_repeated: bool
) -> None:
    """Once it was in a client's history every further request failed, and the person could not go on."""
    response = post(url + path, json.dumps(fields).encode())
    assert response.status_code == 200, response.text
    assert ("\ufffd" in response.text) == is_repeated


def test_half_a_character_is_echoed_by_no_error(url: str) -> None:
    asked = {"messages": [{"role": "user", "content": "x"}], "model": HALF}
    assert "half \ufffd" in error(post(url + CHAT, json.dumps(asked).encode()))["message"]
    part = {"messages": [{"role": "user", "content": [{"type": HALF}]}]}
    assert "half \ufffd" in error(post(url + CHAT, json.dumps(part).encode()))["message"]
    assert httpx2.get(url + "/v1/models/%ed%a0%bd").status_code == 404


def test_more_values_than_a_parser_should_make_are_refused_while_they_come(url: str) -> None:
    for inner in (b"[]," * MAX_VALUES, b'"k":0,' * MAX_VALUES, b"{}," * MAX_VALUES, b"1," * MAX_VALUES):
        response = post(url + CHAT, b'{"messages": [], "x": [' + inner + b"0]}")
        assert response.status_code == 413 and error(response)["code"] == "request_too_large"


def test_a_text_of_the_same_size_is_no_structure(url: str) -> None:
    body = json.dumps({"prompt": "[{," * MAX_VALUES}).encode()
    assert error(post(url + TOKENIZE, body))["code"] == "context_length_exceeded"


def test_a_compressed_body_is_refused_in_words(url: str) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    response = httpx2.post(url + CHAT, content=b"\x1f\x8b\x08", headers=headers)
    assert response.status_code == 415 and "gzip" in error(response)["message"]


class Counter:
    """Counts a token for each character, and remembers what it was given."""

    is_exact, opening = True, ""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def count(self, text: str) -> int:
        self.seen.append(len(text))
        return len(text)


def served_by(counter: Counter, context_tokens: int) -> ServedModel:
    model = ModelPrompt("m", None, ChatTemplate(None, "", ""), counter, counter.count)  # type: ignore[arg-type]
    return ServedModel(model, context_tokens, 1, {}, 0)


def test_a_text_far_beyond_the_context_is_not_counted_to_its_end() -> None:
    counter = Counter()
    served = served_by(counter, 1000)
    check_size(["x" * FEW_CHARS], served)
    assert counter.seen == []
    with pytest.raises(ApiError) as caught:
        check_size(["x", "y" * 4_000_000, "z" * 4_000_000], served)
    assert caught.value.key == "api_far_too_long"
    assert counter.seen == [1, PIECE_CHARS]


def test_a_text_that_may_fit_is_counted_and_passes() -> None:
    served = served_by(Counter(), 100_000)
    check_size(["x" * 300_000, "y" * 99_000], served)


class Pieces:
    """A request whose body comes piece by piece, as it is let."""

    def __init__(self, client: str, pieces: list[bytes]) -> None:
        self.client, self._pieces = client, pieces
        self.go_on = asyncio.Event()

    def check_kind(self) -> None:
        pass

    async def pieces(self):
        for piece in self._pieces:
            yield piece
        await self.go_on.wait()


BODY = json.dumps({"prompt": "x" * LARGE_BYTES}).encode()


def test_of_large_bodies_few_are_held_at_once_and_of_one_client_fewer() -> None:
    async def run() -> None:
        took = Intake()
        done: list[str] = []

        async def take(call: Pieces) -> None:
            await took.take(call, TokenizeRequest, lambda request: None)  # type: ignore[arg-type]
            done.append(call.client)

        greedy = [Pieces("greedy", [BODY]) for _ in range(MAX_LARGE_OF_ONE + 3)]
        held = [asyncio.create_task(take(call)) for call in greedy]
        for call in greedy[MAX_LARGE_OF_ONE:]:
            call.go_on.set()
        other, small = Pieces("other", [BODY]), Pieces("greedy", [b'{"prompt":', b' "x"}'])
        for call in (other, small):
            call.go_on.set()
            await asyncio.wait_for(take(call), WAIT_S)
        assert done == ["other", "greedy"], "who waits in line shuts out no other, and no small request"
        for call in greedy:
            call.go_on.set()
        await asyncio.wait_for(asyncio.gather(*held), WAIT_S)
        assert len(done) == 2 + len(greedy)

    assert MAX_LARGE > MAX_LARGE_OF_ONE
    asyncio.run(run())


def test_what_is_short_waits_for_no_prompt_that_takes_long() -> None:
    """Eight chats whose template hangs had all the threads there are, and the list of models waited for them."""
    begun, end = threading.Semaphore(0), threading.Event()

    def hang(request: TokenizeRequest) -> None:
        begun.release()
        end.wait(WAIT_S)

    async def run() -> None:
        took = Intake()
        calls = [Pieces(f"{number}", [b'{"prompt": "x"}']) for number in range(2 * NUM_THREADS)]
        for call in calls:
            call.go_on.set()
        tasks = [asyncio.create_task(took.take(call, TokenizeRequest, hang)) for call in calls]  # type: ignore[arg-type]
        try:
            for _ in range(NUM_THREADS):
                assert await asyncio.to_thread(begun.acquire, timeout=WAIT_S)
            assert await took.run(lambda: not end.is_set())
        finally:
            end.set()
            await asyncio.gather(*tasks)

    asyncio.run(run())


def test_where_there_is_no_room_for_long_the_client_is_told_to_ask_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.api.intake.ROOM_S", 0.05)

    async def run() -> None:
        took = Intake()
        held = [Pieces("one", [BODY]) for _ in range(MAX_LARGE_OF_ONE)]
        tasks = [asyncio.create_task(took.take(call, TokenizeRequest, len)) for call in held]  # type: ignore[arg-type]
        await asyncio.sleep(0)
        with pytest.raises(ApiError) as caught:
            await took.take(Pieces("one", [BODY]), TokenizeRequest, len)  # type: ignore[arg-type]
        assert caught.value.key == "api_large_busy"
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())


class PanicException(BaseException):
    """As pyo3's, which is no Exception."""


def test_a_panic_of_a_library_is_an_error_with_a_status(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def panic(*_: object) -> None:
        raise PanicException("called `Option::unwrap()` on a `None` value")

    monkeypatch.setattr(models, "read_served_model", panic)
    response = httpx2.post(url + TOKENIZE, json={"prompt": "x"})
    assert response.status_code == 500 and error(response)["code"] == "internal_error"
    assert "unwrap" not in response.text
    monkeypatch.undo()
    assert httpx2.post(url + TOKENIZE, json={"prompt": "x"}).status_code == 200


@contextmanager
def sent_in_full(url: str, head: bytes, rest: bytes) -> Iterator[tuple[socket.socket, list[OSError]]]:
    """A client that reads nothing before it has sent everything, as most do."""
    with raw(url, head) as connection:
        failed: list[OSError] = []
        try:
            connection.sendall(rest)
        except OSError as failure:
            failed.append(failure)
        yield connection, failed


@pytest.mark.parametrize("length", [b"Content-Length: 6000000", b"Transfer-Encoding: chunked"])
def test_a_client_that_sends_everything_first_reads_why_it_was_refused(url: str, length: bytes) -> None:
    body = b"x" * 6_000_000 if b"Length" in length else b"%x\r\n%s\r\n" % (6_000_000, b"x" * 6_000_000) + b"0\r\n\r\n"
    head = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n%s\r\n\r\n" % length
    with sent_in_full(url, head, body) as (connection, failed):
        said = received(connection)
    assert not failed and b"413" in said.splitlines()[0] and b"request_too_large" in said


def test_a_body_that_nobody_reads_does_not_go_on_for_ever(url: str) -> None:
    """What comes after the answer was thrown away for as long as the client liked to send."""
    head = b"POST /v1/nothing HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    with raw(url, head) as connection:
        ended = threading.Event()

        def send() -> None:
            try:
                while not ended.wait(0.01):
                    connection.sendall(b"4\r\nmore\r\n")
            except OSError:
                pass

        sending = threading.Thread(target=send)
        sending.start()
        said = received(connection)
        ended.set()
        sending.join(WAIT_S)
    assert b"404" in said.splitlines()[0] and b"connection: close" in said.lower()


def test_names_and_stops_have_a_length(url: str) -> None:
    hello = {"messages": [{"role": "user", "content": "hello"}]}
    response = httpx2.post(url + CHAT, json=hello | {"model": "x" * 1_000_000})
    assert response.status_code == 404 and len(response.text) < 1000
    response = httpx2.post(url + CHAT, json=hello | {"stop": ["x" * 1001]})
    assert response.status_code == 400 and error(response)["param"] == "stop"
    assert httpx2.post(url + CHAT, json=hello | {"stop": ["x" * 1000], "model": MODEL}).status_code == 200


def test_a_stream_that_nobody_reads_is_given_up() -> None:
    """It held a place, and the engine wrote on for nobody."""
    sent: list[object] = []

    async def send(message: Any) -> None:
        sent.append(message)
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def run() -> None:
        scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
        call = HttpCall(scope, receive, send, asyncio.Event(), stall_s=0.05)
        await call.start_stream()
        with pytest.raises(Exception) as caught:
            await call.unless_gone(call.frame("x"))
        assert type(caught.value).__name__ == "ClientGone"

    asyncio.run(run())
    assert len(sent) == 2
