"""How long the engine had nothing to do today, in data/idle.json: over all starts of the day."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from core.common.json_file import FileError, JsonFile
from core.common.paths import data_dir

log = logging.getLogger(__name__)
# What a killed process has not written yet is lost.
WRITE_S = 300.0
DAY_S = 24 * 3600


@dataclass(frozen=True, slots=True)
class Day:
    """`day` is ISO. Of `on_s` seconds in which the program ran, the engine had nothing to do for `idle_s`."""

    day: str = ""
    on_s: float = 0.0
    idle_s: float = 0.0


def idle_file(path: Path) -> JsonFile[Day]:
    return JsonFile(path, _parse, asdict, Day())


class IdleDay:
    """Counts, from one thread; any thread may read `today`."""

    def __init__(self, path: Path | None = None, today: Callable[[], date] = date.today) -> None:
        self._file = idle_file(path or data_dir() / "idle.json")
        self._today = today
        self._lock = threading.Lock()
        self._day, self._unwritten_s = Day(), 0.0
        kept = self._file.read_or_empty()
        if kept.day == today().isoformat():
            self._day = kept

    @property
    def today(self) -> Day:
        return self._day

    def count(self, seconds: float, is_busy: bool) -> None:
        """Add `seconds` that have just passed."""
        now = self._today().isoformat()
        if self._day.day != now:
            self._tell()
            self._day = Day(now)
        on_s, idle_s = self._day.on_s + seconds, self._day.idle_s + (0.0 if is_busy else seconds)
        self._day = replace(self._day, on_s=min(on_s, DAY_S), idle_s=min(idle_s, DAY_S))
        self._unwritten_s += seconds
        if self._unwritten_s >= WRITE_S:
            self._write()

    def close(self) -> None:
        self._tell()
        self._write()

    def _tell(self) -> None:
        if self._day.day and self._day.on_s >= 60:
            on_min, idle_min = (round(seconds / 60) for seconds in (self._day.on_s, self._day.idle_s))
            log.info("%s: the engine had nothing to do for %d of %d min", self._day.day, idle_min, on_min)

    def _write(self) -> None:
        with self._lock:
            self._unwritten_s = 0.0
            try:
                with self._file.change() as change:
                    change.value = self._day
            except FileError as error:
                log.warning("%s", error)


def _parse(value: Any) -> Day:
    """Raises TypeError, ValueError, KeyError for anything else than what is written."""
    day = Day(str(value["day"]), float(value["on_s"]), float(value["idle_s"]))
    if not (0 <= day.idle_s <= day.on_s <= DAY_S):
        raise ValueError
    return day
