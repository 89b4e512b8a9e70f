"""Where a model comes from and which files it is made of, as data."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from core.common.errors import InputError
from core.common.urls import host_name
from core.common.values import quoted_text
from core.hub.address import DEFAULT_REVISION, Address, check_address, parse_address, parse_modelscope
from core.hub.endpoints import MODELSCOPE

Kind = Literal["huggingface", "modelscope"]
# What stands for "the branch that everybody gets" at each kind of hub.
DEFAULT_BRANCHES = {"huggingface": (DEFAULT_REVISION,), "modelscope": (DEFAULT_REVISION, "master")}
# Letters that a folder's name can have on every file system.
UNSAFE = re.compile(r"[^\w.+=-]")
# A file system takes 255 bytes for a name; the unfinished folder's name and its lock's are longer than the folder's.
MAX_FOLDER_BYTES = 235


@dataclass(frozen=True, slots=True)
class Source:
    """A repository at a hub. `endpoint` has no slash at its end; "huggingface": any server with the Hub's routes."""

    address: Address
    endpoint: str
    kind: Kind = "huggingface"

    @property
    def name(self) -> str:
        """How sentences call it: "owner/name" or "owner/name:branch"."""
        return str(self.address)

    @property
    def host(self) -> str:
        return host_name(self.endpoint)

    def is_same_model(self, other: Source) -> bool:
        """Whether both name one model, be it at different mirrors."""
        return self.address.repo == other.address.repo and self.branch == other.branch

    @property
    def branch(self) -> str:
        """The revision, or "" for the hub's default branch."""
        revision = self.address.revision
        return "" if revision in DEFAULT_BRANCHES[self.kind] else revision


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a repository. `url_path` is what comes after the endpoint, quoted; it names the commit if it can.

    `sha256` or `git_sha1` (of git's blob with the file's bytes) is what its bytes are held against.
    """

    name: str
    size_bytes: int
    sha256: str | None
    git_sha1: str | None
    url_path: str

    def is_same(self, other: RemoteFile) -> bool:
        """Whether both stand for the same bytes, wherever they are fetched from."""
        known = (self.size_bytes, self.sha256, self.git_sha1) == (other.size_bytes, other.sha256, other.git_sha1)
        return known and bool(self.sha256 or self.git_sha1)


def read_source(text: str, kind: Kind, endpoint: str, revision: str | None = None) -> Source:
    """The repository that was typed or pasted, for pages and commands alike, at the place that was chosen.

    The address of one of ModelScope's pages names its place by itself. Raises InputError where `text` names another
    revision than `revision`.
    """
    page = parse_modelscope(text)
    if page is None:
        return Source(parse_address(text, revision), endpoint, kind)
    if revision and page.revision not in (revision, DEFAULT_REVISION):
        raise InputError("two_revisions", first=quoted_text(page.revision), second=quoted_text(revision))
    address = Address(page.repo, revision or page.revision)
    return Source(address, endpoint if kind == "modelscope" else MODELSCOPE, "modelscope")


def folder_name(source: Source) -> str:
    """The folder that a model has under models/, by text-generation-webui's rule: OWNER_NAME or OWNER_NAME_BRANCH.

    Raises InputError for names that the hub gives to nothing or that no folder can have.
    """
    check_address(source.address)
    repo = source.address.repo.replace("/", "_")
    name = f"{repo}_{UNSAFE.sub('_', source.branch)}" if source.branch else repo
    if len(name.encode()) > MAX_FOLDER_BYTES:
        raise InputError("folder_name_long", name=quoted_text(name))
    return name
