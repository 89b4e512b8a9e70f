"""All small files that LlamaDeck writes, and which of them cannot be used."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from core.access.keys import KeyStore
from core.access.secret_file import SecretFile
from core.chat.presets import Presets
from core.common.json_file import FileError, JsonFile
from core.common.paths import data_dir, person_dir
from core.common.preferences import Preferences
from core.hub.tokens import tokens_file
from core.personas.user import persona_file_in
from core.remote.address import keys_file
from core.remote.selection import selection_file
from core.standby.idle_day import idle_file

Problem = tuple[JsonFile[Any], FileError]


def problems(owner: str = "") -> list[Problem]:
    """The files that `owner` may mend and that cannot be used now: their own; of "" also the installation's."""
    return _problems([*(() if owner else _shared(data_dir())), *_own(person_dir(owner))])


def all_problems() -> list[Problem]:
    """The same for the installation and everybody in it."""
    people = sorted((data_dir() / "people").glob("*/"))
    return _problems([*_shared(data_dir()), *(file for folder in (data_dir(), *people) for file in _own(folder))])


def _problems(files: list[JsonFile[Any]]) -> list[Problem]:
    return [(file, problem) for file in files if (problem := file.problem()) is not None]


@lru_cache(8)
def _shared(data: Path) -> tuple[JsonFile[Any], ...]:
    return (SecretFile(data / "access.json").file, KeyStore(data / "keys.json").file, tokens_file(), keys_file(),
            selection_file(), idle_file(data / "idle.json"))  # fmt: skip


@lru_cache(256)
def _own(folder: Path) -> tuple[JsonFile[Any], ...]:
    preferences, presets = Preferences(folder / "settings.json"), Presets(folder / "presets.yaml")
    return preferences.file, presets.file, persona_file_in(folder)
