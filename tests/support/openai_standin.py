"""A small stand-in of a server with OpenAI's API on loopback, which fails in every way that a real one can.

What it does beside answering is switched on by the attributes of Behaviour, also while it runs.
"""

from __future__ import annotations

import json
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


@dataclass
class Behaviour:
    """What the next requests get. `raw` answers a path with just these bytes, head and all."""

    models: list[dict[str, Any]] = field(default_factory=lambda: [{"id": "small", "owned_by": "vllm"}])
    # Said before, by one of the names that servers have for it.
    thought: list[str] = field(default_factory=list)
    thought_name: str = "reasoning_content"
    words: list[str] = field(default_factory=lambda: ["Hello", " from", " there"])
    finish: str = "stop"
    key: str = ""
    # A status and a body for every request whose path contains a text.
    statuses: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    raw: dict[str, bytes] = field(default_factory=dict)
    redirect: str = ""
    # After so many words the connection breaks, falls silent, or a body of one's own comes; None: never.
    breaks_after: int | None = None
    silent_after: int | None = None
    then: bytes = b""
    # Waits before the first byte of an answer.
    is_hanging: bool = False
    usage: dict[str, Any] | None = None
    count: Any = 7


@dataclass(frozen=True)
class Request:
    path: str
    headers: dict[str, str]
    body: Any


class OpenAiStandin:
    """The server; `with OpenAiStandin() as server:` answers at `server.url` until the end of the block."""

    def __init__(self, port: int = 0) -> None:
        self.behaviour = Behaviour()
        self.requests: list[Request] = []
        self.closing = threading.Event()
        # Set when a client has let go of an answer that was silent.
        self.was_left = threading.Event()
        self._server = _Server(("127.0.0.1", port), type("Handler", (_Handler,), {"standin": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> OpenAiStandin:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def asked(self, path: str) -> list[Request]:
        return [request for request in self.requests if request.path == path]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # As many may knock at once as a real server lets.
    request_queue_size = 128


class _Handler(BaseHTTPRequestHandler):
    standin: OpenAiStandin
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, body: Any) -> None:
        does = self.standin.behaviour
        self.standin.requests.append(Request(self.path, dict(self.headers), body))
        self.close_connection = True
        if found := next((raw for part, raw in does.raw.items() if part in self.path), None):
            self.wfile.write(found)
        elif does.redirect:
            self._send(302, b"", {"Location": does.redirect + self.path})
        elif found_status := next((one for part, one in does.statuses.items() if part in self.path), None):
            self._send(*found_status)
        elif does.key and self.headers.get("Authorization") != f"Bearer {does.key}":
            self._send(401, b'{"error": "Unauthorized"}')
        elif does.is_hanging:
            self._wait()
        elif self.path == "/v1/models":
            self._send(200, json.dumps({"object": "list", "data": does.models}).encode())
        elif self.path.endswith("/tokenize"):
            self._send(200, json.dumps({"count": does.count}).encode())
        else:
            self._stream(does, is_chat="chat" in self.path)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        usual = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
        for name, value in {**usual, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, does: Behaviour, is_chat: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Connection", "close")
        self.end_headers()
        for piece in does.thought:
            self._say({"choices": [{"delta": {does.thought_name: piece, "content": None}}]})
        for place, word in enumerate(does.words):
            if does.silent_after == place:
                return self._wait()
            if does.breaks_after == place:
                # A reset, where an ordinary close would look like an end.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                return None
            self._say({"choices": [{"delta": {"content": word}} if is_chat else {"text": word}]})
        if does.then:
            self.wfile.write(does.then)
            return None
        self._say({"choices": [{"delta": {}, "finish_reason": does.finish}]})
        if does.usage is not None:
            self._say({"choices": [], "usage": does.usage})
        self.wfile.write(b"data: [DONE]\n\n")
        return None

    def _say(self, event: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")

    def _wait(self) -> None:
        """Until the client goes away, or the server ends."""
        self.connection.settimeout(0.02)
        while not self.standin.closing.is_set():
            try:
                if not self.connection.recv(1):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        self.standin.was_left.set()
