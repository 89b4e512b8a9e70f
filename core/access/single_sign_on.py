"""What secrets.toml says of signing in through a provider (OIDC); asks no provider and reads no cookie."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.settings import ROOT

COMMON = ("redirect_uri", "cookie_secret")
OF_PROVIDER = ("client_id", "client_secret", "server_metadata_url")
MIN_SECRET_CHARS = 32


def secrets_files() -> list[Path]:
    """Where Streamlit looks for secrets, the stronger one last."""
    return [folder / ".streamlit" / "secrets.toml" for folder in (Path.home(), ROOT)]


def is_set_up() -> bool:
    """Whether people can sign in through a provider."""
    return bool(provider_names(_read_secrets().get("auth", {})))


def is_limited() -> bool:
    """Whether only those on a list may come in, and not whoever a provider knows."""
    section = _read_secrets().get("access", {})
    return isinstance(section, Mapping) and section.get("allow") is not None


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
