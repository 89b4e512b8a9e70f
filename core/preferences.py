"""The few things a person chose once, in data/settings.json; knows no page and not what the values mean."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path

from core.atomic import write_atomically
from core.settings import data_dir

log = logging.getLogger(__name__)


class Preferences:
    """Named texts in groups, written whole and atomically. What cannot be written holds until the end."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or data_dir() / "settings.json"
        self._lock = threading.Lock()
        self._values = read_groups(self._path)

    def get(self, group: str, name: str) -> str | None:
        with self._lock:
            return self._values.get(group, {}).get(name)

    def set(self, group: str, name: str, value: str) -> None:
        with self._lock:
            self._values.setdefault(group, {})[name] = value
            try:
                write_atomically(self._path, json.dumps(self._values, ensure_ascii=False, indent=1) + "\n")
            except OSError as error:
                log.warning("could not write %s: %s", self._path, error.strerror or error)


def read_groups(path: Path) -> dict[str, dict[str, str]]:
    """What the file holds; nothing where it is missing, and a log line where it cannot be used."""
    try:
        value = json.loads(path.read_text("utf-8"))
        groups = {str(group): {str(k): str(v) for k, v in names.items()} for group, names in value.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        log.warning("%s is not used: %s", path, error)
        return {}
    return groups
