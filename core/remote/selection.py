"""Which engine a person selected, this machine's or another server's, as data/engine.json keeps it.

The file may be changed by another process (`./llamadeck scale`), which a running dashboard notices.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.common.json_file import FileError, JsonFile
from core.common.paths import data_dir
from core.common.values import is_whole

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RemoteSelection:
    """A model of the server at `address`. `context_tokens` is what a person said where the server does not tell."""

    address: str
    model: str
    context_tokens: int | None = None


def selection_path() -> Path:
    return data_dir() / "engine.json"


def selection_file() -> JsonFile[RemoteSelection | None]:
    return _file(selection_path())


def read_selection() -> RemoteSelection | None:
    """None for this machine's own engine, and where the file cannot be used, which the log says."""
    return selection_file().read_or_empty()


def write_selection(selection: RemoteSelection | None) -> None:
    """Keep what was selected. Where the file cannot be written, it holds until the end of this process."""
    if selection is None and not selection_path().exists():
        return
    try:
        with selection_file().change() as change:
            change.value = selection
    except FileError as error:
        log.warning("%s", error)


def forget_selection(selection: RemoteSelection) -> None:
    """Select this machine's own engine, unless something else was selected meanwhile."""
    try:
        with selection_file().change() as change:
            change.value = None if change.value == selection else change.value
    except FileError as error:
        log.warning("%s", error)


@lru_cache(8)
def _file(path: Path) -> JsonFile[RemoteSelection | None]:
    return JsonFile(path, _parse, _dump, None)


def _parse(value: Any) -> RemoteSelection | None:
    """Raises TypeError, ValueError for anything else than what `_dump` makes."""
    if not isinstance(value, dict):
        raise TypeError
    if not value:
        return None
    names = {field.name for field in fields(RemoteSelection)}
    selection = RemoteSelection(**{name: kept for name, kept in value.items() if name in names})
    if not isinstance(selection.address, str) or not isinstance(selection.model, str):
        raise TypeError
    if selection.context_tokens is not None and not (
        is_whole(selection.context_tokens) and selection.context_tokens > 0
    ):
        raise ValueError
    return selection


def _dump(selection: RemoteSelection | None) -> Mapping[str, Any]:
    return asdict(selection) if selection else {}
