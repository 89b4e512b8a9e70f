"""Chats as plain lists of messages: OpenAI's, and ShareGPT's, which data sets are written in."""

from __future__ import annotations

from typing import Any

from core.chat.dates import seconds
from core.chat.foreign import LeftBehind, Line, finished_chat, with_thought
from core.chat.parsing import ChatFileError, group_of, groups_of, text_of
from core.chat.records import CopiedChat, Role
from core.common.values import quoted_json

LISTS = ("messages", "conversations", "conversation", "items")
ROLES: dict[str, Role] = {
    **dict.fromkeys(("user", "human", "prompter", "person"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "ai", "bing", "bard", "claude", "char"),
                    "assistant"),
}  # fmt: skip
SYSTEM = ("system", "developer")
TOOLS = ("tool", "function", "function_call", "function_response", "observation", "tool_call", "tool_response")


def is_message(value: object) -> bool:
    """Whether a value looks like one message of a list."""
    if not isinstance(value, dict):
        return False
    return isinstance(value.get("role"), str) or (isinstance(value.get("from"), str) and "value" in value)


def list_in(whole: dict[str, Any]) -> list[Any] | None:
    """The messages of an object that holds a list of them."""
    for name in LISTS:
        found = whole.get(name)
        if isinstance(found, list) and (not found or is_message(found[0])):
            return found
    return None


def from_messages(messages: list[Any], whole: dict[str, Any], left: LeftBehind) -> CopiedChat:
    """The chat of a list. `whole` is the object around it. A system text after the beginning is told by the user."""
    line, system = Line(), [text_of(whole, "system")]
    for message in messages:
        if not is_message(message):
            raise ChatFileError("chat_file_damaged", name="messages")
        role = (message.get("role") or message["from"]).strip().lower()
        text = _text(message, left)
        if role in SYSTEM and not line.messages:
            system.append(text)
        elif role in TOOLS:
            left["tools"] += 1
        elif role in ROLES or role in SYSTEM:
            when = seconds(message.get("created_at") or message.get("timestamp") or message.get("create_time"))
            if text.strip():
                line.add(ROLES.get(role, "user"), [text], 0, when, text_of(message, "name"))
        else:
            raise ChatFileError("chat_file_damaged", name=f"role = {quoted_json(role)}")
    title = whole.get("title") if isinstance(whole.get("title"), str) else whole.get("name")
    return finished_chat(line.messages, title=title, system="\n\n".join(part for part in system if part.strip()),
                         created_s=seconds(whole.get("created_at") or whole.get("create_time")))  # fmt: skip


def _text(message: dict[str, Any], left: LeftBehind) -> str:
    """The words of a message, after its thought; what is no text is left behind."""
    left["tools"] += len(groups_of(message, "tool_calls")) + bool(group_of(message, "function_call"))
    found = message.get("content") if "role" in message else message.get("value")
    if found is None and "role" in message:
        found = message.get("value") or message.get("text")
    words = [found] if isinstance(found, str) else []
    for part in found if isinstance(found, list) else []:
        if isinstance(part, str):
            words.append(part)
        elif isinstance(part, dict) and isinstance(part.get("text"), str):
            words.append(part["text"])
        elif isinstance(part, dict):
            left["pictures" if "image" in text_of(part, "type") else "files"] += 1
    text = "\n\n".join(word for word in words if word.strip())
    return with_thought(text_of(message, "reasoning_content") or text_of(message, "reasoning"), text)
