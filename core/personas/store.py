"""Changes to the folder of characters: add, save, delete and bring back."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, replace
from pathlib import Path

from core.common.errors import DeckError
from core.common.values import printable
from core.personas.character import Character, CharacterError, check_name
from core.personas.folder import Trash, move, unlink, write
from core.personas.formats import write_file
from core.personas.listing import SUFFIXES, TEXT_SUFFIXES, Listing, Stamp, all_stems
from core.personas.names import file_stem, free_stem, same_name
from core.personas.parse import MAX_TEXT_BYTES, write_yaml
from core.personas.pictures import as_png

CHANGING = threading.RLock()


@dataclass
class _Taken:
    """The names and the files' stems that the folder had at `changed_ns`, each as same_name() has it.

    Adding a thousand to thousands would read the folder a thousand times.
    """

    changed_ns: int
    names: set[str]
    stems: set[str]


class Characters(Listing):
    """All characters of one folder, to change. Every change is on disk, whole, when the call is over."""

    def __init__(self, folder: Path | None = None, language: str = "") -> None:
        super().__init__(folder, language)
        self._taken: _Taken | None = None

    def add(self, character: Character, picture: bytes | None = None) -> str:
        """Write a new character and answer its key. Raises CharacterError for a name that is taken or is none."""
        check_name(character.name)
        with CHANGING:
            taken = self._look()
            if same_name(character.name) in taken.names:
                raise CharacterError("character_name_taken", name=character.name)
            key = free_stem(character.name, taken.stems)
            if any(os.path.lexists(self.folder / (key + suffix)) for suffix in SUFFIXES):
                # Another program's, from within the same tick of the disk's clock.
                key = file_stem(character.name, all_stems(self.names()))
            # The text makes it a character, so it comes last; a picture alone is nothing.
            if picture is not None:
                write(self.folder / f"{key}.png", as_png(character.name, picture))
            try:
                self._write_text(f"{key}.yaml", character)
            except DeckError:
                (self.folder / f"{key}.png").unlink(missing_ok=True)
                raise
            taken.names.add(same_name(character.name))
            taken.stems.add(same_name(key))
            taken.changed_ns = self._changed_ns()
            return key

    def save(self, key: str, character: Character, expected: Character | None = None) -> None:
        """Write a character in its old one's place; JSON becomes YAML. Raises DeckError.

        `expected` is what the file is to hold before: where somebody has changed it meanwhile, theirs stays.
        """
        with CHANGING:
            entry = self.need(key)
            if expected is not None and entry.character != expected:
                raise CharacterError("character_changed", name=entry.name)
            self._check_free(character.name, key)
            is_yaml = entry.text_path.suffix != ".json"
            self._write_text(entry.text_path.name if is_yaml else f"{key}.yaml", character)
            if not is_yaml:
                unlink(entry.text_path)

    def set_picture(self, key: str, picture: bytes | None, expected: tuple[Character, Stamp] | None = None) -> None:
        """Give a character this picture, in any usual format; None for the drawn one. Raises DeckError.

        `expected` is the character, and the stamp of the picture, that the new one was chosen for.
        """
        with CHANGING:
            entry = self.need(key)
            if expected is not None and (entry.character, entry.picture_stamp) != expected:
                raise CharacterError("character_changed", name=entry.name)
            old = entry.picture_path
            new = self.folder / f"{key}.png" if picture is not None else None
            if picture is not None:
                write(self.folder / f"{key}.png", as_png(printable(key), picture))
            if old is not None and old != new:
                unlink(old)

    def duplicate(self, key: str) -> str:
        """A copy under the next free name; answers its key. Raises DeckError."""
        with CHANGING:
            entry, character = self.need(key), self.character(key)
            picture = self.picture(key) if entry.picture_path is not None else None
            return self.add(replace(character, name=self.free_name(character.name)), picture)

    def with_free_name(self, character: Character) -> Character:
        """The character, under the next free name where somebody has its own. Raises DeckError."""
        is_taken = any(same_name(one.name) == same_name(character.name) for one in self.entries())
        return replace(character, name=self.free_name(character.name)) if is_taken else character

    def free_name(self, name: str) -> str:
        """`name` with the first number that nobody has: "Ada (2)". Raises DeckError for a folder that is unreadable."""
        taken = {same_name(one.name) for one in self.entries()}
        numbers = (f"{name} ({number})" for number in range(2, len(taken) + 3))
        return next(numbered for numbered in numbers if same_name(numbered) not in taken)

    def delete(self, key: str, expected: Character | None = None) -> str:
        """Put a character into the trash; answers what restore() takes. Raises DeckError.

        `expected` is what was seen: where something else stands in its place by now, that stays.
        """
        with CHANGING:
            entry = self.need(key)
            if expected is not None and entry.character != expected:
                raise CharacterError("character_other", name=entry.name)
            return Trash(self.folder).put(path for path in (entry.text_path, entry.picture_path) if path is not None)

    def restore(self, trashed: str) -> str:
        """Bring back what delete() took away; answers its key, another one where its old one is taken by now."""
        with CHANGING:
            trash = Trash(self.folder)
            files = trash.files(trashed)
            texts = [path for path in files if path.suffix in TEXT_SUFFIXES]
            if not texts:
                raise CharacterError("character_not_in_trash")
            stems = all_stems(self.names())
            key = texts[0].stem if texts[0].stem not in stems else file_stem(texts[0].stem, stems)
            for path in sorted(files, key=texts.__contains__):
                move(path, self.folder / (key + path.suffix))
            trash.forget(trashed)
            return key

    def _look(self) -> _Taken:
        """What is taken; read anew where files came or went since. Raises DeckError."""
        changed_ns = self._changed_ns()
        if self._taken is None or self._taken.changed_ns != changed_ns:
            names = {same_name(entry.name) for entry in self.entries()}
            self._taken = _Taken(changed_ns, names, {same_name(stem) for stem in all_stems(self.names())})
        return self._taken

    def _changed_ns(self) -> int:
        try:
            return self.folder.stat().st_mtime_ns
        except OSError:
            # The folder may not be there yet; why it cannot be read is said where that is tried.
            return 0

    def _check_free(self, name: str, but: str | None = None) -> None:
        check_name(name)
        others = (entry for entry in self.entries() if entry.key != but)
        if any(same_name(entry.name) == same_name(name) for entry in others):
            raise CharacterError("character_name_taken", name=name)

    def _write_text(self, file: str, character: Character) -> None:
        content = write_yaml(write_file(character)).encode()
        if len(content) > MAX_TEXT_BYTES:
            raise CharacterError("card_too_large", file=character.name, limit_mib=MAX_TEXT_BYTES // 2**20)
        write(self.folder / file, content)
