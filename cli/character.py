"""The command `character`: imports and exports characters, also whole collections."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from core.common.errors import DeckError, InputError
from core.common.files import write_atomically
from core.common.output import write_bytes
from core.common.terminal import Terminal
from core.common.values import printable, quoted_text
from core.personas import cards
from core.personas.store import Characters

STDOUT = "-"


def add_arguments(parser: ArgumentParser, terminal: Terminal) -> None:
    """What is done with characters is an argument of its own, with further ones."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    importing = actions.add_parser("import", help=terminal.text("help_character_import"), allow_abbrev=False)
    importing.add_argument("files", metavar="FILE", nargs="+", help=terminal.text("help_character_files"))
    importing.add_argument("--keep-both", action="store_true", help=terminal.text("help_character_keep_both"))
    exporting = actions.add_parser("export", help=terminal.text("help_character_export"), allow_abbrev=False)
    exporting.add_argument("name", metavar="NAME", help=terminal.text("help_character_name"))
    for option, metavar in (("format", "F"), ("out", "FILE")):
        exporting.add_argument(f"--{option}", metavar=metavar, help=terminal.text(f"help_character_{option}"))


def run(arguments: Namespace, terminal: Terminal) -> int:
    """`character import` or `character export`."""
    if arguments.action == "import":
        return import_files(arguments.files, terminal, keeps_both=arguments.keep_both)
    return export(arguments, terminal)


def import_files(files: list[str], terminal: Terminal, *, keeps_both: bool = False) -> int:
    """Add every file's character; one that fails keeps none of the others away.

    `keeps_both` gives a character whose name is taken the next free one, such as "Ada (2)".
    The exit code: 0 all were added, 2 none was, by fault of what was given, 1 for every other failure.
    """
    characters, errors = Characters(), []
    for file in files:
        try:
            card = cards.read_path(Path(file))
            character = characters.with_free_name(card.character) if keeps_both else card.character
            key = characters.add(character, card.picture)
        except DeckError as error:
            errors.append(error)
            terminal.error(error)
            if error.key == "character_name_taken":
                terminal.say("character_keep_both")
            continue
        terminal.say("character_added", name=character.name, file=f"{key}.yaml")
        for notice in card.notices:
            terminal.write(notice.sentence(terminal.language))
    if not errors:
        return 0
    return 2 if len(errors) == len(files) and all(isinstance(one, InputError) for one in errors) else 1


def export(arguments: Namespace, terminal: Terminal) -> int:
    """Write one character to a file, or with `--out -` to the output."""
    kind = known_format(arguments.format)
    characters = Characters()
    entry = characters.find(arguments.name)
    picture = characters.picture(entry.key) if kind == "png" else b""
    content = cards.write(characters.character(entry.key), picture, kind)
    if arguments.out == STDOUT:
        write_bytes(content)
        return 0
    path = out_path(arguments.out, entry.key + cards.SUFFIXES[kind])
    try:
        write_atomically(path, content)
    except OSError as error:
        raise DeckError("character_write", file=str(path), why=error.strerror or str(error)) from error
    terminal.say("character_written", name=entry.name, path=printable(str(path)))
    return 0


def known_format(text: str | None) -> cards.Format:
    """The format that was asked for, YAML where none was. Raises InputError."""
    if text is not None and text not in cards.FORMATS:
        raise InputError("character_format", value=quoted_text(text), formats=", ".join(cards.FORMATS))
    return text or "yaml"


def out_path(out: str | None, name: str) -> Path:
    """Where to write: `out`, in the folder `out`, or here; only a file that was named is written over."""
    if out is not None and not Path(out).is_dir():
        return Path(out)
    path = Path(out or ".") / name
    if path.exists():
        raise InputError("out_exists", file=printable(str(path)))
    return path
