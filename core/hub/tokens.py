"""Access tokens, one a server: from the environment or data/secrets.json (mode 0600); never shows or sends one."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.common.errors import InputError
from core.common.json_file import InvalidContent, JsonFile, texts_by_name
from core.common.paths import data_dir
from core.common.urls import host_name, is_private_way, origin
from core.hub.endpoints import default_endpoint

# The printable characters of ASCII without the space: a header can carry no others.
TOKEN = re.compile(r"[!-~]+")
MAX_TOKEN_CHARS = 4096


def token_for(endpoint: str) -> str | None:
    """The token to show to `endpoint`: $HF_TOKEN if that is its server, else the one stored for exactly this origin.

    None where there is none, and for plain http to another machine, where everybody on the way could read it.
    """
    place = origin(endpoint)
    if place is None or not is_private_way(endpoint):
        return None
    if place == origin(default_endpoint()) and (token := os.environ.get("HF_TOKEN", "").strip()):
        return token
    return tokens_file().read_or_empty().get(place)


def is_from_environment(endpoint: str) -> bool:
    """Whether $HF_TOKEN is the token of `endpoint`, so that there is nothing here to forget."""
    return origin(endpoint) == origin(default_endpoint()) and bool(os.environ.get("HF_TOKEN", "").strip())


def store_token(endpoint: str, token: str) -> None:
    """Keep `token` for the origin of `endpoint`. Raises InputError where it is none or could be read on its way,
    FileError where the file cannot be used."""
    place, token = origin(endpoint), token.strip()
    if place is None:
        raise InputError("hub_endpoint", endpoint=host_name(endpoint))
    if not is_private_way(endpoint):
        raise InputError("token_plain_http", host=host_name(endpoint))
    if not TOKEN.fullmatch(token) or len(token) > MAX_TOKEN_CHARS:
        raise InputError("hub_token_text")
    with tokens_file().change() as change:
        change.value = {**change.value, place: token}


def forget_token(endpoint: str) -> None:
    """Take out the stored token of the origin of `endpoint`, if there is one. Raises FileError."""
    place = origin(endpoint) or ""
    if place not in tokens_file().read_or_empty():
        return
    with tokens_file().change() as change:
        change.value = {name: token for name, token in change.value.items() if name != place}


def tokens_file() -> JsonFile[Mapping[str, str]]:
    """The stored tokens by origin."""
    return _file(data_dir() / "secrets.json")


@lru_cache(8)
def _file(path: Path) -> JsonFile[Mapping[str, str]]:
    return JsonFile(path, _parse, lambda tokens: {"tokens": tokens}, {}, mode=0o600, fields=("tokens",),
                    sentences={"unwritable": "token_write"})  # fmt: skip


def _parse(value: Any) -> Mapping[str, str]:
    tokens = texts_by_name(value["tokens"])
    if not all(TOKEN.fullmatch(token) for token in tokens.values()):
        raise InvalidContent("a token that no header can carry")
    return tokens
