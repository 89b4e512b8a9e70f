"""A model's manifest: the files that a download would fetch, as the hub lists them, checked."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2

from core.checkpoint.adapters import read_adapter_files
from core.checkpoint.checkpoint import Checkpoint, read_model
from core.checkpoint.weight_files import ModelFiles
from core.common.errors import CheckpointError, DeckError
from core.common.values import is_whole, quoted_text
from core.hub import modelscope
from core.hub.metadata import (
    Repository,
    RepositoryFiles,
    ask,
    file_route,
    open_client,
    open_repository,
    parse_json,
    read_body,
)
from core.hub.selection import check_configs, check_names, select
from core.hub.source import RemoteFile, Source

MAX_PAGE_BYTES = 20_000_000
MAX_PAGES = 100
SHA256 = re.compile(r"[0-9a-f]{64}")
SHA1 = re.compile(r"[0-9a-f]{40}")


# Judges the files of a repository and names those with the weights: what cannot be used is refused before a byte of it
# is fetched. None in place of a checkpoint for a model that is not quantized.
FindWeights = Callable[[ModelFiles], tuple[Checkpoint | None, tuple[str, ...]]]


@dataclass(frozen=True, slots=True)
class Manifest:
    """A model at one commit: what to fetch, and the checkpoint that it will be, if it will be one that runs."""

    repository: Repository
    files: tuple[RemoteFile, ...]
    checkpoint: Checkpoint | None

    @property
    def commit(self) -> str:
        return self.repository.commit

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


def find_runnable(files: ModelFiles) -> tuple[Checkpoint, tuple[str, ...]]:
    """For a download of a model to run. Raises CheckpointError for one that does not run here."""
    checkpoint, weights = read_model(files)
    checkpoint.require_runs()
    return checkpoint, weights


def find_adapter(files: ModelFiles) -> tuple[None, tuple[str, ...]]:
    """For a download of a LoRA adapter. Raises CheckpointError for one that cannot be used."""
    adapter = read_adapter_files(files, Path(files.name))
    return None, (adapter.weights.name,)


def read_manifest(source: Source, token: str | None, find_weights: FindWeights = find_runnable) -> Manifest:
    """The model at `source` as it is now.

    Raises InputError for names that are not there, CheckpointError for what cannot run here or what no honest
    repository lists. Raises TransientError where the network or the hub fails, DeckError where the hub refuses.
    """
    with open_client(token) as client:
        repository, files = list_files(client, source)
        check_names(source.name, (file.name for file in files))
        check_configs(source.name, files)
        checkpoint, weights = find_weights(RepositoryFiles(repository))
        return Manifest(repository, select(source.name, files, weights), checkpoint)


def list_files(client: httpx2.Client, source: Source) -> tuple[Repository, tuple[RemoteFile, ...]]:
    """The repository pinned to its commit, and all its files with sizes and hashes."""
    if source.kind == "modelscope":
        commit, files = modelscope.list_files(client, source)
        return modelscope.repository_of(client, source, commit, sorted(file.name for file in files)), files
    repository = open_repository(Repository(client, source.endpoint, source.address))
    return repository, tuple(_remote_file(repository, entry) for entry in _tree(repository))


def _tree(repository: Repository) -> Iterator[dict[str, Any]]:
    """Every file of the repository as the Hub lists them, which is page by page."""
    commit = urllib.parse.quote(repository.commit, safe="")
    route = f"/api/models/{repository.address.repo}/tree/{commit}"
    query: str | None = "recursive=true"
    for _ in range(MAX_PAGES):
        with ask(repository, f"{route}?{query}") as response:
            entries = parse_json(read_body(response, MAX_PAGE_BYTES))
            # Only the query of the next page's address is used: a mirror may name a host that is not its own.
            query = next_page(response.links.get("next", {}).get("url", ""), repository.host)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DeckError("hub_answer", host=repository.host)
        yield from (entry for entry in entries if entry.get("type") != "directory")
        if query is None:
            return
    raise DeckError("hub_answer", host=repository.host)


def next_page(address: str, host: str) -> str | None:
    """The query in the address of the next page; None where there is none. Raises DeckError for what is no address."""
    try:
        return urllib.parse.urlsplit(address).query or None
    except ValueError as error:  # Brackets that hold no address.
        raise DeckError("hub_answer", host=host) from error


def _remote_file(repository: Repository, entry: dict[str, Any]) -> RemoteFile:
    """One file of the tree. Those in the large file storage have the sha256 of their bytes, others git's own hash."""
    name, size, oid, lfs = entry.get("path"), entry.get("size"), entry.get("oid"), entry.get("lfs")
    if not isinstance(name, str) or not is_whole(size) or size < 0:
        raise DeckError("hub_answer", host=repository.host)
    check_names(repository.name, [name])
    if entry.get("type") != "file":
        raise CheckpointError("hub_file_name", repo=repository.name, file=quoted_text(name))
    file = RemoteFile(name, size, None, None, file_route(repository, name))
    if not isinstance(lfs, dict):
        return replace(file, git_sha1=oid if isinstance(oid, str) and SHA1.fullmatch(oid) else None)
    sha256 = lfs.get("oid") or lfs.get("sha256")
    stored = lfs.get("size", size)
    if not is_whole(stored) or stored < 0:
        raise DeckError("hub_answer", host=repository.host)
    known = sha256 if isinstance(sha256, str) and SHA256.fullmatch(sha256) else None
    return replace(file, size_bytes=stored, sha256=known)
