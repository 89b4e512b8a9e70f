"""Ollama's usual tag behind a model's name: one rule for the routes of every API."""

from __future__ import annotations

from collections.abc import Collection

from core.checkpoint.adapter_folders import list_adapters
from core.checkpoint.weight_files import is_plain_name
from core.library.scan import locate

# Clients of Ollama add it to each name, also where they ask other routes.
TAG = "latest"
# No folder has a longer name.
MAX_FOLDER_BYTES = 255


def without_tag(name: str | None, known: Collection[str | None]) -> str | None:
    """The name without the tag, unless it is among those that are `known`, such as a model's of an Ollama elsewhere, or
    the tag is what an adapter is called. Reads folders: not for the event loop."""
    if name is None or name in known or not name.endswith(f":{TAG}"):
        return name
    model = name.removesuffix(f":{TAG}")
    return name if _has_adapter(model) else model


def _has_adapter(model: str) -> bool:
    if not is_plain_name(model) or len(model.encode()) > MAX_FOLDER_BYTES:
        return False
    return any(folder.name == TAG for folder in list_adapters(locate(model)))
