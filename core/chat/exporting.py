"""A chat as a file: JSON with everything, versions included, and Markdown to read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from core.chat.records import Chat, CopiedChat, CopiedMessage
from core.documents.document import Document
from core.personas.sillytavern import WORLD_INFO

# Groups came with version 2, files with 3, thoughts apart from answers with 4. A chat is written as the first of them
# that holds all of it, for older programs.
FORMAT, FORMAT_VERSION = "llamadeck-chat", 4


def to_json(chat: CopiedChat) -> str:
    """Everything that the history knows of a chat; `parent` is a message's place in the list, counted from 0."""
    values = asdict(chat)
    messages = values.pop("messages")
    is_group = bool(chat.members) or any(message.speaker for message in chat.messages)
    has_files = bool(chat.draft_files) or any(message.files for message in chat.messages)
    version = 3 if has_files else 2 if is_group else 1
    if any(message.thought is not None for message in chat.messages):
        version = FORMAT_VERSION
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
        if message.thought is not None and message.thought.text.strip():
            parts.append("\n".join(f"> {line}".rstrip() for line in f"💭 {message.thought.text.strip()}".splitlines()))
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
    line: dict[str, Any] = {
        "name": name,
        "is_user": shown.role == "user",
        "is_system": shown.is_hidden,
        "send_date": _iso(shown.created_s),
        "mes": shown.text,
        "extra": _tavern_extra(shown),
    }
    if shown.files:
        line["extra"] |= {"files": [_tavern_file(file) for file in shown.files]}
    if is_group and shown.role == "assistant":
        line["original_avatar"] = f"{name}.png"
    if shown.role == "assistant" and len(versions) > 1:
        line |= {
            "swipe_id": next(place for place, version in enumerate(versions) if version is shown),
            "swipes": [version.text for version in versions],
            "swipe_info": [
                {"send_date": _iso(version.created_s), "extra": _tavern_extra(version)} for version in versions
            ],
        }
    return line


def _tavern_file(file: Document) -> dict[str, Any]:
    """SillyTavern takes a file's text from here where it has no file of its own."""
    return {"name": file.name, "size": file.size_bytes, "text": file.text}


def _tavern_extra(message: CopiedMessage) -> dict[str, Any]:
    thought = message.thought
    if thought is None or not thought.text.strip():
        return {}
    # Milliseconds.
    lasted = {} if thought.seconds is None else {"reasoning_duration": round(thought.seconds * 1000)}
    return {"reasoning": thought.text.strip()} | lasted


def _iso(time_s: float) -> str:
    return datetime.fromtimestamp(time_s).astimezone().isoformat(timespec="milliseconds")


def _day(time_s: float) -> str:
    return datetime.fromtimestamp(time_s).strftime("%Y-%m-%d %H:%M")
