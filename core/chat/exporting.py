"""A chat as a file: JSON with everything, versions included, and Markdown to read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from core.chat.records import Chat, CopiedChat, CopiedMessage
from core.documents.document import Document
from core.personas.sillytavern import WORLD_INFO

# Groups came with version 2, files with 3; what needs neither is still written as 1, which older programs read.
FORMAT, FORMAT_VERSION = "llamadeck-chat", 3
# An answer after a thought that came to its end.
THOUGHT = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)


def to_json(chat: CopiedChat) -> str:
    """Everything that the history knows of a chat; `parent` is a message's place in the list, counted from 0."""
    values = asdict(chat)
    messages = values.pop("messages")
    is_group = bool(chat.members) or any(message.speaker for message in chat.messages)
    version = FORMAT_VERSION if any(message.files for message in chat.messages) else 2 if is_group else 1
    whole = {"format": FORMAT, "version": version, "chat": values, "messages": messages}
    return json.dumps(whole, ensure_ascii=False, indent=1) + "\n"


def to_markdown(chat: Chat, user: str, char: str, names: Mapping[str, str] | None = None) -> str:
    """What is shown of a chat, under its speakers' names, with the names of files; a notebook is its text.

    `names` are those of speakers beside the two, by what the messages call them.
    """
    speakers, others = {"user": user, "assistant": char}, names or {}
    parts = [f"# {' '.join(chat.info.title.split())}".rstrip(), f"*{_day(chat.info.created_s)}*"]
    for message in chat.messages:
        if message.role != "text":
            name = others.get(message.speaker, message.speaker) or speakers[message.role]
            parts.append(f"## {' '.join(name.split())}")
        parts += [f"`{file.name}`" for file in message.files]
        parts.append(message.text.strip())
    return "\n\n".join(parts) + "\n"


def to_sillytavern(chat: CopiedChat, user: str, char: str, names: Mapping[str, str]) -> str:
    """What is shown of a chat as SillyTavern's lines, with the versions of each message as its swipes.

    `names` are those of a group's characters, by what the chat calls them; SillyTavern calls nobody in its header then.
    """
    is_group = bool(chat.members)
    header = {
        "user_name": "unused" if is_group else user,
        "character_name": "unused" if is_group else char,
        "create_date": _iso(chat.created_s),
        # It knows one lorebook of a chat.
        "chat_metadata": {WORLD_INFO: chat.lorebooks[0]} if chat.lorebooks else {},
    }
    versions: dict[int | None, list[int]] = {}
    for place, message in enumerate(chat.messages):
        versions.setdefault(message.parent, []).append(place)
    lines: list[dict[str, Any]] = [header]
    above: int | None = None
    own = {"user": user, "assistant": names.get(chat.character, char) if is_group else char, "text": user}
    while (at := next((one for one in versions.get(above, []) if chat.messages[one].is_shown), None)) is not None:
        shown, told = chat.messages[at], [chat.messages[one] for one in versions[above]]
        name = names.get(shown.speaker, shown.speaker) or own[shown.role]
        lines.append(_tavern_line(shown, told, name, is_group))
        above = at
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _tavern_line(shown: CopiedMessage, versions: list[CopiedMessage], name: str, is_group: bool) -> dict[str, Any]:
    thought, text = _split_thought(shown.text)
    line: dict[str, Any] = {
        "name": name,
        "is_user": shown.role == "user",
        "is_system": False,
        "send_date": _iso(shown.created_s),
        "mes": text,
        "extra": {"reasoning": thought} if thought else {},
    }
    if shown.files:
        line["extra"] |= {"files": [_tavern_file(file) for file in shown.files]}
    if is_group and shown.role == "assistant":
        line["original_avatar"] = f"{name}.png"
    if shown.role == "assistant" and len(versions) > 1:
        told = [_split_thought(version.text) for version in versions]
        line |= {
            "swipe_id": next(place for place, version in enumerate(versions) if version is shown),
            "swipes": [text for _, text in told],
            "swipe_info": [
                {"send_date": _iso(version.created_s), "extra": {"reasoning": thought} if thought else {}}
                for version, (thought, _) in zip(versions, told, strict=True)
            ],
        }
    return line


def _tavern_file(file: Document) -> dict[str, Any]:
    """SillyTavern takes a file's text from here where it has no file of its own."""
    return {"name": file.name, "size": file.size_bytes, "text": file.text}


def _split_thought(text: str) -> tuple[str, str]:
    found = THOUGHT.match(text)
    return (found[1].strip(), text[found.end() :]) if found else ("", text)


def _iso(time_s: float) -> str:
    return datetime.fromtimestamp(time_s).astimezone().isoformat(timespec="milliseconds")


def _day(time_s: float) -> str:
    return datetime.fromtimestamp(time_s).strftime("%Y-%m-%d %H:%M")
