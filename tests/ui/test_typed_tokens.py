"""Words that are being typed are counted by the model that answers, and never more than a page sends."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette

from core.access.access import Access
from core.access.gate import Gate
from core.chat.tokens import TokenizerError
from tests.support.gate_client import access, ask, cookie_of, settings, sign_in
from ui.chat.input_watch import PATH as ASKED_PATH
from ui.server.typed_tokens import CLIENT_GONE, MAX_AT_ONCE, MAX_BODY_BYTES, MAX_WAITING, PATH, typed_tokens_route

__all__ = ["access", "settings"]
WAIT_S = 60.0


def asked(
    body: bytes, count: Callable[[str], int] = len, method: str = "POST", kind: str = "http.request"
) -> tuple[int, bytes]:
    """The status and body of the answer."""
    return asyncio.run(answer_of(Starlette(routes=[typed_tokens_route(count)]), body, method, kind))


async def answer_of(app: Starlette, body: bytes, method: str = "POST", kind: str = "http.request") -> tuple[int, bytes]:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": kind, "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": PATH, "headers": [], "query_string": b"", "root_path": ""}
    await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


def test_a_text_is_counted() -> None:
    assert f"/{ASKED_PATH}" == PATH
    assert [json.loads(asked(text.encode())[1])["tokens"] for text in ("", "你好", "cut off \ufffd")] == [0, 2, 9]
    assert asked(b"\xe4\xbd")[0] == 200


def test_more_than_a_page_sends_is_refused_uncounted() -> None:
    counted: list[str] = []
    assert asked(b"x" * (MAX_BODY_BYTES + 1), lambda text: counted.append(text) or 0)[0] == 413
    assert not counted
    assert asked(b"x", method="GET")[0] == 405


def test_nobody_is_counted_for_who_has_not_signed_in(access: Access) -> None:
    counted: list[str] = []
    routes = [typed_tokens_route(lambda text: counted.append(text) or 0)]
    gate = Gate(Starlette(routes=routes), access)
    assert ask(gate, PATH, {}, "POST", [b"x"]).status == 401 and not counted
    here = cookie_of(sign_in(gate))
    foreign = here | {"sec-fetch-site": "cross-site", "origin": "https://evil.example"}
    assert ask(gate, PATH, foreign, "POST", [b"x"]).status == 403 and not counted
    assert ask(gate, PATH, here, "POST", [b"x"]).status == 200 and counted == ["x"]


def test_more_than_may_wait_are_refused_and_the_others_counted() -> None:
    open_up = threading.Event()
    app = Starlette(routes=[typed_tokens_route(lambda text: open_up.wait(WAIT_S) and len(text))])
    most = MAX_AT_ONCE + MAX_WAITING

    async def ask_all() -> list[int]:
        tasks = [asyncio.create_task(answer_of(app, b"x")) for _ in range(most + 3)]
        while sum(task.done() for task in tasks) < 3:
            await asyncio.sleep(0)
        open_up.set()
        return [status for status, _ in await asyncio.gather(*tasks)]

    assert sorted(asyncio.run(ask_all())) == [200] * most + [503] * 3
    assert asked(b"x")[0] == 200


def test_who_leaves_while_the_text_comes_is_no_fault() -> None:
    assert asked(b"x", kind="http.disconnect")[0] == CLIENT_GONE


def test_what_the_tokenizer_cannot_take_counts_nothing() -> None:
    def fail(_: str) -> int:
        raise TokenizerError("tokenizer_text", model="m", why="w")

    assert asked(b"x", fail) == (200, b'{"tokens":0}')
