"""How the files of a question stand in the prompt, and what of them is sent where they are too long."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from core.chat.records import Message
from core.documents.document import Document

FENCE_RUN = re.compile("`{3,}")
# A cut ends with a whole line where one ends within so many characters.
LINE_CHARS = 400
# No tokenizer makes longer tokens of usual text: more characters than this are not looked at.
MOST_CHARS_PER_TOKEN = 16


def with_files(text: str, files: Sequence[Document]) -> str:
    """The content of a question: each file's name and text in a fence of its own, then the person's words."""
    return "\n\n".join([*(_fenced(file) for file in files), text]) if files else text


def content_of(message: Message) -> str:
    """A message as the model reads it: one without a word is left out of the prompt."""
    if message.is_hidden:
        return ""
    return with_files(message.text, message.files)


def _fenced(file: Document) -> str:
    if not file.text:
        return f"File: {file.name} (its content is not here)"
    fence = "`" * max([3, *(len(run) + 1 for run in FENCE_RUN.findall(file.text))])
    part = "" if file.is_whole else " (only the beginning)"
    return f"File: {file.name}{part}\n{fence}\n{file.text.rstrip()}\n{fence}"


def cut_to_room(
    files: Sequence[Document], text: str, room_tokens: int, count_tokens: Callable[[str], int]
) -> tuple[Document, ...]:
    """The files such that a question with them takes at most `room_tokens`: short ones whole, of the others as much of
    the beginning of each. A file of which nothing fits keeps its name."""
    left = room_tokens - count_tokens(with_files(text, [replace(file, text="") for file in files]))
    costs = {place: count_tokens(_fenced(file)) for place, file in enumerate(files)}
    kept = list(files)
    # Those that take less than their share leave more to the others.
    for num_done, place in enumerate(sorted(costs, key=costs.__getitem__)):
        share = max(0, left) // (len(files) - num_done)
        if costs[place] > share:
            kept[place] = _cut(files[place], share, count_tokens)
        left -= min(costs[place], share)
    return tuple(kept)


def _cut(file: Document, room_tokens: int, count_tokens: Callable[[str], int]) -> Document:
    """The beginning of a file that takes at most `room_tokens` with its name and fence."""
    low, high = 0, min(len(file.text), room_tokens * MOST_CHARS_PER_TOKEN)
    while high - low > max(1, low // 100):
        middle = (low + high + 1) // 2
        if count_tokens(_fenced(_beginning(file, middle))) <= room_tokens:
            low = middle
        else:
            high = middle - 1
    return _beginning(file, low)


def _beginning(file: Document, num_chars: int) -> Document:
    text = file.text[:num_chars]
    at_line = text.rfind("\n")
    return replace(file, text=text[: at_line + 1] if at_line >= num_chars - LINE_CHARS else text, is_whole=False)
