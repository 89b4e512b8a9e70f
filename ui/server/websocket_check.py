"""Whether a websocket gets from a browser to this server and back, through whatever stands between them.

Streamlit's pages come over one: where a proxy does not pass it on, they stay empty and say nothing. So the check has a
page of its own that needs none, beside its place on Settings.
"""

from __future__ import annotations

import asyncio
import json
from html import escape

from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from core.access.requests import language_of
from core.access.sign_in_page import STYLE
from core.common.i18n import translate

PATH, ECHO_PATH = "/websocket-check", "/websocket-check/echo"
# More than the script sends, and longer than it waits.
MAX_MESSAGES, MAX_CHARS, OPEN_S = 10, 64, 15.0
WORDS = ("trying", "works", "slow", "fails")
# Tells `say` how it went: the name of a word, and the milliseconds there and back. Addresses are relative to the
# page's: a proxy may serve it below a path of its own.
SCRIPT = """
const checkWebsocket = (say) => {
    const address = new URL("websocket-check/echo", window.location.href), times = [];
    address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
    let isDone = false, sentAt = 0;
    const socket = new WebSocket(address), end = (word, ms) => {
        if (!isDone) {
            isDone = true;
            clearTimeout(timer);
            socket.close();
            say(word, ms);
        }
    };
    const timer = setTimeout(() => end("fails", 0), 10000);
    const ask = () => {
        sentAt = performance.now();
        socket.send(`${times.length}`);
    };
    socket.onopen = ask;
    socket.onmessage = () => {
        times.push(performance.now() - sentAt);
        if (times.length < 5) {
            ask();
        } else {
            const ms = Math.round(times.sort((one, other) => one - other)[2]);
            end(ms < 400 ? "works" : "slow", ms);
        }
    };
    socket.onerror = socket.onclose = () => end("fails", 0);
};
"""


def websocket_check_routes() -> list[BaseRoute]:
    return [Route(PATH, show), WebSocketRoute(ECHO_PATH, echo)]


async def show(request: Request) -> HTMLResponse:
    language = language_of(request)
    said = {word: translate(language, f"websocket.{word}", ms="{ms}") for word in WORDS}
    # "</" would end the script within a text.
    words = json.dumps(said, ensure_ascii=False).replace("</", "<\\/")
    title = escape(translate(language, "websocket.title"))
    return HTMLResponse(
        f'<!doctype html><html lang="{"zh-CN" if language == "zh" else "en"}"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>LlamaDeck · {title}</title><style>{STYLE}</style></head>"
        f'<body><main><h1>{title}</h1><p role="status">{escape(said["trying"])}</p></main><script>{SCRIPT}'
        f"const words = {words};"
        'checkWebsocket((word, ms) => { document.querySelector("p").textContent = words[word].replace("{ms}", ms); });'
        "</script></body></html>"
    )


async def echo(socket: WebSocket) -> None:
    """Say a few short texts again. Whoever stays longer, or says more, is sent away."""
    await socket.accept()
    try:
        async with asyncio.timeout(OPEN_S):
            for _ in range(MAX_MESSAGES):
                text = await socket.receive_text()
                if len(text) > MAX_CHARS:
                    break
                await socket.send_text(text)
        await socket.close()
    except WebSocketDisconnect:
        return
    except (TimeoutError, KeyError):  # It stays too long, or sent bytes.
        await socket.close()
