"""The settings of a chat, which is called by its tag: read, and changed by the fields that show them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from core.chat.database import changed_meanwhile
from ui.chat.feedback import show_errors
from ui.chat.new_chat import NEW_ID, new_values
from ui.chat.session import number_of
from ui.shared.resources import chat_store


@show_errors
def change_settings(tag: str, **values: object) -> None:
    """Set some of a chat's settings. None removes one; values of "sampling" join those that are there."""

    def change(settings: dict[str, Any]) -> dict[str, Any]:
        changed = dict(settings)
        for name, value in values.items():
            old = changed.pop(name, None)
            if value is not None:
                changed[name] = {**(old or {}), **value} if isinstance(value, dict) else value
        return changed

    _change_settings(tag, change)


def change_system(tag: str, text: str, expected: str) -> None:
    """Give a chat its system text. Raises ChatStoreError where the text is no longer the `expected` one."""

    def change(settings: dict[str, Any]) -> dict[str, Any]:
        if settings.get("system", "") not in (expected, text):
            raise changed_meanwhile(text)
        others = {name: value for name, value in settings.items() if name != "system"}
        return others | ({"system": text} if text else {})

    _change_settings(tag, change)


def _change_settings(tag: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    number = number_of(tag)
    if number == NEW_ID:
        new_values()["settings"] = change(new_values()["settings"])
    else:
        chat_store().change_settings(number, change)
