"""All branches of a repository, each with the checkpoint or the adapter that it holds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import httpx2

from core.checkpoint.adapters import AdapterShape
from core.checkpoint.checkpoint import Checkpoint
from core.checkpoint.weight_files import holds_adapter
from core.common.errors import DeckError
from core.hub.address import DEFAULT_REVISION, Address, check_address
from core.hub.metadata import (
    Repository,
    ask_hub,
    open_client,
    open_repository,
    read_adapter_repository,
    read_repository,
)
from core.hub.modelscope import list_branches, open_modelscope
from core.hub.source import Source

MAX_BRANCHES = 64
BRANCHES_AT_ONCE = 6


@dataclass(frozen=True, slots=True)
class Branch:
    """One branch: the checkpoint or the LoRA adapter that it holds, or the reason why neither can be read."""

    name: str
    checkpoint: Checkpoint | None = None
    error: DeckError | None = None
    adapter: AdapterShape | None = None


class BranchReader:
    """Reads repositories branch by branch and remembers what it read by commit, for as long as it lives."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str, str], Checkpoint | AdapterShape] = {}

    def read(self, source: Source, token: str | None = None) -> tuple[Branch, ...]:
        """Every branch of the repository, the main one first. A tag or commit that the address names comes before.

        A branch that cannot be read is one with its error. Raises InputError for names that are none or not there,
        DeckError where the server cannot be asked.
        """
        check_address(source.address)
        with open_client(token) as client:
            names = branch_names(client, source)
            with ThreadPoolExecutor(BRANCHES_AT_ONCE) as pool:
                return tuple(pool.map(lambda name: self._read_branch(client, source, name), names))

    def _read_branch(self, client: httpx2.Client, source: Source, name: str) -> Branch:
        source = replace(source, address=Address(source.address.repo, name))
        try:
            repository = OPEN[source.kind](client, source)
            found = self._read_known(repository)
            return Branch(name, adapter=found) if isinstance(found, AdapterShape) else Branch(name, checkpoint=found)
        except DeckError as error:
            return Branch(name, error=error)

    def _read_known(self, repository: Repository) -> Checkpoint | AdapterShape:
        key = (repository.endpoint, repository.address.repo, repository.commit)
        with self._lock:
            known = self._known.get(key)
        if known is None:
            read = read_adapter_repository if holds_adapter(repository.files) else read_repository
            known = read(repository)
            with self._lock:
                self._known[key] = known
        # Two branches may stand at one commit.
        return replace(known, name=repository.name)


def branch_names(client: httpx2.Client, source: Source) -> list[str]:
    """The names of all branches, the main one first; before them what the address names if that is no branch."""
    wanted = source.address.revision
    if source.kind == "modelscope":
        names = list(list_branches(client, source))
        wanted = names[0] if names and wanted == DEFAULT_REVISION else wanted
    else:
        names = _hub_branches(client, source)
    if wanted not in names:
        names.insert(0, wanted)
    return names[:MAX_BRANCHES]


def _hub_branches(client: httpx2.Client, source: Source) -> list[str]:
    repository = Repository(client, source.endpoint, source.address)
    listed = ask_hub(repository, f"/api/models/{source.address.repo}/refs").get("branches")
    entries = listed if isinstance(listed, list) else []
    names = [entry["name"] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("name"), str)]
    return sorted(names, key=lambda name: (name != DEFAULT_REVISION, name))


def _open_hub(client: httpx2.Client, source: Source) -> Repository:
    return open_repository(Repository(client, source.endpoint, source.address))


def read_remote(source: Source, token: str | None = None) -> Checkpoint:
    """The checkpoint at `source`, as read_checkpoint reads it from a folder, without path.

    Only its endpoint is shown the `token`: a redirect to another host goes without. Raises InputError for names that
    are none or not there, CheckpointError for a model that cannot run here, DeckError where the hub cannot be asked.
    """
    check_address(source.address)
    with open_client(token) as client:
        return read_repository(OPEN[source.kind](client, source))


OPEN: dict[str, Callable[[httpx2.Client, Source], Repository]] = {
    "huggingface": _open_hub,
    "modelscope": open_modelscope,
}
