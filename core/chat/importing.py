"""Chats from files: our own JSON, text-generation-webui's history, SillyTavern's JSONL.

A file is only text to judge: whatever is wrong with it is a ChatFileError with a sentence, never a traceback.
"""

from __future__ import annotations

from types import NoneType
from typing import Any

from core.chat.exporting import FORMAT, FORMAT_VERSION
from core.chat.foreign import from_sillytavern, from_webui
from core.chat.parsing import ChatFileError, get, require, seconds, show_one
from core.chat.presets import check_values
from core.chat.records import MODES, ROLES, STATES, CopiedChat, CopiedMessage
from core.chat.stats import error_of
from core.chat.titles import shortened
from core.common.errors import InputError
from core.common.plain_json import check_num_values, load_json

MAX_FILE_BYTES = 50_000_000
MAX_MESSAGES = 50_000
# A message of any program has at most 60; a file of nothing but brackets would become gigabytes.
MAX_VALUES = 3_000_000
MAX_NAME_CHARS = 200
MIB = 1024 * 1024
# The statistics of an answer that pages show; an import leaves others out.
STATS: dict[str, tuple[type, ...]] = {
    "model": (str,),
    "reason": (str, NoneType),
    "tokens": (int,),
    "tokens_per_s": (int, float),
    "first_token_s": (int, float),
    "prompt_tokens": (int,),
    "seed": (int,),
}


def read_chat_file(data: bytes) -> CopiedChat:
    """The chat in a file's bytes, of whichever of the three forms. Raises ChatFileError."""
    if len(data) > MAX_FILE_BYTES:
        raise ChatFileError("chat_file_large", mib=len(data) // MIB, limit=MAX_FILE_BYTES // MIB)
    try:
        text = data.decode("utf-8-sig")
        check_num_values(text, MAX_VALUES)
        chat = _recognise(text)
    except (ValueError, RecursionError) as error:
        raise ChatFileError("chat_file_unknown") from error
    if not chat.messages:
        raise ChatFileError("chat_file_empty")
    if len(chat.messages) > MAX_MESSAGES:
        raise ChatFileError("chat_file_long", count=len(chat.messages), limit=MAX_MESSAGES)
    return chat


def _recognise(text: str) -> CopiedChat:
    try:
        whole = load_json(text, max_values=len(text))
    except ValueError:
        return from_sillytavern(_lines(text))
    if not isinstance(whole, dict):
        raise ChatFileError("chat_file_unknown")
    if whole.get("format") == FORMAT:
        return _own(whole)
    if isinstance(whole.get("internal"), list):
        return from_webui(whole)
    if "mes" in whole or "chat_metadata" in whole:
        return from_sillytavern([whole])
    raise ChatFileError("chat_file_unknown")


def _lines(text: str) -> list[dict[str, Any]]:
    lines = []
    # Other marks that end a line may stand inside of JSON's texts.
    for line in text.split("\n"):
        if line.strip():
            try:
                lines.append(load_json(line, max_values=len(line)))
            except ValueError as error:
                raise ChatFileError("chat_file_unknown") from error
    if not lines or not all(isinstance(line, dict) for line in lines):
        raise ChatFileError("chat_file_unknown")
    return lines


def _own(whole: dict[str, Any]) -> CopiedChat:
    version = get(whole, "version", int)
    if version > FORMAT_VERSION:
        raise ChatFileError("chat_file_newer", found=version, known=FORMAT_VERSION)
    chat, messages = get(whole, "chat", dict), get(whole, "messages", list)
    return CopiedChat(
        messages=tuple(show_one([_own_message(message, index) for index, message in enumerate(messages)])),
        title=shortened(" ".join(get(chat, "title", str).split()), MAX_NAME_CHARS),
        title_is_own=get(chat, "title_is_own", bool),
        created_s=seconds(chat.get("created_s")),
        mode=require(chat.get("mode"), MODES, "mode"),
        character=get(chat, "character", str)[:MAX_NAME_CHARS],
        settings=_settings(get(chat, "settings", dict)),
        draft=get(chat, "draft", str),
        is_pinned=get(chat, "is_pinned", bool),
    )


def _own_message(message: object, index: int) -> CopiedMessage:
    if not isinstance(message, dict):
        raise ChatFileError("chat_file_damaged", name="messages")
    parent = message.get("parent")
    if parent is not None and not (type(parent) is int and 0 <= parent < index):
        raise ChatFileError("chat_file_damaged", name="parent")
    return CopiedMessage(
        parent=parent,
        role=require(message.get("role"), ROLES, "role"),
        text=get(message, "text", str),
        created_s=seconds(message.get("created_s")),
        state=require(message.get("state"), STATES, "state"),
        stats=_stats(get(message, "stats", dict)),
        is_shown=get(message, "is_shown", bool),
    )


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
    return known | ({"error": values["error"]} if error_of(values) is not None else {})
