"""Which adapters are merged into a model: one of them beside it would count twice."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.checkpoint.headers import read_json
from core.common.errors import CheckpointError
from core.common.files import sha256_of
from core.common.values import is_whole

FILE = "merged_adapters.json"


@dataclass(frozen=True, slots=True)
class MergedAdapter:
    """One of those that were merged into a model: its folder's name then, and its weights as they were then."""

    name: str
    size_bytes: int
    sha256: str


def describe(name: str, weights: Path) -> MergedAdapter:
    """What is kept of the adapter `name`, whose file of weights this is. Raises OSError."""
    return MergedAdapter(name, weights.stat().st_size, sha256_of(weights))


def write_merged(folder: Path, merged: list[MergedAdapter]) -> None:
    """Add `merged` to what `folder` says of its model already. Raises OSError."""
    value = [asdict(one) for one in (*read_merged(folder), *merged)]
    (folder / FILE).write_text(json.dumps({"adapters": value}, indent=1) + "\n", "utf-8")


def read_merged(folder: Path) -> tuple[MergedAdapter, ...]:
    """The adapters that are merged into the model in `folder`, as far as that says so."""
    try:
        found = (read_json(folder / FILE) or {}).get("adapters")
    except CheckpointError:
        return ()
    return tuple(filter(None, map(_parse, found))) if isinstance(found, list) else ()


def is_merged(weights: Path, merged: tuple[MergedAdapter, ...]) -> bool:
    """Whether the adapter with these weights is one of `merged`, whatever its folder is called by now. False where they
    cannot be read: whoever uses them is told."""
    with suppress(OSError):
        status = weights.stat()
        alike = {one.sha256 for one in merged if one.size_bytes == status.st_size}
        return bool(alike) and _sha256(weights, status.st_size, status.st_mtime_ns) in alike
    return False


def _parse(value: Any) -> MergedAdapter | None:
    found = value if isinstance(value, dict) else {}
    name, size_bytes, sha256 = (found.get(key) for key in ("name", "size_bytes", "sha256"))
    if isinstance(name, str) and is_whole(size_bytes) and isinstance(sha256, str):
        return MergedAdapter(name, size_bytes, sha256)
    return None


@lru_cache(256)
def _sha256(weights: Path, size_bytes: int, changed_ns: int) -> str:
    """Size and time only say that nothing has changed since. Raises OSError."""
    return sha256_of(weights)
