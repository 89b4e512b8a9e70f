"""Chats of programs for characters: text-generation-webui's history and SillyTavern's lines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from core.chat.dates import seconds
from core.chat.foreign import MAX_NAME_CHARS, LeftBehind, Line, finished_chat, foreign_file, with_thought
from core.chat.parsing import ChatFileError, group_of, groups_of, text_of
from core.chat.records import CopiedChat, Role
from core.documents.document import Document
from core.personas.sillytavern import WORLD_INFO

# Stands in text-generation-webui's history where nobody asked for the greeting.
NO_QUESTION = "<|BEGIN-VISIBLE-CHAT|>"
# What SillyTavern says of its own in a chat, such as a welcome, has another type.
SAID_TYPES = ("", "narrator", "comment")
# What SillyTavern writes in place of a name where a chat has several characters.
NO_NAME = "unused"


def is_webui(whole: dict[str, Any]) -> bool:
    return isinstance(whole.get("internal"), list) or (isinstance(whole.get("data"), list) and "data_visible" in whole)


def from_webui(whole: dict[str, Any], left: LeftBehind) -> CopiedChat:
    """A history file: pairs of question and answer as the model saw them, and in newer ones versions of answers."""
    metadata, line = group_of(whole, "metadata"), Line()
    for number, pair in enumerate(whole["internal"] if "internal" in whole else whole["data"]):
        if not isinstance(pair, list) or len(pair) < 2 or not all(isinstance(text, str) for text in pair[:2]):
            raise ChatFileError("chat_file_damaged", name="internal")
        sides: tuple[tuple[Role, str], ...] = (("user", pair[0]), ("assistant", pair[1]))
        for role, text in sides:
            about = group_of(metadata, f"{role}_{number}")
            versions, shown = _webui_versions(about, "" if text == NO_QUESTION else text)
            files = _webui_files(about, left)
            if versions[shown] or len(versions) > 1 or files:
                line.add(role, versions, shown, seconds(about.get("timestamp")), model=text_of(about, "model_name"),
                         files=files)  # fmt: skip
    return finished_chat(line.messages)


def _webui_versions(about: dict[str, Any], text: str) -> tuple[list[str], int]:
    """All versions of a message, and which of them is `text`, the one that the pair holds."""
    entries = [entry.get("content") for entry in groups_of(about, "versions")]
    versions = [entry for entry in entries if isinstance(entry, str)]
    if text not in versions:
        versions.append(text)
    number = about.get("current_version_index")
    is_right = type(number) is int and 0 <= number < len(versions) and versions[number] == text
    return versions, number if is_right and isinstance(number, int) else versions.index(text)


def _webui_files(about: dict[str, Any], left: LeftBehind) -> list[Document]:
    """The texts of a message's attachments, which the model was shown with it."""
    left["tools"] += len(groups_of(about, "tool_sequence"))
    attachments = groups_of(about, "attachments")
    others = [file for file in attachments if not text_of(file, "type").startswith("image")]
    left["pictures"] += len(attachments) - len(others)
    left["files"] += len([file for file in others if not text_of(file, "content")])
    return [foreign_file(text_of(file, "name"), text_of(file, "content")) for file in others]


def from_sillytavern(lines: list[dict[str, Any]], left: LeftBehind) -> CopiedChat:
    """A chat's lines: a header, then one object a message, whose swipes are its versions."""
    header = lines[0] if "mes" not in lines[0] else {}
    character = text_of(header, "character_name")
    line = Line()
    for one in lines[1:] if header else lines:
        text = one.get("mes")
        if not isinstance(text, str):
            raise ChatFileError("chat_file_damaged", name="mes")
        if one.get("is_system") is True and not _is_said(one):
            left["hidden"] += 1
            continue
        files = _tavern_files(one, left)
        # A narrator speaks beside the characters.
        is_told = one.get("is_user") is True or group_of(one, "extra").get("type") == "narrator"
        versions, shown = _swipes(one, text)
        line.add("user" if is_told else "assistant", versions, shown, seconds(one.get("send_date")),
                 text_of(one, "name"), "" if is_told else text_of(group_of(one, "extra"), "model"), files,
                 one.get("is_system") is True)  # fmt: skip
    is_group = character == NO_NAME or not character
    chat = finished_chat(line.messages, "" if is_group else character, created_s=seconds(header.get("create_date")))
    world = text_of(group_of(header, "chat_metadata"), WORLD_INFO).strip()
    return replace(chat, lorebooks=(world[:MAX_NAME_CHARS],) if world else ())


def _is_said(line: dict[str, Any]) -> bool:
    """Whether a line that the model did not read is one of the chat: /hide keeps those of speakers from it."""
    extra = group_of(line, "extra")
    return text_of(extra, "type") in SAID_TYPES and not extra.get("tool_invocations")


def _tavern_files(line: dict[str, Any], left: LeftBehind) -> list[Document]:
    """The files of a line. Most keep their text elsewhere in SillyTavern, and only the name comes along."""
    extra = group_of(line, "extra")
    left["pictures"] += len([name for name in ("image", "video") if extra.get(name)])
    left["pictures"] += len(groups_of(extra, "media"))
    left["tools"] += len(groups_of(extra, "tool_invocations"))
    found = groups_of(extra, "files") or ([group_of(extra, "file")] if group_of(extra, "file") else [])
    left["files"] += len([file for file in found if not text_of(file, "text")])
    return [foreign_file(text_of(file, "name"), text_of(file, "text"), file.get("size")) for file in found]


def _swipes(line: dict[str, Any], text: str) -> tuple[list[str], int]:
    """All versions of a message, each after its thought. What it says now may have been edited after the swipe."""
    found = line.get("swipes")
    versions = [swipe for swipe in found if isinstance(swipe, str)] if isinstance(found, list) else []
    about = groups_of(line, "swipe_info")
    thoughts = [text_of(group_of(one, "extra"), "reasoning") for one in about]
    is_whole = len(thoughts) == len(versions)
    number = line.get("swipe_id")
    if type(number) is int and 0 <= number < len(versions):
        versions[number] = text
        shown = number
    else:
        if text not in versions:
            versions.append(text)
        shown = versions.index(text)
    now = text_of(group_of(line, "extra"), "reasoning")
    told = [
        with_thought(now if place == shown else thoughts[place] if is_whole and place < len(thoughts) else "", version)
        for place, version in enumerate(versions)
    ]
    return told, shown
