"""Addresses of servers with OpenAI's API, and their keys in data/engine_keys.json (mode 0600); asks no server."""

from __future__ import annotations

import json
import logging
import re
import threading
import urllib.parse
from pathlib import Path

from core.atomic import write_atomically
from core.errors import DeckError, InputError
from core.hub.address import quote
from core.hub.endpoints import host_name, origin
from core.settings import data_dir

log = logging.getLogger(__name__)
MAX_ADDRESS_CHARS = 500
# The printable characters of ASCII without the space: a header can carry no others.
KEY = re.compile(r"[!-~]{1,4096}")
_writing = threading.Lock()


def checked_address(text: str) -> str:
    """What a person typed as the server's base, without "/v1". Raises InputError for what is no web address."""
    found = text.strip()
    found = (found if "://" in found else f"http://{found}").rstrip("/")
    parts = urllib.parse.urlsplit(found) if origin(found) else None
    if parts is None or parts.query or parts.fragment or len(found) > MAX_ADDRESS_CHARS or not found.isprintable():
        raise InputError("remote_address", address=quote(text))
    if "@" in parts.netloc:
        raise InputError("remote_login", server=host_name(found))
    return found.removesuffix("/v1").rstrip("/")


def key_of(address: str) -> str | None:
    """The key that is kept for exactly this address."""
    return _stored().get(address)


def keep_key(address: str, key: str | None) -> None:
    """Keep `key` for `address`, or forget the one that is kept. Raises InputError for what no header can carry."""
    key = (key or "").strip()
    if key and not KEY.fullmatch(key):
        raise InputError("remote_key_text")
    with _writing:
        keys = _stored()
        if keys.get(address, "") == key:
            return
        keys.pop(address, None)
        _write(keys | ({address: key} if key else {}))


def _path() -> Path:
    return data_dir() / "engine_keys.json"


def _stored() -> dict[str, str]:
    """The log names the kind of an error only: its text could quote the file."""
    try:
        keys = json.loads(_path().read_text("utf-8"))
        return {str(address): str(key) for address, key in keys.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        log.warning("%s is not used: %s", _path(), type(error).__name__)
        return {}


def _write(keys: dict[str, str]) -> None:
    try:
        write_atomically(_path(), json.dumps(keys, indent=1) + "\n", mode=0o600)
    except OSError as error:
        raise DeckError("remote_key_write", file=str(_path()), why=error.strerror or type(error).__name__) from error
