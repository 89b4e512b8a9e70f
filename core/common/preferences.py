"""What a person chose once, in settings.json in their folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.common.json_file import FileError, JsonFile
from core.common.paths import data_dir

log = logging.getLogger(__name__)
# By name in groups. What is no text, another version of this program keeps there.
Groups = Mapping[str, Mapping[str, Any]]


class Preferences:
    """Named texts in groups, each change written at once. What cannot be written holds until the end."""

    def __init__(self, path: Path | None = None) -> None:
        self.file: JsonFile[Groups] = JsonFile(path or data_dir() / "settings.json", _parse, dict, {})
        self._unwritten: dict[tuple[str, str], str] = {}

    def get(self, group: str, name: str) -> str | None:
        if (group, name) in self._unwritten:
            return self._unwritten[group, name]
        value = self.file.read_or_empty().get(group, {}).get(name)
        return value if isinstance(value, str) else None

    def set(self, group: str, name: str, value: str) -> None:
        try:
            with self.file.change() as change:
                change.value = {**change.value, group: {**change.value.get(group, {}), name: value}}
            self._unwritten.pop((group, name), None)
        except FileError as error:
            log.warning("%s", error)
            self._unwritten[group, name] = value


def _parse(value: Any) -> Groups:
    if not isinstance(value, dict) or not all(isinstance(group, dict) for group in value.values()):
        raise TypeError
    return value
