"""A chat as a file: JSON with everything, versions included, and Markdown to read."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime

from core.chat.records import Chat, CopiedChat

# Groups came with version 2; a chat of one character is still written as 1, which older programs read.
FORMAT, FORMAT_VERSION = "llamadeck-chat", 2


def to_json(chat: CopiedChat) -> str:
    """Everything that the history knows of a chat; `parent` is a message's place in the list, counted from 0."""
    values = asdict(chat)
    messages = values.pop("messages")
    version = FORMAT_VERSION if chat.members or any(message.speaker for message in chat.messages) else 1
    whole = {"format": FORMAT, "version": version, "chat": values, "messages": messages}
    return json.dumps(whole, ensure_ascii=False, indent=1) + "\n"


def to_markdown(chat: Chat, user: str, char: str) -> str:
    """What is shown of a chat, under its speakers' names; a notebook is its text."""
    speakers = {"user": user, "assistant": char}
    parts = [f"# {' '.join(chat.info.title.split())}".rstrip(), f"*{_day(chat.info.created_s)}*"]
    for message in chat.messages:
        if message.role != "text":
            parts.append(f"## {' '.join(speakers[message.role].split())}")
        parts.append(message.text.strip())
    return "\n\n".join(parts) + "\n"


def _day(time_s: float) -> str:
    return datetime.fromtimestamp(time_s).strftime("%Y-%m-%d %H:%M")
