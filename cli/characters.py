"""The commands `characters` and `character`: list, import and export whole collections; knows no page."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from core.checkpoint.headers import printable
from core.common.errors import DeckError, InputError
from core.common.files import write_atomically
from core.common.output import write_bytes
from core.common.terminal import Terminal, table
from core.hub.address import quote
from core.personas import cards
from core.personas.listing import Entry
from core.personas.store import Characters

DONE, FAILED, BAD_INPUT = 0, 1, 2
MAX_CELL_CHARS = 60
STDOUT = "-"


def list_all(known: Namespace, terminal: Terminal) -> int:
    """Print every character; a broken file is a row too, and why it is broken is said below."""
    entries = Characters().entries()
    out = terminal.to_stdout()
    if known.json:
        out.write(json.dumps({"characters": [as_object(entry) for entry in entries]}, ensure_ascii=False, indent=1))
        return DONE
    head = [out.text(f"characters_{name}") for name in ("name", "tags", "file")]
    for line in table([head, *map(row, entries)], left=(0, 1, 2)) if entries else [out.text("characters_none")]:
        out.write(line)
    for entry in entries:
        if entry.error is not None:
            terminal.error(entry.error)
    return DONE


def run(known: Namespace, terminal: Terminal) -> int:
    """`character import` or `character export`."""
    return import_files(known.files, terminal) if known.action == "import" else export(known, terminal)


def import_files(files: list[str], terminal: Terminal) -> int:
    """Add every file's character; one that fails keeps none of the others away.

    The exit code: 0 all were added, 2 none was, by fault of what was given, 1 for every other failure.
    """
    characters, errors = Characters(), []
    for file in files:
        try:
            card = cards.read_path(Path(file))
            key = characters.add(card.character, card.picture)
        except DeckError as error:
            errors.append(error)
            terminal.error(error)
            continue
        terminal.say("character_added", name=card.character.name, file=f"{key}.yaml")
        for notice in card.notices:
            terminal.write(notice.sentence(terminal.language))
    if not errors:
        return DONE
    return BAD_INPUT if len(errors) == len(files) and all(isinstance(one, InputError) for one in errors) else FAILED


def export(known: Namespace, terminal: Terminal) -> int:
    """Write one character to a file, or with `--out -` to the output."""
    kind = known_format(known.format)
    characters = Characters()
    entry = characters.find(known.name)
    picture = characters.picture(entry.key) if kind == "png" else b""
    content = cards.write(characters.character(entry.key), picture, kind)
    if known.out == STDOUT:
        write_bytes(content)
        return DONE
    path = out_path(known.out, entry.key + cards.SUFFIXES[kind])
    try:
        write_atomically(path, content)
    except OSError as error:
        raise DeckError("character_write", file=str(path), why=error.strerror or str(error)) from error
    terminal.say("character_written", name=entry.name, path=printable(str(path)))
    return DONE


def known_format(text: str | None) -> cards.Format:
    """The format that was asked for, YAML where none was. Raises InputError."""
    if text is not None and text not in cards.FORMATS:
        raise InputError("character_format", value=quote(text), formats=", ".join(cards.FORMATS))
    return text or "yaml"


def out_path(out: str | None, name: str) -> Path:
    """Where to write: `out`, in the folder `out`, or here; only a file that was named is written over."""
    if out is not None and not Path(out).is_dir():
        return Path(out)
    path = Path(out or ".") / name
    if path.exists():
        raise InputError("out_exists", file=printable(str(path)))
    return path


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
