"""A lorebook asked in a chat of a few messages."""

from __future__ import annotations

from datetime import datetime
from random import Random
from typing import Any

from core.personas.lore_text import Chat, LoreMessage
from core.personas.lorebook import Lore, activate
from core.personas.macros import Macros

NOON = datetime(2026, 3, 4, 12, 30)


def macros(seed: int = 1, chat: str = "chat") -> Macros:
    return Macros("Rosa", "Sam", Random(seed), NOON, chat, "ORIGINAL")


def count(text: str) -> int:
    return len(text.split())


def lore(entries: list[dict[str, Any]], said: list[str], greeting: int = 0, **book: Any) -> list[Lore]:
    """What a lorebook adds to a chat in which the user and the character take turns."""
    messages = [LoreMessage("assistant" if number % 2 else "user", text) for number, text in enumerate(said)]
    full = [{"enabled": True, "insertion_order": 0, "extensions": {}} | entry for entry in entries]
    return activate([{"entries": full, "extensions": {}} | book], Chat(messages, macros(), greeting), count).lore


def texts(found: list[Lore]) -> list[str]:
    return [one.text for one in found]
