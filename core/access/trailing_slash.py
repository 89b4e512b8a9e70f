"""Redirects the first page below a proxy's path to the address that ends with a slash.

Jupyter passes /proxy/6006 and /proxy/6006/ on as the same, but the page's relative addresses are right below the
second only. The server cannot see which one the browser asked for. A line of script in the page can.
"""

from __future__ import annotations

import json

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Scope, Send

SCRIPT = "<script>location.pathname===%s&&location.replace(%s+location.search+location.hash)</script>"


def with_trailing_slash(send: Send, prefix: str) -> Send:
    """`send`, which puts the line into a page; `prefix` is the path that was taken away, with nothing to escape in it.

    The page must not come compressed."""
    script = (SCRIPT % (json.dumps(prefix), json.dumps(f"{prefix}/"))).encode()
    held: list[Message] = []

    async def send_with_slash(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 200:
            held.append(message)
            return
        if held and message["type"] == "http.response.body":
            start, body = held.pop(), message.get("body", b"")
            longer = body.replace(b"<head>", b"<head>" + script, 1)
            headers = MutableHeaders(raw=list(start["headers"]))
            if "content-length" in headers:
                headers["content-length"] = str(int(headers["content-length"]) + len(longer) - len(body))
            await send({**start, "headers": headers.raw})
            message = {**message, "body": longer}
        await send(message)

    return send_with_slash


def uncompressed(scope: Scope) -> Scope:
    headers = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
    return {**scope, "headers": headers}
