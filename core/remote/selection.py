"""Which engine a person chose, this machine's or another server's, in data/engine.json; knows neither of them.

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
class Choice:
    """A model of the server at `address`. `context_tokens` is what a person said where the server does not tell."""

    address: str
    model: str
    context_tokens: int | None = None


def choice_path() -> Path:
    return data_dir() / "engine.json"


def choice_file() -> JsonFile[Choice | None]:
    return _file(choice_path())


def read_choice() -> Choice | None:
    """None for this machine's own engine, and where the file cannot be used, which the log says."""
    return choice_file().read_or_empty()


def write_choice(choice: Choice | None) -> None:
    """What cannot be written holds until the end of this process."""
    if choice is None and not choice_path().exists():
        return
    try:
        with choice_file().change() as change:
            change.value = choice
    except FileError as error:
        log.warning("%s", error)


def forget_choice(choice: Choice) -> None:
    """Choose this machine's own engine, unless something else was chosen meanwhile."""
    try:
        with choice_file().change() as change:
            change.value = None if change.value == choice else change.value
    except FileError as error:
        log.warning("%s", error)


@lru_cache(8)
def _file(path: Path) -> JsonFile[Choice | None]:
    return JsonFile(path, _parse, _dump, None)


def _parse(value: Any) -> Choice | None:
    """Raises TypeError, ValueError for anything else than what `_dump` makes."""
    if not isinstance(value, dict):
        raise TypeError
    if not value:
        return None
    names = {field.name for field in fields(Choice)}
    choice = Choice(**{name: kept for name, kept in value.items() if name in names})
    if not isinstance(choice.address, str) or not isinstance(choice.model, str):
        raise TypeError
    if choice.context_tokens is not None and not (is_whole(choice.context_tokens) and choice.context_tokens > 0):
        raise ValueError
    return choice


def _dump(choice: Choice | None) -> Mapping[str, Any]:
    return asdict(choice) if choice else {}
