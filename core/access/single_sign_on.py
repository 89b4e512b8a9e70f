"""The settings of signing in through a provider (OIDC), from secrets.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from core.common.paths import ROOT

COMMON = ("redirect_uri", "cookie_secret")
OF_PROVIDER = ("client_id", "client_secret", "server_metadata_url")
MIN_SECRET_CHARS = 32
ANYBODY = "*"


def secrets_files() -> list[Path]:
    """Where Streamlit looks for secrets, the stronger one last."""
    return [folder / ".streamlit" / "secrets.toml" for folder in (Path.home(), ROOT)]


def is_set_up() -> bool:
    """Whether people can sign in through a provider."""
    return bool(provider_names(_read_secrets().get("auth", {})))


def people_allowed() -> tuple[str, ...]:
    """Who of the provider's people may come in; see `allow_list`."""
    return allow_list(_read_secrets().get("access", {}))


def allow_list(section: object) -> tuple[str, ...]:
    """Of the section [access] the mail addresses or patterns of those who may come in; without any it is nobody.

    A large provider knows half the world: only "*" lets in whoever it signs in, also somebody without an address.
    """
    allow = section.get("allow", ()) if isinstance(section, Mapping) else ()
    listed = [allow] if isinstance(allow, str) else allow if isinstance(allow, Sequence) else ()
    return tuple(str(one).lower() for one in listed)


def is_on_list(address: str, allowed: Sequence[str]) -> bool:
    """Whether whoever has this mail address, in small letters, may come in."""
    return ANYBODY in allowed or (bool(address) and any(fnmatchcase(address, pattern) for pattern in allowed))


def _read_secrets() -> dict[str, Any]:
    """A file that cannot be read sets nothing up."""
    merged: dict[str, Any] = {}
    for path in secrets_files():
        try:
            merged |= tomllib.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            continue
    return merged


def provider_names(auth: Mapping[str, Any]) -> list[str]:
    """The providers of the section [auth] that have all they need; "default" for the one that stands in it itself.

    None where the cookie's secret is too short to trust it: whoever guesses it is anybody.
    """
    if not isinstance(auth, Mapping) or not all(isinstance(auth.get(name), str) for name in COMMON):
        return []
    if len(auth["cookie_secret"]) < MIN_SECRET_CHARS:
        return []
    sections = {"default": auth} | {name: section for name, section in auth.items() if isinstance(section, Mapping)}
    return [name for name, section in sections.items() if all(section.get(key) for key in OF_PROVIDER)]
