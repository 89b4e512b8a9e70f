"""The command `characters`: lists every character."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import Any

from core.common.terminal import Terminal, table
from core.common.values import printable
from core.personas.listing import Entry
from core.personas.store import Characters

MAX_CELL_CHARS = 60


def add_arguments(parser: ArgumentParser, terminal: Terminal) -> None:
    parser.add_argument("--json", action="store_true", help=terminal.text("help_json"))


def run(arguments: Namespace, terminal: Terminal) -> int:
    """Print every character; a broken file is a row too, and why it is broken is said below."""
    entries = Characters().entries()
    out = terminal.to_stdout()
    if arguments.json:
        out.write_json({"characters": [as_object(entry) for entry in entries]})
        return 0
    head = [out.text(f"characters_{name}") for name in ("name", "tags", "file")]
    for line in table([head, *map(row, entries)], left=(0, 1, 2)) if entries else [out.text("characters_none")]:
        out.write(line)
    for entry in entries:
        if entry.error is not None:
            terminal.error(entry.error)
    return 0


def as_object(entry: Entry) -> dict[str, Any]:
    """A character for programs. `error` is a sentence or null."""
    character = entry.character
    return {
        "name": entry.name,
        "file": printable(entry.text_path.name),
        "picture": printable(entry.picture_path.name) if entry.picture_path is not None else None,
        "tags": list(character.tags) if character is not None else [],
        "creator": character.creator if character is not None else "",
        "greetings": sum(map(bool, character.greetings)) if character is not None else 0,
        "error": str(entry.error) if entry.error is not None else None,
    }


def row(entry: Entry) -> list[str]:
    tags = ", ".join(entry.character.tags) if entry.character is not None else "!"
    cells = (entry.name, tags, printable(entry.text_path.name))
    return [cell if len(cell) <= MAX_CELL_CHARS else cell[: MAX_CELL_CHARS - 1] + "…" for cell in cells]
