"""A small stand-in of the Hugging Face Hub on loopback, so that its real client and ours can be tested offline.

Serves ROOT/<owner>/<repository>/<branch>/<files>; a branch called "a/b" is the folder "a%2Fb". What the Hub would do
besides (gated repositories, redirects to a store of files, ...) is switched on by the attributes of Behaviour.
Routes: search, model info with and without a revision, refs, tree, and resolve with HEAD, GET and ranges.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

MODEL = r"(?P<repo>[^/]+/[^/]+)"
ROUTES = [
    ("info", re.compile(rf"/api/models/{MODEL}(?:/revision/(?P<revision>[^/]+))?")),
    ("refs", re.compile(rf"/api/models/{MODEL}/refs")),
    ("tree", re.compile(rf"/api/models/{MODEL}/tree/(?P<revision>[^/]+)")),
    ("file", re.compile(rf"/{MODEL}/resolve/(?P<revision>[^/]+)/(?P<file>.+)")),
]
RANGE = re.compile(r"bytes=(\d+)-(\d*)")
CHUNK_BYTES = 64 * 1024
SENDFILE_BYTES = 4 * 1024 * 1024
POLL_S = 0.02
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
    # What the next requests for whole files get, one each: a status and a Retry-After.
    busy: list[tuple[int, str]] = field(default_factory=list)
    # After how many bytes the connections of the next requests for weights break, one each; and of all of them.
    cuts: list[int] = field(default_factory=list)
    cut_every: int = 0
    # After how many bytes the connections of the next requests for weights say nothing more, one each.
    stalls: list[int] = field(default_factory=list)
    # What is added to the length that the next answers with weights claim, one each.
    false_lengths: list[int] = field(default_factory=list)
    # How many of the next answers with weights have one wrong byte.
    num_wrong: int = 0
    # Bytes a second for each connection; as fast as it goes where it is 0.
    rate_bytes_s: int = 0
    # Every push makes another commit of every branch, and the one before is no more.
    num_pushes: int = 0
    # What the tree lists beside what is there, or in its place where the path is the same.
    listed: list[dict[str, Any]] = field(default_factory=list)
    # How many entries a page of the tree has, where it is not all of them.
    page_entries: int = 0


@dataclass
class Request:
    """One request as it came in, what it was answered with, and how many bytes of the body went out."""

    method: str
    path: str
    headers: dict[str, str]
    status: int = 0
    sent_bytes: int = 0


@dataclass
class Fault:
    """What happens to one answer: after how many bytes its connection breaks or falls silent, what it claims."""

    after: int = sys.maxsize
    stalls: bool = False
    false_length: int = 0
    is_wrong: bool = False


class HubStandin:
    """The server; `with HubStandin(root) as hub:` serves `root` at `hub.url` until the end of the block."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.behaviour = Behaviour()
        self.requests: list[Request] = []
        self.connections: set[socket.socket] = set()
        self.closing = threading.Event()
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
        self.closing.set()
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
        pushes = f"+{self.behaviour.num_pushes}" if self.behaviour.num_pushes else ""
        return hashlib.sha1(f"{repo}@{branch}{pushes}".encode()).hexdigest()

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
        if path == "/api/models":
            return self.send_json(self.search())
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
            if behaviour.busy and file.endswith(".safetensors") and "Range" not in self.headers:
                status, retry_after = behaviour.busy.pop(0)
                return self.send_body(status, b"", {"Retry-After": retry_after})
            return self.send_file(repo, folder, file)
        if name == "tree":
            return self.send_tree(self.tree(repo, folder))
        self.send_json({"info": self.info, "refs": self.refs}[name](repo, folder))

    def search(self) -> list[dict[str, Any]]:
        """The repositories whose names hold every word that is searched for; a filter looks at their names too."""
        query = parse_qs(urlsplit(self.path).query)
        words = f"{' '.join(query.get('search', []))} {' '.join(query.get('filter', []))}".lower().split()
        repos = sorted(path.relative_to(self.hub.root).as_posix() for path in self.hub.root.glob("*/*"))
        found = [repo for repo in repos if all(word in repo.lower() for word in words)]
        return [
            {
                "id": repo,
                "downloads": 10 * number,
                "lastModified": "2024-09-25T10:11:12.000Z",
                "gated": "manual" if repo in self.hub.behaviour.gated else False,
                "tags": ["gptq", "license:apache-2.0"],
                "safetensors": {"parameters": {"I32": 1000, "F16": 500}, "total": 8500},
                **self.told_config(repo),
            }
            for number, repo in enumerate(found)
        ][: int(query.get("limit", ["1000"])[0])]

    def told_config(self, repo: str) -> dict[str, Any]:
        """What the Hub tells of a config.json in a search: the family, the class, and how it is quantized."""
        folder = self.hub.folder(repo, "main")
        path = None if folder is None else folder / "config.json"
        if path is None or not path.is_file():
            return {}
        config = json.loads(path.read_text())
        told = {name: config[name] for name in ("architectures", "model_type") if name in config}
        quantization = config.get("quantization_config") or {}
        told["quantization_config"] = {
            name: quantization[name] for name in ("bits", "quant_method") if name in quantization
        }
        return {"config": told}

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
        listed = {entry["path"]: entry for entry in self.hub.behaviour.listed}
        return [entry for entry in _entries(folder) if entry["path"] not in listed] + self.hub.behaviour.listed

    def send_tree(self, entries: list[Any]) -> None:
        """One page of the tree, with the address of the next one as the Hub gives it."""
        size = self.hub.behaviour.page_entries or len(entries) or 1
        begin = int(parse_qs(urlsplit(self.path).query).get("cursor", ["0"])[0])
        headers = {"Content-Type": "application/json"}
        if begin + size < len(entries):
            path = urlsplit(self.path).path
            # The Hub names itself there, also where a mirror was asked.
            query = f"recursive=true&cursor={begin + size}"
            headers["Link"] = f'<https://hub.invalid{path}?{query}>; rel="next"'
        self.send_body(200, json.dumps(entries[begin : begin + size]).encode(), headers)

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
        fault = self.next_fault(path) if self.command == "GET" else Fault()
        self.send_head(206 if wanted else 200, end + 1 - begin + fault.false_length, headers)
        if self.command == "GET":
            self.wfile.flush()
            self.send_bytes(path, begin, min(end + 1, begin + fault.after), fault)

    def next_fault(self, path: Path) -> Fault:
        """What happens to this answer. Reading a header, which is a range with an end, is left alone."""
        behaviour = self.hub.behaviour
        if path.suffix != ".safetensors" or self.headers.get("Range", "-").rpartition("-")[2]:
            return Fault()
        fault = Fault(behaviour.cut_every or sys.maxsize)
        if behaviour.cuts:
            fault.after = behaviour.cuts.pop(0)
        elif behaviour.stalls:
            fault.after, fault.stalls = behaviour.stalls.pop(0), True
        if behaviour.false_lengths:
            fault.false_length = behaviour.false_lengths.pop(0)
        if behaviour.num_wrong:
            behaviour.num_wrong -= 1
            fault.is_wrong = True
        return fault

    def send_bytes(self, path: Path, begin: int, end: int, fault: Fault) -> None:
        """The file from `begin` to `end` by the kernel's own copying, so that the server is not what limits."""
        rate = self.hub.behaviour.rate_bytes_s
        if rate:
            # What lies in the kernel counts as sent, so that it must not be much.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHUNK_BYTES)
        if fault.is_wrong:
            self.connection.sendall(bytes([_byte_at(path, begin) ^ 1]))
            self.request_seen.sent_bytes += 1
            begin += 1
        with path.open("rb") as file:
            while begin < end and not (rate and self.hub.closing.is_set()):
                count = min(CHUNK_BYTES if rate else SENDFILE_BYTES, end - begin)
                sent = os.sendfile(self.connection.fileno(), file.fileno(), begin, count)
                begin += sent
                self.request_seen.sent_bytes += sent
                if rate:
                    self.hub.closing.wait(sent / rate)
        while fault.stalls and not self.hub.closing.is_set() and not _has_hung_up(self.connection):
            self.hub.closing.wait(POLL_S)
        if fault != Fault():
            self.close_connection = True

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


def _byte_at(path: Path, at: int) -> int:
    with path.open("rb") as file:
        file.seek(at)
        return file.read(1)[0]


def _has_hung_up(connection: socket.socket) -> bool:
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
