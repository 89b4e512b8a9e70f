"""Sentences and progress on a terminal, in its language."""

from __future__ import annotations

import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import TextIO

from core.common.errors import DeckError
from core.common.i18n import guess_language, translate
from core.common.output import write_text
from core.common.values import json_text, without_controls

BAR_CELLS = 24
# How wide a table may be where no terminal says it, and the least that is left of a column that gives way.
USUAL_COLUMNS, LEAST_COLUMNS = 120, 16
BETWEEN = "  "
# What would break a row of a table.
BREAKS = re.compile(r"[\n\t]")
# Characters of these kinds take no column: accents, and what joins others.
NO_COLUMN = ("Mn", "Me", "Cf")


def terminal_language(environment: Mapping[str, str] = os.environ) -> str:
    """The language of the person at this terminal, by the usual variables in their usual order."""
    names = ("LC_ALL", "LC_MESSAGES", "LANG")
    return guess_language(next((environment[name] for name in names if environment.get(name)), None))


class Terminal:
    """Writes lines; on a real terminal also one status line at the bottom that the next one replaces. Raises
    OutputError where that cannot be."""

    def __init__(self, language: str | None = None, stream: TextIO | None = None) -> None:
        self.language = language or terminal_language()
        self._stream = stream or sys.stderr
        self._is_tty = self._stream.isatty()
        self._has_status_line = False
        self._last_step = ("", -1)

    def to_stdout(self) -> Terminal:
        """The same for what a command was asked for, which a shell can pipe on."""
        return Terminal(self.language, sys.stdout)

    def text(self, key: str, **params: str | int | float) -> str:
        return translate(self.language, f"cli.{key}", **params)

    def say(self, key: str, **params: str | int | float) -> None:
        """One sentence of the section "cli"."""
        self.write(self.text(key, **params))

    def error(self, error: DeckError) -> None:
        self.write(f"llamadeck: {error.sentence(self.language)}")

    def write(self, line: str) -> None:
        """A line, or several. Strangers' texts stand in them: no code of theirs reaches the terminal."""
        self._erase()
        write_text(self._stream, f"{without_controls(line)}\n")

    def write_json(self, value: object) -> None:
        """For programs: nothing is changed."""
        self.write(json_text(value))

    def status_line(self, line: str) -> None:
        if self._is_tty:
            self._erase()
            write_text(self._stream, BREAKS.sub(" ", without_controls(line)))
            self._has_status_line = True

    def steps(self, section: str) -> Callable[[str, float], None]:
        """Shows the progress of work whose steps have their names in a section of the locale files."""
        return lambda step, fraction: self.step(translate(self.language, f"{section}.{step}"), fraction)

    def step(self, name: str, fraction: float) -> None:
        """A long step's progress, 0 to 1: a bar on a terminal, elsewhere a line each quarter."""
        percent = round(100 * min(max(fraction, 0.0), 1.0))
        if self._is_tty:
            full = percent * BAR_CELLS // 100
            self.status_line(f"[{'#' * full}{'.' * (BAR_CELLS - full)}] {percent:3d} %  {name}")
        elif self._last_step != (name, percent // 25):
            self._last_step = (name, percent // 25)
            self.write(f"{percent:3d} %  {name}")

    def _erase(self) -> None:
        if self._has_status_line:
            write_text(self._stream, "\r\x1b[K")
            self._has_status_line = False


def table(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,), shrinking: Sequence[int] = ()) -> list[str]:
    """`rows` as lines with aligned columns: those in `left` begin at their left edge, numbers end at their right.
    Of the columns in `shrinking` the widest gives way while the table is wider than the terminal."""
    rows = [[BREAKS.sub(" ", without_controls(cell)) for cell in row] for row in rows]
    widths = [max(width(cell) for cell in column) for column in zip(*rows, strict=True)]
    over = sum(widths) + len(BETWEEN) * (len(widths) - 1) - shutil.get_terminal_size((USUAL_COLUMNS, 0)).columns
    while over > 0 and shrinking and widths[widest := max(shrinking, key=lambda one: widths[one])] > LEAST_COLUMNS:
        widths[widest] -= 1
        over -= 1
    lines = []
    for row in rows:
        cells = [shortened(cell, size) for cell, size in zip(row, widths, strict=True)]
        padding = [" " * (size - width(cell)) for cell, size in zip(cells, widths, strict=True)]
        pairs = enumerate(zip(cells, padding, strict=True))
        lines.append(
            BETWEEN.join(cell + pad if column in left else pad + cell for column, (cell, pad) in pairs).rstrip()
        )
    return lines


def shortened(text: str, columns: int) -> str:
    """`text` in no more than `columns`: its beginning and more of its end, which tells names and paths apart."""
    if width(text) <= columns:
        return text
    begin, end = text, ""
    while width(begin) > (columns - 1) // 3:
        begin = begin[:-1]
    while width(more := text[-len(end) - 1 :]) <= columns - 1 - width(begin):
        end = more
    return f"{begin}…{end}"


def width(text: str) -> int:
    """The columns that `text` takes on a terminal, where a Chinese character takes two."""
    return sum(map(_columns, text))


def _columns(letter: str) -> int:
    if unicodedata.category(letter) in NO_COLUMN:
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1
