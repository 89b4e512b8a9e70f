"""Where a model lies on the Hub, as people write it: a repository and a branch; asks nobody whether it is there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from core.errors import InputError
from core.model_files import MAX_QUOTE_CHARS, printable

DEFAULT_REVISION = "main"
# Hosts that people paste without the https:// in front.
HOSTS = "huggingface.co|hf.co|hf-mirror.com"
URL = re.compile(rf"(?:https?://[^/]+|(?:www\.)?(?:{HOSTS}))/(?P<path>[^?#]*)", re.IGNORECASE)
# What stands before the branch in the addresses of the Hub's pages and files.
BEFORE_BRANCH = ("tree", "blob", "resolve", "raw", "commits")
REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9._-]+)?")
REVISION = re.compile(r"[^\s\x00-\x1f\x7f]+")
MAX_NAME_CHARS = 200


@dataclass(frozen=True, slots=True)
class Address:
    """`repo` as "owner/name", or the bare name; `revision` is a branch, a tag or a commit."""

    repo: str
    revision: str

    def __str__(self) -> str:
        return self.repo if self.revision == DEFAULT_REVISION else f"{self.repo}:{self.revision}"


def parse_address(text: str, revision: str | None = None) -> Address:
    """`text` as "owner/name", "owner/name:branch" or an address copied from a browser, with or without a branch.

    Raises InputError "two_revisions" where `text` names another branch than `revision`. Whether the names can be
    names at all is for check_address to say.
    """
    text = text.strip()
    url = URL.match(text)
    repo, named = _from_path(url["path"]) if url else _from_name(text)
    if named and revision and named != revision:
        raise InputError("two_revisions", first=quote(named), second=quote(revision))
    return Address(repo, revision or named or DEFAULT_REVISION)


def check_address(address: Address) -> None:
    """Raise InputError for names that the Hub gives to nothing."""
    repo, revision = address.repo, address.revision
    if not REPO.fullmatch(repo) or ".." in repo or len(repo) > MAX_NAME_CHARS:
        raise InputError("repo_name", name=quote(repo))
    if not REVISION.fullmatch(revision) or revision in (".", "..") or len(revision) > MAX_NAME_CHARS:
        raise InputError("revision_name", name=quote(revision))


def quote(text: str) -> str:
    """`text` as a sentence quotes it: what was typed or pasted may be long and no text at all."""
    return printable(text.strip()[:MAX_QUOTE_CHARS])


def _from_path(path: str) -> tuple[str, str]:
    parts = [unquote(part) for part in path.strip("/").split("/")]
    has_branch = len(parts) > 3 and parts[2] in BEFORE_BRANCH
    return "/".join(parts[:2]).removesuffix(".git"), parts[3] if has_branch else ""


def _from_name(text: str) -> tuple[str, str]:
    repo, _, named = text.partition(":")
    return repo.strip().strip("/"), named.strip()
