"""Words that are being typed are counted by the model that answers, and never more than a page sends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette

from core.chat.tokens import TokenizerError
from ui.chat.input_watch import PATH as ASKED_PATH
from ui.server.typed_tokens import MAX_BODY_BYTES, PATH, typed_tokens_route


def asked(body: bytes, count: Callable[[str], int] = len, method: str = "POST") -> tuple[int, bytes]:
    """The status and body of the answer."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": PATH, "headers": [], "query_string": b"", "root_path": ""}
    asyncio.run(Starlette(routes=[typed_tokens_route(count)])(scope, receive, send))
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


def test_what_the_tokenizer_cannot_take_counts_nothing() -> None:
    def fail(_: str) -> int:
        raise TokenizerError("tokenizer_text", model="m", why="w")

    assert asked(b"x", fail) == (200, b'{"tokens":0}')
