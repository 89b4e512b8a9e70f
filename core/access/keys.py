"""API keys: named, shown once, revocable. Only their hashes are stored (mode 0600)."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import date
from pathlib import Path
from typing import Any

from core.common.codec import texts_by_name
from core.common.errors import DeckError, InputError
from core.common.files import write_atomically
from core.common.json_file import JsonFile
from core.common.paths import data_dir
from core.common.plain_json import InvalidContent
from core.common.values import quoted_json

log = logging.getLogger(__name__)
PREFIX = "ld-"
NUM_BYTES = 32
SHOWN_CHARS = 4
MAX_NAME_CHARS = 60
MAX_KEYS = 100
MAX_KEY_CHARS = 200
SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a key once it was shown. `end` is its last characters; days are ISO, `used` empty for never.

    `owner` is who made it, as the gate names people, and `address` their mail address; both are empty for whoever is
    local or gave the password. `rest` is what another version of this program keeps of it.
    A key is 256 random bits, so that a plain hash tells as little of it as a slow one would.
    """

    id: str
    name: str
    end: str
    sha256: str
    made: str
    used: str = ""
    owner: str = ""
    address: str = ""
    rest: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)


class KeyStore:
    """All keys, in data/keys.json, which is read anew when it changed. Every change is on the disk when a call is over.

    A file that cannot be used opens nothing and is not overwritten.
    """

    def __init__(self, path: Path | None = None, today: Callable[[], date] = date.today) -> None:
        self.file: JsonFile[tuple[Key, ...]] = JsonFile(
            path or data_dir() / "keys.json", _parse, _dump, (), mode=0o600, fields=("keys",),
            sentences=dict.fromkeys(("damaged", "unreadable", "unwritable"), "keys_file"),
            # Looked up at each write: whoever tries two processes at once puts a slower one in its place.
            write=lambda path, text, mode: write_atomically(path, text, mode),
        )  # fmt: skip
        self._today = today
        # The last error of note_use, so that the log has it once.
        self._failed = ""

    def keys(self) -> tuple[Key, ...]:
        """Oldest first. Raises DeckError for a file that cannot be used."""
        return self.file.read()

    def of(self, owner: str) -> tuple[Key, ...]:
        """The keys that `owner` may see and revoke: their own; "" all. Raises DeckError as `keys` does."""
        return tuple(key for key in self.keys() if owner in ("", key.owner))

    def make(self, name: str, owner: str = "", address: str = "") -> str:
        """A new key called `name`: this is the only time that it can be read. Raises InputError, DeckError."""
        name = " ".join(name.split())
        if not name or len(name) > MAX_NAME_CHARS or not name.isprintable():
            raise InputError("key_name", name=quoted_json(name), limit=MAX_NAME_CHARS)
        text = PREFIX + secrets.token_urlsafe(NUM_BYTES)
        with self.file.change() as change:
            own = [key for key in change.value if key.owner == owner]
            if any(key.name.casefold() == name.casefold() for key in own):
                raise InputError("key_name_taken", name=quoted_json(name))
            if len(own) >= MAX_KEYS:
                raise InputError("key_too_many", limit=MAX_KEYS)
            made = self._today().isoformat()
            key = Key(secrets.token_hex(8), name, text[-SHOWN_CHARS:], hash_of(text), made, "", owner, address)
            change.value = (*change.value, key)
        return text

    def revoke(self, key_id: str) -> None:
        """From now on the key opens nothing; one that is gone already is no error. Raises DeckError."""
        with self.file.change() as change:
            change.value = tuple(key for key in change.value if key.id != key_id)

    def find(self, text: str) -> Key | None:
        """The API key with this text, compared in constant time. None for an unknown key or an unreadable file."""
        if len(text) > MAX_KEY_CHARS:
            return None
        digest = hash_of(text)
        found = [key for key in self.file.read_or_empty() if hmac.compare_digest(key.sha256, digest)]
        return found[0] if found else None

    def is_new_day(self, key: Key) -> bool:
        """Whether `note_use` has something to write."""
        return key.used != self._today().isoformat()

    def note_use(self, key: Key) -> None:
        """Store that `key` was used today. An error is only logged: no request fails by it."""
        day = self._today().isoformat()
        try:
            with self.file.change() as change:
                change.value = tuple(replace(one, used=day) if one.id == key.id else one for one in change.value)
            self._failed = ""
        except DeckError as error:
            if str(error) != self._failed:
                log.warning("%s", error)
            self._failed = str(error)


def hash_of(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _parse(value: Any) -> tuple[Key, ...]:
    """Raises TypeError, KeyError for anything else than what `_dump` makes."""
    if not isinstance(value["keys"], list):
        raise TypeError
    return tuple(map(_key, value["keys"]))


def _key(value: Any) -> Key:
    known = {one.name for one in fields(Key)} - {"rest"}
    if not isinstance(value, dict):
        raise TypeError
    rest = {name: kept for name, kept in value.items() if name not in known}
    key = Key(**texts_by_name({name: text for name, text in value.items() if name in known}), rest=rest)
    if not SHA256.fullmatch(key.sha256):
        raise InvalidContent("a hash that is none")
    return key


def _dump(keys: tuple[Key, ...]) -> dict[str, Any]:
    return {"keys": [{**{name: text for name, text in asdict(key).items() if name != "rest"}, **key.rest}
                     for key in keys]}  # fmt: skip
