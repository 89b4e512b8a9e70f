"""Chats of programs and services with trees of messages: ChatGPT's export and Open WebUI's; and Claude's export."""

from __future__ import annotations

import html
import re
from typing import Any

from core.chat.dates import seconds
from core.chat.foreign import (
    ForeignNode,
    LeftBehind,
    Line,
    finished_chat,
    foreign_file,
    messages_of_tree,
    with_thought,
)
from core.chat.parsing import group_of, groups_of, text_of
from core.chat.records import CopiedChat
from core.documents.document import Document

# ChatGPT's marks of sources, between characters of private use: \ue200cite\ue202turn0search1\ue201.
SOURCE_MARK = re.compile("\ue200[^\ue200\ue201]{0,500}\ue201")
DETAILS, DETAILS_END, SUMMARY_END = '<details type="', "</details>", "</summary>"


def is_chatgpt(whole: dict[str, Any]) -> bool:
    return isinstance(whole.get("mapping"), dict)


def from_chatgpt(whole: dict[str, Any], left: LeftBehind) -> CopiedChat:
    """One conversation: a tree in which some nodes are hidden, thoughts, or calls of tools."""
    nodes: dict[str, ForeignNode] = {}
    told: list[str] = []
    for name, node in whole["mapping"].items():
        if isinstance(node, dict):
            nodes[name] = _chatgpt_node(node, told, left)
    messages = messages_of_tree(nodes, whole.get("current_node"))
    return finished_chat(messages, title=whole.get("title"), system="\n\n".join(dict.fromkeys(told)),
                         created_s=seconds(whole.get("create_time")))  # fmt: skip


def _chatgpt_node(node: dict[str, Any], told: list[str], left: LeftBehind) -> ForeignNode:
    message = group_of(node, "message")
    parent = node["parent"] if isinstance(node.get("parent"), str) else None
    role = group_of(message, "author").get("role")
    content, metadata = group_of(message, "content"), group_of(message, "metadata")
    kind = content.get("content_type")
    own = group_of(metadata, "user_context_message_data")
    told += [text.strip() for text in own.values() if isinstance(text, str) and text.strip()]
    if kind == "thoughts":
        thoughts = [f"{text_of(one, 'summary')}\n{text_of(one, 'content')}" for one in groups_of(content, "thoughts")]
        return ForeignNode(parent, thought="\n\n".join(thought.strip() for thought in thoughts))
    if kind in ("user_editable_context", "model_editable_context", "reasoning_recap"):
        return ForeignNode(parent)
    text = _chatgpt_text(content, left)
    if role == "system" and not own and not metadata.get("is_visually_hidden_from_conversation") and text:
        told.append(text)
    # The export has their names alone.
    attached = [file for file in groups_of(metadata, "attachments") if not _is_picture(file)]
    is_call = role == "assistant" and message.get("recipient") not in (None, "all")
    if role == "tool" or is_call:
        left["tools"] += 1
    elif role in ("user", "assistant") and (text or attached):
        if metadata.get("is_visually_hidden_from_conversation") is True or message.get("weight") == 0:
            left["hidden"] += 1
        else:
            left["files"] += len(attached)
            files = tuple(foreign_file(text_of(file, "name"), size_bytes=file.get("size")) for file in attached)
            return ForeignNode(parent, "user" if role == "user" else "assistant", text,
                               seconds(message.get("create_time")), text_of(metadata, "model_slug"),
                               files=files)  # fmt: skip
    return ForeignNode(parent)


def _is_picture(file: dict[str, Any]) -> bool:
    """Pictures stand among a message's parts as well, where they are counted."""
    return text_of(file, "mime_type").startswith("image/") or "width" in file


def _chatgpt_text(content: dict[str, Any], left: LeftBehind) -> str:
    """The words of a message; its pictures and recordings are left behind."""
    parts = content.get("parts")
    words: list[str] = []
    for part in parts if isinstance(parts, list) else []:
        if isinstance(part, str):
            words.append(part)
        elif isinstance(part, dict) and text_of(part, "text"):
            words.append(part["text"])
        elif isinstance(part, dict):
            left["pictures" if "image" in text_of(part, "content_type") else "files"] += 1
    if content.get("content_type") == "code" and (code := text_of(content, "text")):
        words.append(f"```{text_of(content, 'language').replace('unknown', '')}\n{code}\n```")
    elif not words and text_of(content, "text"):
        words.append(content["text"])
    return SOURCE_MARK.sub("", "\n\n".join(word for word in words if word.strip())).strip()


def is_open_webui(whole: dict[str, Any]) -> bool:
    return isinstance(group_of(_open_webui_chat(whole), "history").get("messages"), dict)


def from_open_webui(whole: dict[str, Any], left: LeftBehind) -> CopiedChat:
    """One chat: a tree of messages, around it what Open WebUI's database knows of it."""
    chat = _open_webui_chat(whole)
    history = group_of(chat, "history")
    system = [text_of(chat, "system") or text_of(group_of(chat, "params"), "system")]
    nodes: dict[str, ForeignNode] = {}
    for name, message in history["messages"].items():
        if not isinstance(message, dict):
            continue
        parent = message["parentId"] if isinstance(message.get("parentId"), str) else None
        role, text = message.get("role"), text_of(message, "content")
        files: tuple[Document, ...] = ()
        if role == "system":
            system.append(text)
        elif role in ("user", "assistant"):
            text = with_thought(text_of(message, "reasoning_content"), _without_details(text, left))
            files = _open_webui_files(message, left)
        is_said = role in ("user", "assistant") and bool(text.strip() or files)
        nodes[name] = ForeignNode(parent, ("user" if role == "user" else "assistant") if is_said else None, text,
                                  seconds(message.get("timestamp")), text_of(message, "model"),
                                  files=files)  # fmt: skip
    messages = messages_of_tree(nodes, history.get("currentId"))
    return finished_chat(messages, title=whole.get("title") or chat.get("title"), system="\n\n".join(system),
                         created_s=seconds(whole.get("created_at") or chat.get("timestamp")))  # fmt: skip


def _open_webui_chat(whole: dict[str, Any]) -> dict[str, Any]:
    return group_of(whole, "chat") or whole


def _open_webui_files(message: dict[str, Any], left: LeftBehind) -> tuple[Document, ...]:
    files: list[Document] = []
    for file in groups_of(message, "files"):
        if "image" in text_of(file, "type"):
            left["pictures"] += 1
            continue
        content = text_of(group_of(group_of(file, "file"), "data"), "content")
        left["files"] += not content
        files.append(foreign_file(text_of(file, "name"), content, file.get("size")))
    return tuple(files)


def _without_details(text: str, left: LeftBehind) -> str:
    """An answer with its thoughts as models write them, and without the blocks that tell of tools."""
    pieces: list[str] = []
    done = 0
    while (begin := text.find(DETAILS, done)) >= 0 and (end := text.find(DETAILS_END, begin)) >= 0:
        block = text[begin + len(DETAILS) : end]
        pieces.append(text[done:begin])
        if block.startswith("reasoning"):
            _, _, thought = block.rpartition(SUMMARY_END)
            lines = [line.removeprefix(">").strip() for line in thought.strip().splitlines()]
            pieces.append(with_thought(html.unescape("\n".join(lines)), ""))
        else:
            left["tools"] += 1
        done = end + len(DETAILS_END)
    return "".join([*pieces, text[done:].lstrip("\n") if pieces else text])


def is_claude(whole: dict[str, Any]) -> bool:
    return isinstance(whole.get("chat_messages"), list)


def from_claude(whole: dict[str, Any], left: LeftBehind) -> CopiedChat:
    """One conversation of Claude's export: one line of messages, each with the texts of its files."""
    line = Line()
    for message in groups_of(whole, "chat_messages"):
        blocks = groups_of(message, "content")
        words = [text_of(block, "text") for block in blocks if block.get("type") == "text"]
        text = "\n\n".join(word for word in words if word.strip()) or text_of(message, "text")
        text = with_thought("\n\n".join(text_of(block, "thinking") for block in blocks), text)
        left["tools"] += len([block for block in blocks if block.get("type") == "tool_use"])
        read = [foreign_file(text_of(file, "file_name"), text_of(file, "extracted_content"), file.get("file_size"))
                for file in groups_of(message, "attachments")]  # fmt: skip
        named = [foreign_file(text_of(file, "file_name")) for file in groups_of(message, "files")]
        # Where a text was read from a file, the file itself is named once more.
        files = read + [file for file in named if file.name not in {one.name for one in read}]
        left["files"] += len([file for file in files if not file.text])
        if text.strip() or files:
            line.add("user" if message.get("sender") == "human" else "assistant", [text], 0,
                     seconds(message.get("created_at")), files=files)  # fmt: skip
    return finished_chat(line.messages, title=whole.get("name"), created_s=seconds(whole.get("created_at")))
