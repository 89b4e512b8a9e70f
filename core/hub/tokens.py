"""Access tokens, one a server: from the environment or data/secrets.json (mode 0600); never shows or sends one."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from pathlib import Path

from core.atomic import write_atomically
from core.errors import DeckError, InputError
from core.hub.endpoints import default_endpoint, host_name, is_private_way, origin
from core.settings import data_dir

log = logging.getLogger(__name__)
# The printable characters of ASCII without the space: a header can carry no others.
TOKEN = re.compile(r"[!-~]+")
MAX_TOKEN_CHARS = 4096
_writing = threading.Lock()


def token_for(endpoint: str) -> str | None:
    """The token to show to `endpoint`: $HF_TOKEN if that is its server, else the one stored for exactly this origin.

    None where there is none, and for plain http to another machine, where everybody on the way could read it.
    """
    place = origin(endpoint)
    if place is None or not is_private_way(endpoint):
        return None
    if place == origin(default_endpoint()) and (token := os.environ.get("HF_TOKEN", "").strip()):
        return token
    return _stored().get(place)


def is_from_environment(endpoint: str) -> bool:
    """Whether $HF_TOKEN is the token of `endpoint`, so that there is nothing here to forget."""
    return origin(endpoint) == origin(default_endpoint()) and bool(os.environ.get("HF_TOKEN", "").strip())


def store_token(endpoint: str, token: str) -> None:
    """Keep `token` for the origin of `endpoint`. Raises InputError where it is none or could be read on its way."""
    place, token = origin(endpoint), token.strip()
    if place is None:
        raise InputError("hub_endpoint", endpoint=host_name(endpoint))
    if not is_private_way(endpoint):
        raise InputError("token_plain_http", host=host_name(endpoint))
    if not TOKEN.fullmatch(token) or len(token) > MAX_TOKEN_CHARS:
        raise InputError("hub_token_text")
    with _writing:
        _write(_stored() | {place: token})


def forget_token(endpoint: str) -> None:
    """Take out the stored token of the origin of `endpoint`, if there is one."""
    with _writing:
        tokens = _stored()
        if tokens.pop(origin(endpoint) or "", None) is not None:
            _write(tokens)


def _path() -> Path:
    return data_dir() / "secrets.json"


def _stored() -> dict[str, str]:
    """The stored tokens by origin. The log names the kind of an error only: its text could quote the file."""
    try:
        tokens = json.loads(_path().read_text("utf-8"))["tokens"]
        return {str(place): str(token) for place, token in tokens.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        log.warning("%s is not used: %s", _path(), type(error).__name__)
        return {}


def _write(tokens: dict[str, str]) -> None:
    try:
        write_atomically(_path(), json.dumps({"tokens": tokens}, indent=1) + "\n", mode=0o600)
    except OSError as error:
        raise DeckError("token_write", file=str(_path()), why=error.strerror or type(error).__name__) from error
