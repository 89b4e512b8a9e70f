"""Models in Hugging Face's cache ($HF_HUB_CACHE): found by huggingface_hub, loaded in place, never changed."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from core.checkpoint.headers import unreadable
from core.common.errors import CheckpointError
from core.common.values import printable
from core.hub.address import DEFAULT_REVISION, Address
from core.hub.endpoints import default_endpoint
from core.hub.record import Record
from core.hub.source import RemoteFile, Source

log = logging.getLogger(__name__)
# The cache names a file's bytes by their hash: weights by sha256, small files by git's own.
SHA256, GIT_SHA1 = re.compile("[0-9a-f]{64}"), re.compile("[0-9a-f]{40}")
Fingerprint = tuple[tuple[str, int], ...]


def cached_snapshots() -> Mapping[Path, Address]:
    """The folders of all models in the cache, one a commit; read_checkpoint says which of them are GPTQ models.

    An address names the main branch where that stands at the commit, else another branch that does, else the commit.
    Raises CheckpointError where the cache cannot be read.
    """
    cache = cache_folder()
    try:
        seen = _fingerprint(cache)
        return _scan(cache, seen) if seen else {}
    except OSError as error:
        raise unreadable(Path(error.filename or cache), error) from error
    except ValueError as error:  # A file that says which commit a branch is at holds no text.
        raise CheckpointError("unreadable", file=printable(str(cache)), why=str(error)) from error


def cache_folder() -> Path:
    # All that a page without a cached model pays for: the rest of the package takes 0.17 s to import.
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def readable_snapshots() -> Mapping[Path, Address]:
    """As cached_snapshots(); none where the cache cannot be read."""
    try:
        return cached_snapshots()
    except CheckpointError:
        return {}


def is_snapshot_of(folder: Path, source: Source) -> bool:
    """Whether `folder` is the snapshot of what `source` names, as far as the cache knows: its branch may have moved."""
    address = readable_snapshots().get(folder) if source.kind == "huggingface" else None
    if address is None or address.repo != source.address.repo:
        return False
    return source.address.revision in (address.revision, folder.name)


def snapshot_record(folder: Path) -> Record | None:
    """Where a snapshot came from, as the record of a download says it; None where it is not in the cache any more.

    `files` is empty where one is a copy, as on file systems without links: no hash of it is known. Raises OSError.
    """
    address = readable_snapshots().get(folder)
    if address is None:
        return None
    files = tuple(_files(folder))
    is_known = all(file.sha256 or file.git_sha1 for file in files)
    return Record(Source(address, default_endpoint()), folder.name, files if is_known else ())


def _files(folder: Path) -> Iterator[RemoteFile]:
    for path in sorted(path for path in folder.iterdir() if not path.is_dir()):
        blob = os.path.basename(os.readlink(path)) if path.is_symlink() else ""
        sha256 = blob if SHA256.fullmatch(blob) else None
        git_sha1 = blob if GIT_SHA1.fullmatch(blob) else None
        yield RemoteFile(path.name, path.stat().st_size, sha256, git_sha1, "")


def _fingerprint(cache: Path) -> Fingerprint:
    """What changes with the models in the cache; empty where there are none. Raises OSError."""
    try:
        repos = [cache / name for name in os.listdir(cache) if name.startswith("models--")]
    except (FileNotFoundError, NotADirectoryError):
        return ()
    paths = [path for repo in repos for part in ("snapshots/*", "refs/**/*") for path in repo.glob(part)]
    return tuple(sorted((str(path), path.lstat().st_mtime_ns) for path in paths))


@lru_cache(1)
def _scan(cache: Path, seen: Fingerprint) -> Mapping[Path, Address]:
    """Raises OSError."""
    from huggingface_hub import scan_cache_dir

    found = scan_cache_dir(cache)
    for warning in found.warnings:
        log.warning("Hugging Face's cache: %s", warning)
    return {
        revision.snapshot_path: Address(repo.repo_id, _revision(revision.refs, revision.commit_hash))
        for repo in sorted(found.repos, key=lambda repo: repo.repo_id)
        if repo.repo_type == "model"
        for revision in sorted(repo.revisions, key=lambda revision: revision.commit_hash)
    }


def _revision(refs: frozenset[str], commit: str) -> str:
    names = {ref for ref in refs if printable(ref) == ref}
    return DEFAULT_REVISION if DEFAULT_REVISION in names else min(names, default=commit)
