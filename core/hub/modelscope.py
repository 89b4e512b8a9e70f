"""ModelScope as a second place that models come from: its branches, its files with sizes and sha256.

Its routes, as its own client asks them:
/api/v1/models/NAME/revisions lists the branches; /api/v1/models/NAME/repo/files lists the files of one.
/models/NAME/resolve/REVISION/PATH is a file, after a redirect to a store that takes ranges.
An unknown revision is no error there: the answer is 200 without files.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator, Sequence
from typing import Any

import httpx2

from core.checkpoint.weight_files import is_plain_name
from core.common.errors import DeckError, InputError
from core.common.values import is_whole, quoted_text
from core.hub.address import DEFAULT_REVISION, MODELSCOPE_MAIN
from core.hub.metadata import Repository, adapter_folders, ask_hub
from core.hub.source import RemoteFile, Source

COMMIT_CHARS = 40


def open_modelscope(client: httpx2.Client, source: Source) -> Repository:
    """The repository, pinned to its commit, so that metadata.read_repository reads it as one of the Hub's."""
    commit, files = list_files(client, source)
    return repository_of(client, source, commit, [file.name for file in files])


def repository_of(client: httpx2.Client, source: Source, commit: str, names: Sequence[str]) -> Repository:
    """The repository with these files, as metadata.open_repository gives one of the Hub's."""
    top = tuple(name for name in names if is_plain_name(name))
    return Repository(client, source.endpoint + "/models", source.address, commit, top, adapter_folders(names))


def list_files(client: httpx2.Client, source: Source) -> tuple[str, tuple[RemoteFile, ...]]:
    """The commit that the revision stands for now, and all its files; their addresses are pinned to that commit.

    Where ModelScope does not tell the commit, the branch's name stands in its place. Every file's sha256 is known, so
    a change meanwhile is noticed. Raises InputError for a repository or a branch that is not there.
    """
    revision = branch_name(source.address.revision)
    query = urllib.parse.urlencode({"Revision": revision, "Recursive": "true"})
    data = _ask(client, source, f"repo/files?{query}")
    listed = data.get("Files")
    if not isinstance(listed, list):
        near = ", ".join(quoted_text(name) for name in list_branches(client, source)) or "-"
        raise InputError("unknown_branch", repo=source.address.repo, branch=quoted_text(revision), near=near)
    entries = [entry for entry in listed if isinstance(entry, dict) and entry.get("Type") == "blob"]
    commit = _commit(data.get("LatestCommitter"), entries) or revision
    return commit, tuple(_remote_files(source, commit, entries))


def list_branches(client: httpx2.Client, source: Source) -> tuple[str, ...]:
    """The names of the repository's branches, the main one first."""
    revisions = _ask(client, source, "revisions").get("RevisionMap")
    listed = revisions.get("Branches") if isinstance(revisions, dict) else None
    entries = listed if isinstance(listed, list) else []
    names = [str(entry.get("Revision")) for entry in entries if isinstance(entry, dict)]
    return tuple(sorted(names, key=lambda name: (name != MODELSCOPE_MAIN, name)))


def branch_name(revision: str) -> str:
    """What the Hub calls main is master here."""
    return MODELSCOPE_MAIN if revision == DEFAULT_REVISION else revision


def _ask(client: httpx2.Client, source: Source, route: str) -> dict[str, Any]:
    """What stands under "Data" of an answer. A repository that is not there is told by 404 or inside of a 200."""
    repository = Repository(client, source.endpoint, source.address)
    answer = ask_hub(repository, f"/api/v1/models/{source.address.repo}/{route}")
    data = answer.get("Data")
    if answer.get("Success") is False:
        raise InputError("hub_unknown_repo", repo=source.address.repo, host=repository.host)
    if not isinstance(data, dict):
        raise DeckError("hub_answer", host=repository.host)
    return data


def _commit(latest: object, entries: list[dict[str, Any]]) -> str | None:
    """The full commit. Often only its first characters are told, and in full beside the files that it changed."""
    told = latest if isinstance(latest, dict) else {}
    full, short = told.get("Id"), told.get("ShortId")
    if isinstance(full, str) and len(full) == COMMIT_CHARS and full.isprintable():
        return full
    if not isinstance(short, str) or not short:
        return None
    told_beside = (entry.get("Revision") for entry in entries)
    revisions = [revision for revision in told_beside if isinstance(revision, str) and revision.isprintable()]
    return next((revision for revision in revisions if revision.startswith(short)), None)


def _remote_files(source: Source, commit: str, entries: list[dict[str, Any]]) -> Iterator[RemoteFile]:
    base = f"/models/{source.address.repo}/resolve/{urllib.parse.quote(commit, safe='')}"
    for entry in entries:
        name, size, sha256 = entry.get("Path"), entry.get("Size"), entry.get("Sha256")
        if not isinstance(name, str) or not is_whole(size) or size < 0:
            raise DeckError("hub_answer", host=source.host)
        known = sha256.lower() if isinstance(sha256, str) and len(sha256) == 64 else None
        yield RemoteFile(name, size, known, None, f"{base}/{urllib.parse.quote(name, errors='replace')}")
