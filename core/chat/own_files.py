"""Chats as LlamaDeck itself exports them, read back without trust."""

from __future__ import annotations

from types import NoneType
from typing import Any

from core.chat.columns import documents_of
from core.chat.dates import seconds
from core.chat.exporting import FORMAT_VERSION
from core.chat.foreign import MAX_FILES, MAX_MEMBERS, MAX_NAME_CHARS, apart, few_speakers
from core.chat.parsing import ChatFileError, get, require, show_one, text_of
from core.chat.presets import check_values
from core.chat.records import MODES, ROLES, STATES, CopiedChat, CopiedMessage, Thought
from core.chat.stats import VARIABLES, error_of, variables_of
from core.chat.thinking import EFFORT, SWITCHES
from core.chat.titles import shortened
from core.common.errors import InputError
from core.documents.document import Document
from core.personas.attached import MAX_ATTACHED

MAX_THOUGHT_S = 1e7
# The statistics of an answer that pages show; an import leaves others out.
STATS: dict[str, tuple[type, ...]] = {
    "model": (str,),
    "reason": (str, NoneType),
    "tokens": (int,),
    "tokens_per_s": (int, float),
    "first_token_s": (int, float),
    "prompt_tokens": (int,),
    "reused_tokens": (int,),
    "seed": (int,),
}


def from_own(whole: dict[str, Any]) -> CopiedChat:
    """The chat of a file that was exported here."""
    version = get(whole, "version", int)
    if version > FORMAT_VERSION:
        raise ChatFileError("chat_file_newer", found=version, known=FORMAT_VERSION)
    chat, messages = get(whole, "chat", dict), get(whole, "messages", list)
    return CopiedChat(
        messages=few_speakers(show_one([_own_message(message, index) for index, message in enumerate(messages)])),
        title=shortened(" ".join(get(chat, "title", str).split()), MAX_NAME_CHARS),
        title_is_own=get(chat, "title_is_own", bool),
        created_s=seconds(chat.get("created_s")),
        mode=require(chat.get("mode"), MODES, "mode"),
        character=get(chat, "character", str)[:MAX_NAME_CHARS],
        settings=_settings(get(chat, "settings", dict)),
        draft=get(chat, "draft", str),
        draft_files=_files(chat.get("draft_files", [])),
        is_pinned=get(chat, "is_pinned", bool),
        members=_names(chat.get("members", []), "members", MAX_MEMBERS - 1),
        lorebooks=_names(chat.get("lorebooks", []), "lorebooks", MAX_ATTACHED),
    )


def _own_message(message: object, index: int) -> CopiedMessage:
    if not isinstance(message, dict):
        raise ChatFileError("chat_file_damaged", name="messages")
    parent = message.get("parent")
    if parent is not None and not (type(parent) is int and 0 <= parent < index):
        raise ChatFileError("chat_file_damaged", name="parent")
    message_of_file = CopiedMessage(
        parent=parent,
        role=require(message.get("role"), ROLES, "role"),
        text=get(message, "text", str),
        created_s=seconds(message.get("created_s")),
        state=require(message.get("state"), STATES, "state"),
        stats=_stats(get(message, "stats", dict)),
        is_shown=get(message, "is_shown", bool),
        speaker=text_of(message, "speaker")[:MAX_NAME_CHARS],
        files=_files(message.get("files", [])),
        thought=_thought(message.get("thought")),
        is_hidden=message.get("is_hidden") is True,
    )
    # Older files have thoughts in the answers.
    return apart(message_of_file)


def _thought(values: object) -> Thought | None:
    if values is None:
        return None
    if not isinstance(values, dict):
        raise ChatFileError("chat_file_damaged", name="thought")
    lasted = values.get("seconds")
    is_right = isinstance(lasted, (int, float)) and 0 <= lasted <= MAX_THOUGHT_S
    return Thought(get(values, "text", str), get(values, "opening", str), get(values, "closing", str),
                   float(lasted) if lasted is not None and is_right else None)  # fmt: skip


def _files(values: object) -> tuple[Document, ...]:
    """The files of a question; older chats have none."""
    try:
        return documents_of(values)[:MAX_FILES]
    except ValueError as error:
        raise ChatFileError("chat_file_damaged", name="files") from error


def _names(names: object, field: str, limit: int) -> tuple[str, ...]:
    """The further characters of a group, or the lorebooks; older files have none."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ChatFileError("chat_file_damaged", name=field)
    return tuple(dict.fromkeys(name[:MAX_NAME_CHARS] for name in names if name))[:limit]


def _settings(values: dict[str, Any]) -> dict[str, Any]:
    """Plain values by name, and checked settings of the sampling."""
    plain = {name: value for name, value in values.items() if name != "sampling"}
    sampling = values.get("sampling", {})
    if not all(isinstance(value, (str, int, float, NoneType)) for value in plain.values()):
        raise ChatFileError("chat_file_damaged", name="settings")
    if not isinstance(sampling, dict):
        raise ChatFileError("chat_file_damaged", name="sampling")
    try:
        return plain | ({"sampling": check_values(sampling)} if sampling else {})
    except InputError as error:
        raise ChatFileError("chat_file_damaged", name="sampling") from error


def _stats(values: dict[str, Any]) -> dict[str, Any]:
    known = {name: values[name] for name, kinds in STATS.items() if name in values and type(values[name]) in kinds}
    if (variables := variables_of(values)) is not None:
        known[VARIABLES] = {name: value for name, value in variables.items() if name in (*SWITCHES, EFFORT)}
    return known | ({"error": values["error"]} if error_of(values) is not None else {})
