"""Chats from files, as this and other programs write them. Each reader's module says whose files it reads.

A file is only text to judge: whatever is wrong with it is a ChatFileError with a sentence, never a traceback.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from core.chat.assistant_files import (
    from_chatgpt,
    from_claude,
    from_open_webui,
    is_chatgpt,
    is_claude,
    is_open_webui,
)
from core.chat.exporting import FORMAT
from core.chat.foreign import LeftBehind
from core.chat.message_lists import from_messages, is_message, list_in
from core.chat.own_files import from_own
from core.chat.parsing import ChatFileError, group_of
from core.chat.records import CopiedChat
from core.chat.roleplay_files import from_sillytavern, from_webui, is_webui
from core.common.plain_json import check_num_values, load_json

MIB = 1024 * 1024
MAX_FILE_BYTES = 48 * MIB
MAX_MESSAGES = 50_000
MAX_CHATS = 10_000
MAX_ALL_MESSAGES = 200_000
# A file with more broken lines is no list of lines.
MAX_BROKEN_LINES = 100
# A message of any program has at most 100; a file of nothing but brackets would become gigabytes.
MAX_VALUES = 3_000_000


@dataclass(frozen=True, slots=True)
class ChatFile:
    """The chats of one file, and in words what of them has no place here."""

    chats: tuple[CopiedChat, ...]
    notices: tuple[ChatFileError, ...] = ()


def read_chats(data: bytes) -> ChatFile:
    """All chats in a file's bytes. One that cannot be read does not keep out the others. Raises ChatFileError."""
    if len(data) > MAX_FILE_BYTES:
        raise ChatFileError("chat_file_large", mib=math.ceil(len(data) / MIB), limit=MAX_FILE_BYTES // MIB)
    left = LeftBehind()
    try:
        text = data.decode("utf-8-sig", "strict" if _is_whole(data) else "ignore")
        check_num_values(text, MAX_VALUES)
        values = _values(text, left)
        if len(values) > MAX_CHATS:
            raise ChatFileError("chat_file_many", count=len(values), limit=MAX_CHATS)
        chats = tuple(_read_each(values, left))
        num_messages = sum(len(chat.messages) for chat in chats)
        if num_messages > MAX_ALL_MESSAGES:
            raise ChatFileError("chat_file_long", count=num_messages, limit=MAX_ALL_MESSAGES)
    except (ValueError, RecursionError) as error:
        raise ChatFileError("chat_file_unknown") from error
    return ChatFile(chats, left.notices())


def _is_whole(data: bytes) -> bool:
    """Whether the file does not end inside of a character, as one does that was cut off."""
    try:
        data[-4:].decode("utf-8")
    except UnicodeDecodeError as error:
        return error.reason != "unexpected end of data"
    return True


def _read_each(values: list[Any], left: LeftBehind) -> Iterator[CopiedChat]:
    """The chats of a file's values. Raises the first error where none can be read."""
    first: ChatFileError | None = None
    num_read = 0
    for value in values:
        # What is left out of a chat that is not read is not counted.
        of_chat = LeftBehind()
        try:
            chat = _read(value, of_chat)
            if not chat.messages:
                raise ChatFileError("chat_file_empty")
            if len(chat.messages) > MAX_MESSAGES:
                raise ChatFileError("chat_file_long", count=len(chat.messages), limit=MAX_MESSAGES)
        except ChatFileError as error:
            first = first or error
            left["empty" if error.key == "chat_file_empty" else "unread"] += 1
            continue
        left.update(of_chat)
        num_read += 1
        yield chat
    if not num_read:
        raise first or ChatFileError("chat_file_empty")


def _read(value: Any, left: LeftBehind) -> CopiedChat:
    """The chat of one value: an object, or a list of messages or of SillyTavern's lines."""
    if isinstance(value, list) and value and is_message(value[0]):
        return from_messages(value, {}, left)
    if isinstance(value, list) and value and _is_tavern(value[0]):
        return from_sillytavern(value, left)
    if not isinstance(value, dict):
        raise ChatFileError("chat_file_unknown")
    if value.get("format") == FORMAT:
        return from_own(value)
    if is_webui(value):
        return from_webui(value, left)
    if is_chatgpt(value):
        return from_chatgpt(value, left)
    if is_open_webui(value):
        return from_open_webui(value, left)
    if is_claude(value):
        return from_claude(value, left)
    if (messages := list_in(value)) is not None:
        return from_messages(messages, value, left)
    raise ChatFileError("chat_file_card" if _is_card(value) else "chat_file_unknown")


def _is_card(value: dict[str, Any]) -> bool:
    """Whether it is a character's card, of which V1 has its fields outside."""
    return "first_mes" in value or "first_mes" in group_of(value, "data")


def _values(text: str, left: LeftBehind) -> list[Any]:
    """What the file holds, each a chat as `_read` takes it. Raises ValueError, ChatFileError."""
    try:
        whole = load_json(text, max_values=len(text))
    except ValueError:
        lines = _lines(text, left)
        # Lines of one chat, or a chat a line.
        return [lines] if _is_tavern(lines[0]) or is_message(lines[0]) else lines
    if _is_tavern(whole):
        return [[whole]]
    if not isinstance(whole, list) or not whole or is_message(whole[0]) or _is_tavern(whole[0]):
        return [whole]
    return whole


def _is_tavern(value: object) -> bool:
    """Whether a value is one of SillyTavern's lines, or the header before them."""
    return isinstance(value, dict) and ("mes" in value or "chat_metadata" in value or "user_name" in value)


def _lines(text: str, left: LeftBehind) -> list[dict[str, Any]]:
    """The objects of a file with one a line. A line that is cut off keeps none of the whole ones out."""
    lines: list[dict[str, Any]] = []
    # Other marks that end a line may stand inside of JSON's texts.
    for line in text.split("\n"):
        if not line.strip():
            continue
        try:
            value = load_json(line, max_values=len(line))
        except (ValueError, RecursionError):
            left["cut_off"] += 1
            if left["cut_off"] > MAX_BROKEN_LINES:
                raise ChatFileError("chat_file_unknown") from None
            continue
        if not isinstance(value, dict):
            raise ChatFileError("chat_file_unknown")
        lines.append(value)
    if not lines:
        raise ChatFileError("chat_file_unknown")
    return lines
