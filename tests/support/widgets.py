"""Finds the widgets of a page by their names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def named(widgets: Iterable[Any], name: str) -> Any:
    """The widget whose key is `name`, most often with what it is drawn for behind it."""
    return min(_named(widgets, name), key=lambda one: len(str(one.key)))


def has(widgets: Iterable[Any], name: str) -> bool:
    return bool(_named(widgets, name))


def _named(widgets: Iterable[Any], name: str) -> list[Any]:
    return [one for one in widgets if one.key == name or str(one.key).startswith(f"{name}_")]
