"""Keys to the API: named, shown once, revocable; only their hashes are kept (mode 0600). Knows no request, no page."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import secrets
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path

from core.atomic import write_atomically
from core.errors import DeckError, InputError
from core.model_files import printable, quoted
from core.settings import data_dir

log = logging.getLogger(__name__)
PREFIX = "ld-"
NUM_BYTES = 32
SHOWN_CHARS = 4
MAX_NAME_CHARS = 60
MAX_KEYS = 100
MAX_KEY_CHARS = 200


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a key once it was shown. `end` is its last characters; days are ISO, `used` empty for never.

    `owner` is who made it, as the gate names people, and `address` their mail address; both are empty for whoever is
    local or gave the password.
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


class KeyStore:
    """All keys, in data/keys.json, which is read anew when it changed. Every change is on the disk when a call is over.

    A file that cannot be used opens nothing and is not overwritten.
    """

    def __init__(self, path: Path | None = None, today: Callable[[], date] = date.today) -> None:
        self._path = path or data_dir() / "keys.json"
        self._today = today
        self._lock = threading.Lock()
        self._stamp: tuple[int, int, int] | None = None
        self._keys: tuple[Key, ...] = ()

    def keys(self) -> tuple[Key, ...]:
        """Oldest first. Raises DeckError for a file that cannot be used."""
        with self._lock:
            return self._read()

    def of(self, owner: str) -> tuple[Key, ...]:
        """The keys that `owner` may see and revoke: their own; "" all. Raises DeckError as `keys` does."""
        return tuple(key for key in self.keys() if owner in ("", key.owner))

    def make(self, name: str, owner: str = "", address: str = "") -> str:
        """A new key called `name`: this is the only time that it can be read. Raises InputError, DeckError."""
        name = " ".join(name.split())
        if not name or len(name) > MAX_NAME_CHARS or not name.isprintable():
            raise InputError("key_name", name=quoted(name), limit=MAX_NAME_CHARS)
        text = PREFIX + secrets.token_urlsafe(NUM_BYTES)
        with self._lock:
            keys = self._read()
            own = [key for key in keys if key.owner == owner]
            if any(key.name.casefold() == name.casefold() for key in own):
                raise InputError("key_name_taken", name=quoted(name))
            if len(own) >= MAX_KEYS:
                raise InputError("key_too_many", limit=MAX_KEYS)
            made = self._today().isoformat()
            key = Key(secrets.token_hex(8), name, text[-SHOWN_CHARS:], hash_of(text), made, "", owner, address)
            self._write((*keys, key))
        return text

    def revoke(self, key_id: str) -> None:
        """From now on the key opens nothing; one that is gone already is no error. Raises DeckError."""
        with self._lock:
            keys = self._read()
            kept = tuple(key for key in keys if key.id != key_id)
            if kept != keys:
                self._write(kept)

    def find(self, text: str) -> Key | None:
        """The key that `text` is; the time that it takes tells nothing of any other. None also where the file fails."""
        if len(text) > MAX_KEY_CHARS:
            return None
        digest = hash_of(text)
        try:
            keys = self.keys()
        except DeckError as error:
            log.error("%s", error)
            return None
        found = [key for key in keys if hmac.compare_digest(key.sha256, digest)]
        return found[0] if found else None

    def is_new_day(self, key: Key) -> bool:
        """Whether `note_use` has something to write."""
        return key.used != self._today().isoformat()

    def note_use(self, key: Key) -> None:
        """Write down that `key` was used today. What cannot be written is left: a request is not to fail by it."""
        with self._lock:
            try:
                used = replace(key, used=self._today().isoformat())
                self._write(tuple(used if one.id == key.id else one for one in self._read()))
            except DeckError as error:
                log.warning("%s", error)

    def _read(self) -> tuple[Key, ...]:
        try:
            status = self._path.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if stamp != self._stamp:
                values = json.loads(self._path.read_text("utf-8"))["keys"]
                self._keys, self._stamp = tuple(_key(value) for value in values), stamp
        except FileNotFoundError:
            self._keys, self._stamp = (), None
        except OSError as error:
            raise DeckError("keys_file", file=str(self._path), why=error.strerror or str(error)) from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            # The kind only: what an error says could quote the file.
            raise DeckError("keys_file", file=str(self._path), why=type(error).__name__) from error
        return self._keys

    def _write(self, keys: tuple[Key, ...]) -> None:
        content = json.dumps({"keys": [asdict(key) for key in keys]}, ensure_ascii=False, indent=1) + "\n"
        try:
            write_atomically(self._path, content, mode=0o600)
        except OSError as error:
            raise DeckError("keys_file", file=printable(str(self._path)), why=error.strerror or str(error)) from error


def hash_of(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _key(value: dict[str, str]) -> Key:
    """Raises TypeError, KeyError for anything else than what `_write` writes."""
    if not all(isinstance(text, str) for text in value.values()):
        raise TypeError
    return Key(**value)
