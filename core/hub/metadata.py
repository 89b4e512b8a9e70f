"""A checkpoint on the Hugging Face Hub as data: its small files and the headers of its weights.

Works with every server that speaks the Hub's routes. huggingface_hub's HfApi is not used: it limits no answer's size,
sends the token to whatever host a next page names, and reads whole files where a mirror ignores ranges.
Import this only where the network is asked: the HTTP client takes a tenth of a second to import.
"""

from __future__ import annotations

import difflib
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2

from core.checkpoint.adapters import AdapterShape, read_adapter_files
from core.checkpoint.checkpoint import Checkpoint, read_model
from core.checkpoint.headers import (
    MAX_CONFIG_BYTES,
    MAX_HEADER_BYTES,
    TensorInfo,
    load_header,
    max_json_bytes,
    parse_header,
)
from core.checkpoint.weight_files import ADAPTER_CONFIG, is_plain_name
from core.common.errors import CheckpointError, DeckError, InputError
from core.common.plain_json import load_json
from core.common.urls import host_name
from core.common.values import printable, quoted_text
from core.hub.address import Address
from core.hub.retry import TransientError, parse_retry_after, root_reason
from core.hub.tokens import TOKEN

TIMEOUT_S = 15.0
# The whole header of every Llama-2, so that one request is enough.
FIRST_BYTES = 512 * 1024
NUM_SUGGESTIONS = NUM_FOLDERS = 3
# A file's size as a header tells it; one of more digits is none, and Python reads no number of thousands.
SIZE = re.compile("[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class Repository:
    """One repository at one commit: the names of its files and how to ask for them. `endpoint` has no slash at its end.

    `name` is how sentences call it, `commit` pins all requests to what the first one saw. `adapter_folders`: where
    LoRA adapters lie below the top, of which nothing is read.
    """

    client: httpx2.Client
    endpoint: str
    address: Address
    commit: str = ""
    files: tuple[str, ...] = ()
    adapter_folders: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return str(self.address)

    @property
    def host(self) -> str:
        return host_name(self.endpoint)


def open_client(token: str | None) -> httpx2.Client:
    """A client that follows redirects and uses the proxies that the environment names."""
    headers = {"User-Agent": "llamadeck", "Accept-Encoding": "identity"}
    if token:
        if not TOKEN.fullmatch(token):
            raise InputError("hub_token_text")
        headers["Authorization"] = f"Bearer {token}"
    try:
        return httpx2.Client(headers=headers, timeout=TIMEOUT_S, follow_redirects=True)
    except (ValueError, ImportError, httpx2.InvalidURL) as error:  # Proxies that it cannot use.
        raise DeckError("hub_proxy", why=str(error)) from error


def open_repository(source: Repository) -> Repository:
    """`source` with the commit that its revision stands for now, and the files at its top."""
    address = source.address
    revision = urllib.parse.quote(address.revision, safe="")
    info = ask_hub(source, f"/api/models/{address.repo}/revision/{revision}")
    commit, siblings = info.get("sha"), info.get("siblings")
    if not isinstance(commit, str) or printable(commit) != commit or not isinstance(siblings, list):
        raise DeckError("hub_answer", host=source.host)
    names = [str(sibling.get("rfilename")) for sibling in siblings if isinstance(sibling, dict)]
    files = tuple(sorted(name for name in names if is_plain_name(name)))
    return replace(source, commit=commit, files=files, adapter_folders=adapter_folders(names))


def adapter_folders(names: Iterable[str]) -> tuple[str, ...]:
    """The folders below a repository's top that hold an adapter, as sentences name them; of many the first ones."""
    found = (name.rpartition("/") for name in names)
    folders = sorted(quoted_text(folder) for folder, _, file in found if folder and file == ADAPTER_CONFIG)
    return (*folders[:NUM_FOLDERS], *(["…"] if len(folders) > NUM_FOLDERS else []))


def read_repository(source: Repository) -> Checkpoint:
    return read_model(RepositoryFiles(source))[0]


def read_adapter_repository(source: Repository) -> AdapterShape:
    """The LoRA adapter that the repository holds. Raises CheckpointError for one that cannot be used."""
    return read_adapter_files(RepositoryFiles(source), Path(source.name))


class RepositoryFiles:
    """The files of a repository for core/checkpoint, each small one asked for once."""

    # Errors whose sentence depends on where the files are; the others speak of the model alone.
    _KEYS: Mapping[str, str] = {
        "no_config": "hub_no_config",
        "not_adapter": "hub_not_adapter",
        "adapter_none": "hub_adapter_none",
        "missing_shard": "hub_damaged",
        "bad_json": "hub_damaged",
        "only_pickled": "hub_only_pickled",
        "no_weights": "hub_no_weights",
        "several_weights": "hub_several_weights",
    }
    # What is said of a top without a model or an adapter.
    _NOTHING = ("no_config", "quantize_no_config", "no_weights", "adapter_none")

    def __init__(self, source: Repository) -> None:
        self._source = source
        self._known: dict[str, dict[str, Any]] = {}
        self.name = source.name
        self.names = frozenset(source.files)

    def read_json(self, file: str) -> dict[str, Any] | None:
        if file not in self.names:
            return None
        if file not in self._known:
            self._known[file] = read_json(self._source, file)
        return self._known[file]

    def read_header(self, file: str) -> dict[str, TensorInfo]:
        return read_header(self._source, file)

    def read_bytes(self, tensor: TensorInfo, num_bytes: int) -> bytes:
        size = min(num_bytes, tensor.num_bytes)
        wanted = f"bytes={tensor.begin}-{tensor.begin + size - 1}"
        with ask(self._source, file_route(self._source, tensor.file), Range=wanted) as response:
            if response.status_code != httpx2.codes.PARTIAL_CONTENT:
                raise CheckpointError("hub_damaged", repo=self.name, file=tensor.file)
            return read_body(response, size)[:size]

    def error(self, key: str, **params: str | int) -> CheckpointError:
        if (folders := self._source.adapter_folders) and key in self._NOTHING:
            return CheckpointError("hub_adapter_folders", repo=self.name, folders=", ".join(folders))
        known = self._KEYS.get(key)
        return (
            CheckpointError(known, repo=self.name, **params)
            if known
            else CheckpointError(key, folder=self.name, **params)
        )


def read_json(source: Repository, file: str) -> dict[str, Any]:
    """The JSON object in a small file of the repository."""
    value = parse_object(read_bytes(source, file_route(source, file), max_json_bytes(file)))
    if value is None:
        raise CheckpointError("hub_damaged", repo=source.name, file=file)
    return value


def ask_hub(source: Repository, route: str) -> dict[str, Any]:
    """The Hub's own answer about a repository."""
    value = parse_object(read_bytes(source, route, MAX_CONFIG_BYTES))
    if value is None:
        raise DeckError("hub_answer", host=source.host)
    return value


def parse_object(data: bytes) -> dict[str, Any] | None:
    value = parse_json(data)
    return value if isinstance(value, dict) else None


def parse_json(data: bytes) -> object:
    """The value that `data` stands for; None also for what is no JSON."""
    try:
        return load_json(data)
    except (ValueError, RecursionError):
        return None


def read_bytes(source: Repository, route: str, limit: int) -> bytes:
    """What is at `route`, up to a little over `limit` bytes."""
    with ask(source, route) as response:
        return read_body(response, limit)


def read_body(response: httpx2.Response, limit: int) -> bytes:
    data = bytearray()
    for chunk in response.iter_raw():
        data += chunk
        if len(data) > limit:
            break
    return bytes(data)


def read_header(source: Repository, file: str) -> dict[str, TensorInfo]:
    """Every tensor of a safetensors file, from its header alone; the file's size is held against it."""
    data, size = read_start(source, file, FIRST_BYTES)
    data_begin = header_end(data)
    if len(data) < data_begin <= 8 + MAX_HEADER_BYTES:
        data, size = read_start(source, file, data_begin)
    try:
        if len(data) < data_begin:
            raise ValueError("the header is too long, or the file ends in it")
        tensors, end = parse_header(file, load_header(data[8:data_begin]), data_begin)
        if size not in (None, end):
            raise ValueError("the file is longer or shorter than its header says")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError("hub_damaged", repo=source.name, file=file) from error
    return tensors


def read_start(source: Repository, file: str, count: int) -> tuple[bytes, int | None]:
    """The first `count` bytes of a file or its header, whichever is less, and the file's size if the server tells.

    A server that ignores the range and sends the whole file is hung up on when the header is there.
    """
    data = bytearray()
    with ask(source, file_route(source, file), Range=f"bytes=0-{count - 1}") as response:
        for chunk in response.iter_raw():
            data += chunk
            if len(data) >= min(count, header_end(data)):
                break
    return bytes(data), file_size(response)


def header_end(data: bytes | bytearray) -> int:
    """Where the tensors' bytes begin: 8 bytes of length and the header of that length."""
    return 8 + int.from_bytes(data[:8], "little") if len(data) >= 8 else 8


def file_size(response: httpx2.Response) -> int | None:
    """The size of the whole file, of which the response may be a part."""
    if response.status_code == httpx2.codes.PARTIAL_CONTENT:
        told = response.headers.get("Content-Range", "").rpartition("/")[2]
    else:
        told = response.headers.get("Content-Length", "")
    return int(told) if SIZE.fullmatch(told) else None


def file_route(source: Repository, file: str) -> str:
    commit, name = urllib.parse.quote(source.commit, safe=""), urllib.parse.quote(file)
    return f"/{source.address.repo}/resolve/{commit}/{name}"


@contextmanager
def ask(source: Repository, route: str, **headers: str) -> Iterator[httpx2.Response]:
    """A response whose body is still to be read; what the network or the Hub refuses is raised as a DeckError."""
    try:
        with source.client.stream("GET", source.endpoint + route, headers=headers) as response:
            # An empty file has no range; whoever reads it finds nothing.
            if not response.is_success and response.status_code != httpx2.codes.RANGE_NOT_SATISFIABLE:
                raise refusal(source, response.status_code, response.headers)
            yield response
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise TransientError("hub_unreachable", host=source.host, why=root_reason(error)) from error


def refusal(source: Repository, status: int, headers: Mapping[str, str]) -> DeckError:
    """What an answer that is none means. The Hub says it in X-Error-Code, because 401 also stands for "not there".

    A TransientError where the same request may succeed later. `headers` takes names in any case.
    """
    repo = source.address.repo
    code, message = headers.get("X-Error-Code", ""), headers.get("X-Error-Message", "")
    if code == "GatedRepo" or (status == 403 and not code):
        return DeckError("hub_gated", repo=repo, url=f"{source.endpoint}/{repo}")
    if status == 401 and "Invalid credentials" in message:
        return DeckError("hub_token", host=source.host)
    if code == "RevisionNotFound":
        near = near_branches(source)
        return InputError("unknown_branch", repo=repo, branch=quoted_text(source.address.revision), near=near)
    if code == "RepoNotFound" or status == 401 or (status == 404 and not source.commit):
        return InputError("hub_unknown_repo", repo=repo, host=source.host)
    wait_s = parse_retry_after(headers.get("Retry-After"))
    if status == 429:
        return TransientError("hub_busy", host=source.host).after(wait_s)
    if status >= 500 or status == 408:
        return TransientError("hub_failed", host=source.host, status=status).after(wait_s)
    return DeckError("hub_failed", host=source.host, status=status)


def near_branches(source: Repository) -> str:
    """The repository's branches that are spelled most like the one that was asked for."""
    try:
        branches = ask_hub(source, f"/api/models/{source.address.repo}/refs").get("branches")
    except DeckError:
        return "-"
    listed = branches if isinstance(branches, list) else []
    names = [str(branch.get("name")) for branch in listed if isinstance(branch, dict)]
    near = difflib.get_close_matches(source.address.revision, names, NUM_SUGGESTIONS, cutoff=0.3)
    return ", ".join(quoted_text(name) for name in near or names[:NUM_SUGGESTIONS]) or "-"
