"""Figures of benchmarks: each is written down the moment it is known, and all of them make Markdown tables.

A file of figures has one JSON object a line, so that a run that is cut off loses nothing, and several processes may
write into one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

OURS, VLLM = "LlamaDeck", "vLLM"


@dataclass(frozen=True, slots=True)
class Figure:
    """One cell of a table, or one round of it. Without a value `said` tells why there is none."""

    table: str
    row: str
    column: str
    value: float | None = None
    engine: str = OURS
    said: str = ""


class Figures:
    """The figures of one table. `path`: the file that they are appended to; without one they are told alone."""

    def __init__(self, table: str, path: Path | None = None) -> None:
        self.table, self._path = table, path
        self.found: list[Figure] = []

    def add(self, row: str, column: str, value: float, engine: str = OURS) -> None:
        self._note(Figure(self.table, row, column, float(f"{value:.6g}"), engine))

    def fail(self, row: str, column: str, why: object, engine: str = OURS) -> None:
        self._note(Figure(self.table, row, column, None, engine, str(why)))

    def median(self, row: str, column: str, engine: str = OURS) -> float | None:
        return median([one for one in self.found if (one.row, one.column, one.engine) == (row, column, engine)])

    @property
    def failures(self) -> list[Figure]:
        return [one for one in self.found if one.value is None]

    def _note(self, figure: Figure) -> None:
        self.found.append(figure)
        told = figure.said if figure.value is None else number(figure.value)
        print(f"{figure.engine}, {figure.row}, {figure.column}: {told}", file=sys.stderr, flush=True)
        if self._path is not None:
            line = asdict(figure) | {"card": os.environ.get("CUDA_VISIBLE_DEVICES", ""), "at": now()}
            append_line(self._path, line)


def add_results(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", type=Path, metavar="FILE", help="append each figure to it, a JSON line each")


def append_line(path: Path, values: dict[str, object]) -> None:
    """Append one JSON line, whole, whoever else appends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, (json.dumps(values) + "\n").encode())
    finally:
        os.close(descriptor)


def read_lines(path: Path) -> list[dict[str, object]]:
    """What was appended to `path`, without a line that was cut off."""
    found = []
    for line in path.read_text("utf-8").splitlines() if path.is_file() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def read_figures(path: Path) -> list[Figure]:
    names = Figure.__dataclass_fields__
    return [Figure(**{name: line[name] for name in names}) for line in read_lines(path)]  # type: ignore[arg-type]


def markdown(figures: Sequence[Figure]) -> str:
    """A table for each name, with rows and columns as they came; a cell has the medians of all engines, a slash between
    them. Below it stands why some are missing."""
    parts = []
    for table in unique(one.table for one in figures):
        own = [one for one in figures if one.table == table]
        rows, columns = unique(one.row for one in own), unique(one.column for one in own if one.value is not None)
        engines = unique(one.engine for one in own)
        lines = [[" / ".join(engines), *columns], ["---"] * (len(columns) + 1)]
        for row in rows:
            cells = [row]
            for column in columns:
                some = [one for one in own if (one.row, one.column) == (row, column)]
                values = [median([one for one in some if one.engine == engine]) for engine in engines]
                cells.append("" if values == [None] * len(values) else " / ".join(map(number, values)))
            lines.append(cells)
        said = [f"- {one.engine}, {one.row}, {one.column}: {one.said}" for one in own if one.value is None]
        body = [f"| {' | '.join(cells)} |" for cells in lines] if columns else []
        parts.append("\n".join([f"### {table}", "", *body, *([""] if said and body else []), *unique(said)]))
    return "\n\n".join(parts)


def median(figures: Iterable[Figure]) -> float | None:
    values = [one.value for one in figures if one.value is not None]
    return statistics.median(values) if values else None


def number(value: float | None) -> str:
    if value is None:
        return "–"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}"


def unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
