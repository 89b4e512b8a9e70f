"""What a model's folder says of itself: its source, its commit, its files with sizes and hashes.

The record lies as .llamadeck.json in an unfinished folder, where it says what the parts belong to, and stays there
when the folder is finished.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core.checkpoint.headers import read_json
from core.checkpoint.weight_files import is_plain_name
from core.common.errors import CheckpointError
from core.common.files import write_atomically
from core.common.values import is_whole, printable
from core.hub.address import Address
from core.hub.source import DEFAULT_BRANCHES, RemoteFile, Source

FILE = ".llamadeck.json"


@dataclass(frozen=True, slots=True)
class Record:
    """`commit` is "" and `files` is empty until the hub has been asked."""

    source: Source
    commit: str = ""
    files: tuple[RemoteFile, ...] = ()

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


def write_record(folder: Path, record: Record) -> None:
    """Raises OSError."""
    source = record.source
    value = {
        "kind": source.kind,
        "endpoint": source.endpoint,
        "repo": source.address.repo,
        "revision": source.address.revision,
        "commit": record.commit,
        "files": [asdict(file) for file in record.files],
    }
    write_atomically(folder / FILE, json.dumps(value, indent=1) + "\n")


def read_record(folder: Path) -> Record | None:
    """The record in `folder`; None where there is none, or none that can be used."""
    try:
        value = read_json(folder / FILE)
        return None if value is None else _parse(value)
    except (CheckpointError, AttributeError, KeyError, TypeError, ValueError):
        return None


def _parse(value: dict[str, Any]) -> Record:
    """KeyError, TypeError or ValueError for what is no record: the file may have been edited."""
    address = Address(_text(value["repo"]), _text(value["revision"]))
    kind = value["kind"]
    if kind not in DEFAULT_BRANCHES:
        raise ValueError("unknown kind of hub")
    source = Source(address, _text(value["endpoint"]), kind)
    return Record(source, _text(value["commit"]), tuple(_parse_file(entry) for entry in value["files"]))


def _parse_file(entry: dict[str, Any]) -> RemoteFile:
    name, size = entry["name"], entry["size_bytes"]
    if not is_plain_name(name) or name.startswith(".") or not is_whole(size) or size < 0:
        raise ValueError("no file of a model")
    sha256, git_sha1 = (None if entry[key] is None else _text(entry[key]) for key in ("sha256", "git_sha1"))
    return RemoteFile(name, size, sha256, git_sha1, _text(entry["url_path"]))


def _text(value: object) -> str:
    if not isinstance(value, str) or printable(value) != value:
        raise TypeError("not a text")
    return value
