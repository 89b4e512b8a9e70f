"""The folder of characters, read: one YAML file and a picture each, as text-generation-webui has it; changes nothing.

A character is addressed by its file's name without the ending, which stays the same whatever its name becomes.
"""

from __future__ import annotations

import difflib
import operator
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from core.common.errors import DeckError
from core.common.files import regular_size
from core.common.paths import characters_dir
from core.common.values import printable
from core.personas.cards import read_text
from core.personas.character import Character, CharacterError
from core.personas.fields import read_name, visible
from core.personas.folder import FileStamp, stamp, unreadable, visible_names
from core.personas.formats import read_object
from core.personas.names import same_name
from core.personas.parse import MAX_TEXT_BYTES
from core.personas.pictures import as_png
from core.personas.png import MAX_PNG_BYTES
from core.personas.portrait import draw_portrait
from core.personas.translations import in_language

# In the order in which text-generation-webui looks for them; ours are written as .yaml.
TEXT_SUFFIXES = (".yml", ".yaml", ".json")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
SUFFIXES = TEXT_SUFFIXES + PICTURE_SUFFIXES
NUM_SUGGESTIONS = 3


# The state of a picture's file; None where there is none.
Stamp = FileStamp | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the folder: a character, or the reason why it is none. `key` is what addresses it."""

    key: str
    text_path: Path
    picture_path: Path | None
    character: Character | None = None
    error: DeckError | None = None
    # When the file was changed last.
    changed_ns: int = 0

    @property
    def name(self) -> str:
        return self.character.name if self.character is not None else visible(self.key)

    @property
    def picture_stamp(self) -> Stamp:
        try:
            return stamp(self.picture_path) if self.picture_path is not None else None
        except OSError:
            return None


class Listing:
    """All characters of one folder. Files that changed outside of this program are seen at the next call.

    With a `language`, characters that bring themselves in it are in that language; without one, as their files are.
    """

    def __init__(self, folder: Path | None = None, language: str = "") -> None:
        self.folder = folder or characters_dir()
        self.language = language
        # By the file's name: what it was when it was read.
        self._read: dict[str, tuple[FileStamp, Entry]] = {}
        # All entries, in the order of the files and in that of the names: of thousands, most lists are the last one.
        self._listed: tuple[list[Entry], tuple[Entry, ...]] = ([], ())

    def entries(self) -> tuple[Entry, ...]:
        """Every file, by name. Raises DeckError only for a folder that cannot be read."""
        names = self.names()
        # Looked up for each: in a list, four times as many would take sixteen times as long.
        known = frozenset(names)
        found = [self._entry(key, known.__contains__) for key in _keys(names)]
        before, listed = self._listed
        if len(found) != len(before) or not all(map(operator.is_, found, before)):
            listed = tuple(sorted(found, key=lambda entry: (same_name(entry.name), entry.key)))
            self._listed = found, listed
        return listed

    def get(self, key: str) -> Entry | None:
        """The entry with this key, None where there is none any more."""
        if not key or "/" in key or key.startswith("."):
            return None
        # One key is asked for often: the whole folder is not read for it.
        there = frozenset(name for name in map(key.__add__, SUFFIXES) if os.path.lexists(self.folder / name))
        return self._entry(key, there.__contains__) if any(key + one in there for one in TEXT_SUFFIXES) else None

    def character(self, key: str) -> Character:
        """Raises DeckError for a file that is gone or broken."""
        entry = self.need(key)
        if entry.character is None:
            raise entry.error or CharacterError("character_gone", name=visible(key))
        return entry.character

    def find(self, name: str) -> Entry:
        """The entry that a person means: by its key, else by its name, in any letter case. Raises CharacterError."""
        entries = self.entries()
        wanted = same_name(name)
        found = [entry for entry in entries if entry.key == name]
        found = found or [entry for entry in entries if wanted in (same_name(entry.name), same_name(entry.key))]
        if len(found) == 1:
            return found[0]
        if found:
            keys = ", ".join(visible(entry.key) for entry in found)
            raise CharacterError("character_several", name=name, files=keys)
        names = [entry.name for entry in entries]
        near = difflib.get_close_matches(name, names, NUM_SUGGESTIONS, 0.3) or names[:NUM_SUGGESTIONS]
        if not near:
            raise CharacterError("unknown_character_of_none", name=name)
        raise CharacterError("unknown_character", name=name, near=", ".join(near))

    def picture(self, key: str) -> bytes:
        """The character's picture as PNG, one drawn for its key where it has none. Raises DeckError."""
        entry = self.need(key)
        if entry.picture_path is None:
            return draw_portrait(entry.key)
        file = visible(entry.picture_path.name)
        try:
            if regular_size(entry.picture_path) > MAX_PNG_BYTES:
                raise CharacterError("card_too_large", file=file, limit_mib=MAX_PNG_BYTES // 2**20)
            return as_png(file, entry.picture_path.read_bytes())
        except OSError as error:
            raise unreadable(entry.picture_path, error) from error

    def need(self, key: str) -> Entry:
        """The entry with this key. Raises CharacterError where there is none any more."""
        entry = self.get(key)
        if entry is None:
            raise CharacterError("character_gone", name=visible(key))
        return entry

    def names(self) -> list[str]:
        """The names of all files that are not hidden. Raises DeckError."""
        return visible_names(self.folder)

    def _entry(self, key: str, is_there: Callable[[str], bool]) -> Entry:
        """The entry of a file; read again only when the file has changed."""
        text = next(key + suffix for suffix in TEXT_SUFFIXES if is_there(key + suffix))
        picture = next((key + suffix for suffix in PICTURE_SUFFIXES if is_there(key + suffix)), None)
        try:
            status = os.stat(f"{self.folder}/{text}")
        except OSError as error:
            return Entry(key, self.folder / text, None, error=unreadable(self.folder / text, error))
        now = status.st_mtime_ns, status.st_size
        known = self._read.get(text)
        if known is None or known[0] != now:
            read, path = _read_file(self.folder / text), self.folder / text
            if isinstance(read, Character):
                read = in_language(read, self.language) if self.language else read
                entry = Entry(key, path, None, character=read, changed_ns=now[0])
            else:
                entry = Entry(key, path, None, error=read, changed_ns=now[0])
        elif picture == (known[1].picture_path.name if known[1].picture_path is not None else None):
            return known[1]
        else:
            entry = known[1]
        entry = replace(entry, picture_path=self.folder / picture if picture is not None else None)
        self._read[text] = now, entry
        return entry


def _keys(names: list[str]) -> list[str]:
    return list(dict.fromkeys(stem for stem, suffix in map(os.path.splitext, names) if suffix in TEXT_SUFFIXES))


def all_stems(names: list[str]) -> set[str]:
    """What a new file may not be called: pictures count too, or another's picture would become the new one's."""
    return {os.path.splitext(name)[0] for name in names}


def _read_file(path: Path) -> Character | DeckError:
    file = visible(path.name)
    try:
        if regular_size(path) > MAX_TEXT_BYTES:
            return CharacterError("card_too_large", file=file, limit_mib=MAX_TEXT_BYTES // 2**20)
        character = read_object(file, read_text(file, path.read_bytes()))
    except OSError as error:
        return unreadable(path, error)
    except DeckError as error:
        return error
    # A file of text-generation-webui may have no name: there it is called as the file is.
    return character if character.name else replace(character, name=read_name(printable(path.stem)))
