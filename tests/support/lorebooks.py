"""Lorebooks as programs write them, and one asked in a chat of a few messages."""

from __future__ import annotations

from datetime import datetime
from random import Random
from typing import Any

from hypothesis import strategies as st

from core.personas.lore_text import Chat, LoreMessage
from core.personas.lorebook import Lore, activate
from core.personas.lorebooks import Book
from core.personas.macros import Macros

NOON = datetime(2026, 3, 4, 12, 30)
# Whatever JSON can hold.
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
# A lorebook of its own.
TOWN = Book({"name": "Town", "extensions": {}, "strange": 1, "entries": [
    {"keys": ["tower"], "name": "Tower", "content": "The tower is tall.", "enabled": True, "insertion_order": 7},
    {"keys": ["tall"], "name": "Sky", "content": "{{char}} looks up.", "enabled": True, "insertion_order": 8},
], "recursive_scanning": True})  # fmt: skip
WORLD_INFO = {
    "entries": {
        "0": {
            "uid": 0,
            "key": ["tower", "/sto[rn]e/i"],
            "keysecondary": ["sea"],
            "comment": "The tower",
            "content": "Tall.",
            "constant": False,
            "selective": True,
            "selectiveLogic": 2,
            "order": 30,
            "position": 4,
            "depth": 2,
            "role": 1,
            "disable": True,
            "excludeRecursion": True,
            "sticky": 3,
            "addMemo": True,
            "characterFilter": {"names": []},
        },
        "7": {"uid": 7, "key": ["hut"], "content": "Low.", "order": 20, "position": 0, "disable": False},
    },
    "originalData": {"name": "x"},
}
RISU_ENTRY = {
    "key": "hut, /a,b/i",
    "secondkey": "sea,sand",
    "insertorder": 20,
    "comment": "The hut",
    "content": "Low.",
    "mode": "normal",
    "alwaysActive": True,
    "selective": True,
    "activationPercent": 40,
    "useRegex": True,
    "extentions": {"risu_case_sensitive": True},
    "id": "u",
}


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


class Words:
    """Counts words."""

    is_exact, opening = True, ""

    def count(self, text: str) -> int:
        return len(text.split())

    def encode(self, text: str) -> list[int] | None:
        return None

    def decode(self, tokens: object) -> str | None:
        return None


def entry(content: str, **fields: Any) -> dict[str, Any]:
    extensions = {"position": 0, "selectiveLogic": 0} | fields
    return {"keys": ["bee"], "content": content, "enabled": True, "insertion_order": 1, "extensions": extensions}
