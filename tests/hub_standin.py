"""A small stand-in of the Hugging Face Hub on loopback, so that its real client and ours can be tested offline.

Serves ROOT/<owner>/<repository>/<branch>/<files>; a branch called "a/b" is the folder "a%2Fb". What the Hub would do
besides (gated repositories, redirects to a store of files, ...) is switched on by the attributes of Behaviour.
Routes: model info with and without a revision, refs, tree, and resolve with HEAD, GET and ranges.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote, unquote, urlsplit

MODEL = r"(?P<repo>[^/]+/[^/]+)"
ROUTES = [
    ("info", re.compile(rf"/api/models/{MODEL}(?:/revision/(?P<revision>[^/]+))?")),
    ("refs", re.compile(rf"/api/models/{MODEL}/refs")),
    ("tree", re.compile(rf"/api/models/{MODEL}/tree/(?P<revision>[^/]+)")),
    ("file", re.compile(rf"/{MODEL}/resolve/(?P<revision>[^/]+)/(?P<file>.+)")),
]
RANGE = re.compile(r"bytes=(\d+)-(\d*)")
CHUNK_BYTES = 64 * 1024
# Above this a weight file is too large to hash in a test.
LARGE_BYTES = 64 * 1024 * 1024


@dataclass
class Behaviour:
    """What the stand-in does beside serving files. A test sets what it needs, also while the server runs."""

    # Repositories whose files are only for those who accepted; model info stays open, as on the Hub.
    gated: set[str] = field(default_factory=set)
    # Repositories that do not exist for those without a token that may see them.
    private: set[str] = field(default_factory=set)
    # Tokens that the Hub knows; with `accepted`, those whose owner accepted the terms of all gated repositories.
    tokens: set[str] = field(default_factory=set)
    accepted: set[str] = field(default_factory=set)
    # Another server that keeps the weight files, as the Hub's store does.
    store: str = ""
    ignores_ranges: bool = False
    # A status for every request whose path contains a text.
    statuses: dict[str, int] = field(default_factory=dict)
    # A body in place of the true one, by the end of the path.
    bodies: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Request:
    """One request as it came in, what it was answered with, and how many bytes of the body went out."""

    method: str
    path: str
    headers: dict[str, str]
    status: int = 0
    sent_bytes: int = 0


class HubStandin:
    """The server; `with HubStandin(root) as hub:` serves `root` at `hub.url` until the end of the block."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.behaviour = Behaviour()
        self.requests: list[Request] = []
        self.connections: set[socket.socket] = set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        # close() waits for every answer to end, so that what was sent can be counted.
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> HubStandin:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            for connection in list(self.connections):
                # Nothing more is heard, so that a connection that its client keeps open ends; answers go on.
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RD)
            self._server.server_close()

    @property
    def paths(self) -> list[str]:
        return [request.path for request in self.requests]

    def branches(self, repo: str) -> list[str]:
        folder = self.root / repo
        return sorted(unquote(path.name) for path in folder.iterdir()) if folder.is_dir() else []

    def commit(self, repo: str, branch: str) -> str:
        return hashlib.sha1(f"{repo}@{branch}".encode()).hexdigest()

    def folder(self, repo: str, revision: str) -> Path | None:
        """The folder of a branch, which is named by itself or by its commit."""
        for branch in self.branches(repo):
            if revision in (branch, self.commit(repo, branch)):
                return self.root / repo / quote(branch, safe="")
        return None


class _Handler(BaseHTTPRequestHandler):
    hub: HubStandin
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def handle(self) -> None:
        """Clients hang up when they know enough; that is no error."""
        self.hub.connections.add(self.connection)
        with contextlib.suppress(ConnectionError):
            super().handle()
        self.hub.connections.discard(self.connection)

    def do_GET(self) -> None:
        self.request_seen = Request(self.command, self.path, dict(self.headers))
        self.hub.requests.append(self.request_seen)
        try:
            self.answer()
            self.wfile.flush()
        except ConnectionError:
            self.close_connection = True

    do_HEAD = do_GET

    def log_message(self, *arguments: object) -> None:
        """Say nothing: tests read hub.requests."""

    def answer(self) -> None:
        behaviour, path = self.hub.behaviour, urlsplit(self.path).path
        for text, status in behaviour.statuses.items():
            if text in path:
                return self.send_error_code(status, "")
        for end, body in behaviour.bodies.items():
            if path.endswith(end):
                return self.send_body(200, body)
        for name, route in ROUTES:
            found = route.fullmatch(path)
            if found:
                parts = {key: unquote(value) for key, value in found.groupdict(default="main").items()}
                return self.answer_route(name, **parts)
        self.send_error_code(404, "")

    def answer_route(self, name: str, repo: str, revision: str = "main", file: str = "") -> None:
        behaviour, token = self.hub.behaviour, self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in behaviour.tokens:
            return self.send_error_code(401, "", "Invalid credentials in Authorization header")
        if not self.hub.branches(repo) or (repo in behaviour.private and not token):
            return self.send_error_code(404 if token else 401, "RepoNotFound", "Repository not found")
        folder = self.hub.folder(repo, revision)
        if folder is None:
            return self.send_error_code(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if name == "file":
            if repo in behaviour.gated and token not in behaviour.accepted:
                return self.send_error_code(403 if token else 401, "GatedRepo", f"Access to model {repo} is restricted")
            return self.send_file(repo, folder, file)
        self.send_json({"info": self.info, "refs": self.refs, "tree": self.tree}[name](repo, folder))

    def info(self, repo: str, folder: Path) -> Any:
        siblings = [{"rfilename": entry["path"], **entry} for entry in _entries(folder)]
        gated = "manual" if repo in self.hub.behaviour.gated else False
        commit = self.hub.commit(repo, unquote(folder.name))
        private = repo in self.hub.behaviour.private
        return {"id": repo, "sha": commit, "private": private, "gated": gated, "siblings": siblings}

    def refs(self, repo: str, folder: Path) -> Any:
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": self.hub.commit(repo, name)}
            for name in self.hub.branches(repo)
        ]
        return {"branches": branches, "tags": [], "converts": []}

    def tree(self, repo: str, folder: Path) -> Any:
        return list(_entries(folder))

    def send_file(self, repo: str, folder: Path, file: str) -> None:
        path = folder / file
        if not path.is_file():
            return self.send_error_code(404, "EntryNotFound", "Entry not found")
        headers = {
            "X-Repo-Commit": self.hub.commit(repo, unquote(folder.name)),
            "ETag": f'"{_oid(path)}"',
            "Accept-Ranges": "bytes",
        }
        store = self.hub.behaviour.store
        if store and file.endswith(".safetensors"):
            linked = {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(path.stat().st_size)}
            return self.send_body(302, b"", headers | linked | {"Location": store + self.path})
        self.send_range(path, headers)

    def send_range(self, path: Path, headers: dict[str, str]) -> None:
        size = path.stat().st_size
        wanted = None if self.hub.behaviour.ignores_ranges else RANGE.fullmatch(self.headers.get("Range", ""))
        begin, end = (int(wanted[1]), int(wanted[2] or size - 1)) if wanted else (0, size - 1)
        end = min(end, size - 1)
        if wanted and begin > end:
            return self.send_body(416, b"", {"Content-Range": f"bytes */{size}"})
        if wanted:
            headers = headers | {"Content-Range": f"bytes {begin}-{end}/{size}"}
        self.send_head(206 if wanted else 200, end + 1 - begin, headers)
        if self.command == "GET":
            for chunk in _read(path, begin, end + 1):
                self.wfile.write(chunk)
                self.request_seen.sent_bytes += len(chunk)

    def send_json(self, value: Any) -> None:
        self.send_body(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send_error_code(self, status: int, code: str, message: str = "") -> None:
        named = {"X-Error-Code": code, "X-Error-Message": message}
        self.send_body(status, b"", {key: value for key, value in named.items() if value})

    def send_body(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_head(status, len(body), headers or {})
        if self.command == "GET":
            self.wfile.write(body)
            self.request_seen.sent_bytes += len(body)

    def send_head(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.request_seen.status = status
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(length)}).items():
            self.send_header(name, value)
        self.end_headers()


def _entries(folder: Path) -> Iterator[dict[str, Any]]:
    """The files of a branch, as the Hub lists them."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            size, oid = path.stat().st_size, _oid(path)
            entry: dict[str, Any] = {
                "type": "file",
                "path": path.relative_to(folder).as_posix(),
                "size": size,
                "oid": oid,
                "blobId": oid,
            }
            if path.suffix == ".safetensors":
                entry["lfs"] = {"oid": oid, "sha256": oid, "size": size, "pointerSize": 135}
            yield entry


def _oid(path: Path) -> str:
    """sha256 for weights, or for their size where they are too large; git's own for the rest."""
    size = path.stat().st_size
    if path.suffix == ".safetensors":
        return hashlib.sha256(path.read_bytes() if size < LARGE_BYTES else str(size).encode()).hexdigest()
    return hashlib.sha1(f"blob {size}\0".encode() + path.read_bytes()).hexdigest()


def _read(path: Path, begin: int, end: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(begin)
        while begin < end:
            chunk = file.read(min(CHUNK_BYTES, end - begin))
            begin += len(chunk)
            yield chunk
