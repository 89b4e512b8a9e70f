"""A small stand-in of ModelScope on loopback, with the routes that its own client asks.

Serves ROOT/<owner>/<name>/<branch>/<files>. As there, an unknown revision is answered 200 without files, and only the
first characters of the newest commit are told, in full beside the files that it changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

MODEL = r"(?P<repo>[^/]+/[^/]+)"
REVISIONS = re.compile(rf"/api/v1/models/{MODEL}/revisions")
FILES = re.compile(rf"/api/v1/models/{MODEL}/repo/files")
RESOLVE = re.compile(rf"/models/{MODEL}/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class ModelScopeStandin:
    """The server; `with ModelScopeStandin(root) as server:` serves `root` at `server.url` until the block's end.

    `tells_commits` False is an answer that names no commit at all.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tells_commits = True
        self.paths: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"standin": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> ModelScopeStandin:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def branches(self, repo: str) -> list[str]:
        folder = self.root / repo
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def commit(self, repo: str, branch: str) -> str:
        return hashlib.sha1(f"{repo}@{branch}".encode()).hexdigest()

    def folder(self, repo: str, revision: str) -> Path | None:
        found = (name for name in self.branches(repo) if revision in (name, self.commit(repo, name)))
        branch = next(found, None)
        return None if branch is None else self.root / repo / branch


class _Handler(BaseHTTPRequestHandler):
    standin: ModelScopeStandin
    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle()

    def log_message(self, *arguments: object) -> None:
        """Say nothing: tests read standin.paths."""

    def do_GET(self) -> None:
        self.standin.paths.append(self.path)
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if found := REVISIONS.fullmatch(parts.path):
            self.send_revisions(unquote(found["repo"]))
        elif found := FILES.fullmatch(parts.path):
            self.send_files(unquote(found["repo"]), query.get("Revision", "master"))
        elif found := RESOLVE.fullmatch(parts.path):
            self.send_file(unquote(found["repo"]), unquote(found["revision"]), unquote(found["file"]))
        else:
            self.send(404, b"")

    do_HEAD = do_GET

    def send_revisions(self, repo: str) -> None:
        branches = [{"Revision": name} for name in self.standin.branches(repo)]
        self.send_data(repo, {"RevisionMap": {"Branches": branches, "Tags": []}})

    def send_files(self, repo: str, revision: str) -> None:
        folder = self.standin.folder(repo, revision)
        if folder is None:
            return self.send_data(repo, {"Files": None, "LatestCommitter": None})
        commit = self.standin.commit(repo, folder.name) if self.standin.tells_commits else ""
        files = [_entry(folder, path, commit) for path in sorted(folder.rglob("*"))]
        self.send_data(repo, {"Files": files, "LatestCommitter": {"Id": "", "ShortId": commit[:8]}})

    def send_data(self, repo: str, data: dict[str, Any]) -> None:
        if not self.standin.branches(repo):
            answer: dict[str, Any] = {"Code": 10010205001, "Message": "not found", "Success": False, "Data": None}
            return self.send(404, json.dumps(answer).encode())
        self.send(200, json.dumps({"Code": 200, "Message": "success", "Success": True, "Data": data}).encode())

    def send_file(self, repo: str, revision: str, file: str) -> None:
        folder = self.standin.folder(repo, revision)
        if folder is None or not (folder / file).is_file():
            return self.send(404, b"")
        data = (folder / file).read_bytes()
        wanted = RANGE.fullmatch(self.headers.get("Range", ""))
        if wanted is None:
            return self.send(200, data)
        begin, end = int(wanted[1]), min(int(wanted[2] or len(data)) + 1, len(data))
        self.send(206, data[begin:end], {"Content-Range": f"bytes {begin}-{end - 1}/{len(data)}"})

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _entry(folder: Path, path: Path, commit: str) -> dict[str, Any]:
    name = path.relative_to(folder).as_posix()
    if path.is_dir():
        return {"Type": "tree", "Path": name, "Name": path.name, "Size": 0, "Revision": commit}
    data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    return {"Type": "blob", "Path": name, "Name": path.name, "Size": len(data), "Sha256": sha256, "Revision": commit}
