"""Chats as other programs keep them: text-generation-webui's history and SillyTavern's lines."""

from __future__ import annotations

from typing import Any

from core.chat.parsing import ChatFileError, seconds
from core.chat.records import CopiedChat, CopiedMessage, Role
from core.chat.titles import propose_title

# Stands in text-generation-webui's history where nobody asked for the greeting.
NO_QUESTION = "<|BEGIN-VISIBLE-CHAT|>"


class _Path:
    """Messages one below the other, each perhaps with further versions beside it."""

    def __init__(self) -> None:
        self.messages: list[CopiedMessage] = []
        self._last: int | None = None

    def add(self, role: Role, versions: list[str], shown: int, created_s: float) -> None:
        parent = self._last
        for place, text in enumerate(versions):
            if place == shown:
                self._last = len(self.messages)
            self.messages.append(CopiedMessage(parent, role, text, created_s, is_shown=place == shown))

    def chat(self, character: str) -> CopiedChat:
        asked = next((message.text for message in self.messages if message.role == "user"), "")
        created_s = min((one.created_s for one in self.messages if one.created_s), default=0.0)
        return CopiedChat(tuple(self.messages), propose_title(asked), created_s=created_s,
                          mode="chat" if character else "instruct", character=character)  # fmt: skip


def from_webui(whole: dict[str, Any]) -> CopiedChat:
    """A history file: pairs of question and answer as the model saw them, and in newer ones versions of answers."""
    metadata = whole.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    path = _Path()
    for number, pair in enumerate(whole["internal"]):
        if not isinstance(pair, list) or len(pair) < 2 or not all(isinstance(text, str) for text in pair[:2]):
            raise ChatFileError("chat_file_damaged", name="internal")
        for role, key, text in (("user", f"user_{number}", pair[0]), ("assistant", f"assistant_{number}", pair[1])):
            if text and text != NO_QUESTION:
                about = metadata.get(key)
                about = about if isinstance(about, dict) else {}
                versions, shown = _webui_versions(about, text)
                path.add("user" if role == "user" else "assistant", versions, shown, seconds(about.get("timestamp")))
    return path.chat("")


def _webui_versions(about: dict[str, Any], text: str) -> tuple[list[str], int]:
    """All versions of a message, and which of them is `text`, the one that the pair holds."""
    found = about.get("versions")
    entries = [entry.get("content") for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
    versions = [entry for entry in entries if isinstance(entry, str)]
    if text not in versions:
        versions.append(text)
    number = about.get("current_version_index")
    is_right = type(number) is int and 0 <= number < len(versions) and versions[number] == text
    return versions, number if is_right and isinstance(number, int) else versions.index(text)


def from_sillytavern(lines: list[dict[str, Any]]) -> CopiedChat:
    """A chat's lines: a header, then one object a message, whose swipes are its versions."""
    header = lines[0] if "mes" not in lines[0] else {}
    path, character = _Path(), header.get("character_name")
    for line in lines[1:] if header else lines:
        text = line.get("mes")
        if not isinstance(text, str):
            raise ChatFileError("chat_file_damaged", name="mes")
        is_user = line.get("is_user") is True
        versions, shown = _swipes(line, text)
        path.add("user" if is_user else "assistant", versions, shown, seconds(line.get("send_date")))
        if not is_user and not isinstance(character, str):
            character = line.get("name")
    return path.chat(character if isinstance(character, str) else "")


def _swipes(line: dict[str, Any], text: str) -> tuple[list[str], int]:
    """All versions of a message. What it says now may have been edited after it was swiped to."""
    found = line.get("swipes")
    versions = [swipe for swipe in found if isinstance(swipe, str)] if isinstance(found, list) else []
    number = line.get("swipe_id")
    if type(number) is int and 0 <= number < len(versions):
        versions[number] = text
        return versions, number
    if text not in versions:
        versions.append(text)
    return versions, versions.index(text)
