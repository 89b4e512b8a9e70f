"""Addresses of servers with OpenAI's API, and their keys in data/engine_keys.json (mode 0600)."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.common.codec import texts_by_name
from core.common.errors import InputError
from core.common.json_file import JsonFile
from core.common.paths import data_dir
from core.common.plain_json import InvalidContent
from core.common.urls import host_name, origin
from core.common.values import quoted_text

MAX_ADDRESS_CHARS = 500
# ASCII's printable characters without the space: a header can carry no others.
KEY = re.compile(r"[!-~]{1,4096}")


def checked_address(text: str) -> str:
    """The server's base address, without "/v1", as a person typed it. Raises InputError for what is no web address."""
    found = text.strip()
    found = (found if "://" in found else f"http://{found}").rstrip("/")
    parts = urllib.parse.urlsplit(found) if origin(found) else None
    if parts is None or parts.query or parts.fragment or len(found) > MAX_ADDRESS_CHARS or not found.isprintable():
        raise InputError("remote_address", address=quoted_text(text))
    if "@" in parts.netloc:
        raise InputError("remote_login", server=host_name(found))
    return found.removesuffix("/v1").rstrip("/")


def key_of(address: str) -> str | None:
    """The key that is kept for exactly this address."""
    return keys_file().read_or_empty().get(address)


def keep_key(address: str, key: str | None) -> None:
    """Keep `key` for `address`, or forget the one that is kept. Raises InputError for what no header can carry,
    FileError where the file cannot be used."""
    key = (key or "").strip()
    if key and not KEY.fullmatch(key):
        raise InputError("remote_key_text")
    if not key and address not in keys_file().read_or_empty():
        return
    with keys_file().change() as change:
        kept = {place: one for place, one in change.value.items() if place != address}
        change.value = kept | ({address: key} if key else {})


def keys_file() -> JsonFile[Mapping[str, str]]:
    """The kept keys by address."""
    return _file(data_dir() / "engine_keys.json")


@lru_cache(8)
def _file(path: Path) -> JsonFile[Mapping[str, str]]:
    return JsonFile(path, _parse, dict, {}, mode=0o600, sentences={"unwritable": "remote_key_write"})


def _parse(value: Any) -> Mapping[str, str]:
    keys = texts_by_name(value)
    if not all(KEY.fullmatch(key) for key in keys.values()):
        raise InvalidContent("a key that no header can carry")
    return keys
