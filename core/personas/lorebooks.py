"""The folder of lorebooks that belong to no character: one JSON file each. Which of them count in a chat.

A lorebook is addressed by its file's name without the ending. That stays the same for ever, so that chats and
characters keep a lorebook that is given another name.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.common.errors import DeckError
from core.common.files import regular_size
from core.common.paths import lorebooks_dir
from core.personas.cards import read_text
from core.personas.character import MAX_NAME_CHARS, CharacterError
from core.personas.fields import read_name, visible
from core.personas.folder import FileStamp, Trash, move, stamp, unreadable, visible_names, write
from core.personas.lore_editing import entry_indexes
from core.personas.lorebook_file import NO_BOOK
from core.personas.lorebook_formats import read_book
from core.personas.lorebook_writing import write_v3
from core.personas.names import file_stem, same_name
from core.personas.parse import MAX_TEXT_BYTES, write_json

SUFFIX = ".json"
FALLBACK = "lorebook"
# Beside V3's data: what only this program knows of a lorebook. Exports are without it.
OWN, IN_ALL_CHATS = "llamadeck", "in_all_chats"
CHANGING = threading.RLock()


@dataclass(frozen=True, slots=True)
class Book:
    """A lorebook as a card has it under `character_book`, with its name in it. Nothing in it is changed in place."""

    values: Mapping[str, Any]
    in_all_chats: bool = False

    @property
    def name(self) -> str:
        return str(self.values["name"])

    @property
    def num_entries(self) -> int:
        return len(entry_indexes(self.values))


def named(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The lorebook under this name."""
    return dict(values) | {"name": name}


@dataclass(frozen=True, slots=True)
class BookEntry:
    """One file of the folder: a lorebook, or the reason why it is none. `key` is what addresses it."""

    key: str
    path: Path
    book: Book | None = None
    error: DeckError | None = None

    @property
    def name(self) -> str:
        return self.book.name if self.book is not None else visible(self.path.name)


class Lorebooks:
    """All lorebooks of one folder. Every change is on disk, whole, when the call is over.

    Files that changed outside of this program are seen at the next call.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or lorebooks_dir()
        self._read: dict[Path, tuple[FileStamp, Book | DeckError]] = {}

    def entries(self) -> tuple[BookEntry, ...]:
        """Every file, by name. Raises DeckError only for a folder that cannot be read."""
        found = (self._entry(key, file) for key, file in self._files().items())
        return tuple(sorted(found, key=lambda entry: (same_name(entry.name), entry.key)))

    def get(self, key: str) -> BookEntry | None:
        """The entry with this key, None where there is none any more. Raises DeckError."""
        file = self._files().get(key)
        return self._entry(key, file) if file is not None else None

    def need(self, key: str) -> BookEntry:
        """Raises CharacterError where there is none any more."""
        entry = self.get(key)
        if entry is None:
            raise CharacterError("lorebook_gone", name=visible(key))
        return entry

    def book(self, key: str) -> Book:
        """Raises DeckError for a file that is gone or broken."""
        entry = self.need(key)
        if entry.book is None:
            raise entry.error or CharacterError("lorebook_gone", name=visible(key))
        return entry.book

    def find(self, name: str) -> BookEntry | None:
        """The lorebook that a chat or a character names: by its key, else by its name, as other programs do."""
        entry = self.get(name)
        if entry is not None and entry.book is not None:
            return entry
        wanted = same_name(name)
        return next((one for one in self.entries() if one.book is not None and same_name(one.name) == wanted), None)

    def key_named(self, name: str) -> str:
        """What a chat that comes from elsewhere calls a lorebook from now on: its key, or the name until it is here."""
        wanted = same_name(name)
        named = (one.key for one in self.entries() if one.book is not None and same_name(one.name) == wanted)
        return next(named, name)

    def attached(self, names: Iterable[str], *, with_all_chats: bool = True) -> tuple[Book, ...]:
        """The lorebooks of these names that are there, then those of all chats; each once. Raises DeckError."""
        found = [entry for name in names if (entry := self.find(name)) is not None]
        if with_all_chats:
            found += [entry for entry in self.entries() if entry.book is not None and entry.book.in_all_chats]
        return tuple({entry.key: entry.book for entry in found if entry.book is not None}.values())

    def add(self, book: Book) -> str:
        """Write a new lorebook and answer its key. Raises DeckError, for a name that is taken or is none too."""
        with CHANGING:
            self._check_name(book.name)
            key = file_stem(book.name, self._files(), FALLBACK)
            self._write(self.folder / f"{key}{SUFFIX}", book)
            return key

    def save(self, key: str, book: Book, expected: Book) -> None:
        """Write a lorebook in its old one's place, under its own name or another one. Raises DeckError.

        `expected` is what the file is to hold before: where somebody has changed it meanwhile, theirs stays.
        """
        with CHANGING:
            entry = self.need(key)
            if entry.book != expected:
                raise CharacterError("lorebook_changed", name=entry.name)
            self._check_name(book.name, key)
            self._write(entry.path, book)

    def free_name(self, name: str) -> str:
        """`name` with the first number that nobody has: "Town (2)"; the name itself where it is free."""
        taken = {same_name(entry.name) for entry in self.entries()}
        numbers = (f"{name} ({number})" for number in range(2, len(taken) + 3))
        return next(one for one in (name, *numbers) if same_name(one) not in taken)

    def delete(self, key: str, expected: Book | None) -> str:
        """Put a lorebook, or a file that is none, into the trash; answers what restore() takes. Raises DeckError.

        `expected` is what was seen: where something else stands in its place by now, that stays.
        """
        with CHANGING:
            entry = self.need(key)
            if entry.book != expected:
                raise CharacterError("lorebook_other", name=entry.name)
            return Trash(self.folder).put([entry.path])

    def restore(self, trashed: str) -> str:
        """Bring back what delete() took away; answers its key, another one where its old one is taken by now."""
        with CHANGING:
            trash = Trash(self.folder)
            files = trash.files(trashed)
            if not files:
                raise CharacterError("lorebook_not_in_trash")
            old, taken = files[0], self._files()
            key = old.name.removesuffix(SUFFIX)
            ending = SUFFIX if old.name.endswith(SUFFIX) else ""
            key = key if key not in taken else file_stem(key, taken, FALLBACK)
            move(old, self.folder / f"{key}{ending}")
            trash.forget(trashed)
            return key

    def _check_name(self, name: str, but: str | None = None) -> None:
        if not name.strip():
            raise CharacterError("lorebook_no_name")
        if len(name) > MAX_NAME_CHARS:
            raise CharacterError("character_long_name", name=name[:20], count=len(name), limit=MAX_NAME_CHARS)
        if any(same_name(entry.name) == same_name(name) for entry in self.entries() if entry.key != but):
            raise CharacterError("lorebook_name_taken", name=name)

    def _write(self, path: Path, book: Book) -> None:
        own = {OWN: {IN_ALL_CHATS: True}} if book.in_all_chats else {}
        content = write_json(write_v3(book.values) | own).encode()
        if len(content) > MAX_TEXT_BYTES:
            raise CharacterError("card_too_large", file=book.name, limit_mib=MAX_TEXT_BYTES // 2**20)
        write(path, content)

    def _files(self) -> dict[str, str]:
        """Every file by its key. What has another ending is addressed by its whole name, and says that it is odd."""
        names = visible_names(self.folder)
        odd = {name: name for name in names if not name.endswith(SUFFIX)}
        return odd | {name.removesuffix(SUFFIX): name for name in names if name.endswith(SUFFIX)}

    def _entry(self, key: str, file: str) -> BookEntry:
        path = self.folder / file
        read = self._book(path)
        return BookEntry(key, path, book=read) if isinstance(read, Book) else BookEntry(key, path, error=read)

    def _book(self, path: Path) -> Book | DeckError:
        """What the file holds; read again only when it has changed."""
        if path.suffix != SUFFIX:
            return CharacterError("lorebook_odd_file", file=visible(path.name))
        try:
            now = stamp(path)
        except OSError as error:
            return unreadable(path, error)
        if path not in self._read or self._read[path][0] != now:
            self._read[path] = (now, _read_file(path))
        return self._read[path][1]


def _read_file(path: Path) -> Book | DeckError:
    file = visible(path.name)
    try:
        if regular_size(path) > MAX_TEXT_BYTES:
            return CharacterError("card_too_large", file=file, limit_mib=MAX_TEXT_BYTES // 2**20)
        values = read_text(file, path.read_bytes())
        own = values.pop(OWN, None)
        book = read_book(values)
    except OSError as error:
        return unreadable(path, error)
    except DeckError as error:
        return CharacterError("no_lorebook", file=file) if error.key in NO_BOOK else error
    if book is None:
        return CharacterError("no_lorebook", file=file)
    # World info has no name: in SillyTavern it is called as its file is.
    name = read_name(book.get("name")) or read_name(visible(path.stem)) or FALLBACK
    return Book(named(book, name), isinstance(own, dict) and own.get(IN_ALL_CHATS) is True)
