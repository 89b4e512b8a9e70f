"""Access tokens, one a server, from the environment, data/secrets.json (mode 0600) or `hf auth login`; never shown."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from core.common.codec import texts_by_name
from core.common.errors import InputError
from core.common.json_file import JsonFile
from core.common.paths import data_dir
from core.common.plain_json import InvalidContent
from core.common.urls import host_name, is_private_way, origin
from core.hub.endpoints import default_endpoint

log = logging.getLogger(__name__)
Keeper = Literal["environment", "stored", "login"]
# The printable characters of ASCII without the space: a header can carry no others.
TOKEN = re.compile(r"[!-~]+")
MAX_TOKEN_CHARS = 4096


def token_for(endpoint: str) -> str | None:
    """The token to show to `endpoint`; None where there is none.

    $HF_TOKEN and the token of `hf auth login` belong to the default endpoint, a stored token to exactly its origin.
    None also for plain http to another machine, where everybody on the way could read it.
    """
    return find_token(endpoint)[0]


def token_keeper(endpoint: str) -> Keeper | None:
    """Who keeps the token of `endpoint`: only a stored one can be forgotten here."""
    return find_token(endpoint)[1]


def find_token(endpoint: str) -> tuple[str, Keeper] | tuple[None, None]:
    place = origin(endpoint)
    if place is None or not is_private_way(endpoint):
        return None, None
    is_default = place == origin(default_endpoint())
    if is_default and (token := os.environ.get("HF_TOKEN", "").strip()):
        return token, "environment"
    if (stored := tokens_file().read_or_empty().get(place)) is not None:
        return stored, "stored"
    if is_default and (kept := login_token()) is not None:
        return kept, "login"
    return None, None


def login_token() -> str | None:
    """The token that `hf auth login` keeps, renewed by huggingface_hub where it has a time limit.

    Looks for its file first ($HF_TOKEN_PATH, or "token" in $HF_HOME): importing the rest takes 0.17 s.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN or not os.path.isfile(constants.HF_TOKEN_PATH):
        return None
    from huggingface_hub import get_token
    from huggingface_hub.errors import OIDCError

    try:
        token = (get_token() or "").strip()
    except (OSError, ValueError, OIDCError) as error:
        log.warning("the token of hf auth login cannot be read: %s", type(error).__name__)
        return None
    return token if TOKEN.fullmatch(token) and len(token) <= MAX_TOKEN_CHARS else None


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
