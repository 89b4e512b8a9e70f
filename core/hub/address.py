"""A model's address on the Hub, as people write it: a repository and a branch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote

from core.common.errors import InputError
from core.common.values import quoted_text

DEFAULT_REVISION, MODELSCOPE_MAIN = "main", "master"
# Hosts that people paste without the https:// in front.
HOSTS = "huggingface.co|hf.co|hf-mirror.com"
URL = re.compile(rf"(?:https?://[^/]+|(?:www\.)?(?:{HOSTS}))/(?P<path>[^?#]*)", re.IGNORECASE)
# What stands before the branch in the addresses of the Hub's pages, and of its files.
PAGES, FILES = ("tree", "commits", "commit"), ("blob", "resolve", "raw", "blame", "edit")
# A branch whose name ends with its first part, whatever comes after it: the usual ones and a commit.
ONE_PART = re.compile(r"main|master|[0-9a-f]{40}")
MODELSCOPE_PAGE = re.compile(
    r"(?:https?://)?(?:www\.)?modelscope\.(?:cn|ai)/"
    r"(?:models/(?P<repo>[^/?#]+/[^/?#]+)|(?P<git>[^/?#]+/[^/?#]+)\.git)"
    r"(?P<rest>/[^?#]*)?(?:\?(?P<query>[^#]*))?(?:#.*)?",
    re.IGNORECASE,
)
# What stands before the branch there, and what a branch is called behind a question mark.
MODELSCOPE_FILES = re.compile(r"/(?:resolve|file/view|file/edit|tree)/(?P<path>.+)")
MODELSCOPE_REVISIONS = ("revision", "version")
REPO = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(?:/[A-Za-z0-9._-]+)?")
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
        raise InputError("two_revisions", first=quoted_text(named), second=quoted_text(revision))
    return Address(repo, revision or named or DEFAULT_REVISION)


def parse_modelscope(text: str) -> Address | None:
    """The repository whose page's address was copied from a browser, or None for what is no page of ModelScope."""
    found = MODELSCOPE_PAGE.fullmatch(text.strip())
    if found is None:
        return None
    asked = parse_qs(found["query"] or "")
    named = next((asked[name][0] for name in MODELSCOPE_REVISIONS if name in asked), "")
    if path := MODELSCOPE_FILES.match(found["rest"] or ""):
        named = _branch(path["path"], is_file=not path[0].startswith("/tree/")) or named
    repo = unquote(found["repo"] or found["git"]).removesuffix(".git")
    return Address(repo, DEFAULT_REVISION if named in ("", MODELSCOPE_MAIN) else named)


def check_address(address: Address) -> None:
    """Raise InputError for names that the Hub gives to nothing."""
    repo, revision = address.repo, address.revision
    if not REPO.fullmatch(repo) or ".." in repo or len(repo) > MAX_NAME_CHARS:
        raise InputError("repo_name", name=quoted_text(repo))
    if not REVISION.fullmatch(revision) or revision in (".", "..") or len(revision) > MAX_NAME_CHARS:
        raise InputError("revision_name", name=quoted_text(revision))


def _from_path(path: str) -> tuple[str, str]:
    owner, name, kind, rest = [*path.strip("/").split("/", 3), "", "", ""][:4]
    repo = "/".join(unquote(part) for part in (owner, name) if part).removesuffix(".git")
    return repo, _branch(rest, kind in FILES) if kind in (*PAGES, *FILES) else ""


def _branch(path: str, is_file: bool) -> str:
    """The branch that `path` begins with. Its name may have slashes, as in "feature/a" and "refs/pr/1"; a file's own
    name is the last part, for models have no folders."""
    parts = [unquote(part) for part in path.strip("/").split("/")]
    if ONE_PART.fullmatch(parts[0]):
        return parts[0]
    return "/".join(parts[:-1] or parts if is_file else parts)


def _from_name(text: str) -> tuple[str, str]:
    repo, _, named = text.partition(":")
    return repo.strip().strip("/"), named.strip()
