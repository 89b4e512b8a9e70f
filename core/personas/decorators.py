"""The @@ lines at the head of a lorebook entry's text, as the V3 specification has them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

LINE = re.compile(r"(@@@?)([A-Za-z_]+)(?:[ \t]+(.*))?\s*")
WHOLE = re.compile(r"[+-]?[0-9]{1,9}")

POSITIONS = ("before_desc", "after_desc", "personality", "scenario")
ROLES = ("system", "user", "assistant")
UI_PROMPTS = ("system_prompt", "post_history_instructions")


def _is_whole(value: str) -> bool:
    return WHOLE.fullmatch(value) is not None


def _is_flag(value: str) -> bool:
    return value in ("", "true")


# The decorators that have an effect here, each with a check of its value. Another one gives way to its fallback.
KNOWN: Mapping[str, Callable[[str], bool]] = {
    "activate_only_after": _is_whole,
    "activate_only_every": lambda value: _is_whole(value) and int(value) > 0,
    "keep_activate_after_match": _is_flag,
    "dont_activate_after_match": _is_flag,
    "depth": _is_whole,
    "reverse_depth": _is_whole,
    "role": ROLES.__contains__,
    "scan_depth": _is_whole,
    "is_greeting": _is_whole,
    "position": POSITIONS.__contains__,
    "ignore_on_max_context": _is_flag,
    "additional_keys": bool,
    "exclude_keys": bool,
    "activate": _is_flag,
    "dont_activate": _is_flag,
    "disable_ui_prompt": UI_PROMPTS.__contains__,
    # RisuAI's own.
    "exclude_keys_all": bool,
    "match_full_word": _is_flag,
    "match_partial_word": _is_flag,
    "no_recursive_search": _is_flag,
    "priority": _is_whole,
    "probability": _is_whole,
}


# They are for texts that are no chat: a chat passes over them, as the specification wants it.
NOT_IN_CHATS = ("instruct_depth", "reverse_instruct_depth", "instruct_scan_depth")


def unknown_decorators(content: str) -> list[str]:
    """The names of an entry's decorators that have no effect here, nor another one that steps in for them."""
    found: list[str] = []
    is_open = False
    for line in content.splitlines():
        match = LINE.fullmatch(line)
        if match is None and line.strip():
            break
        if match is None or (match[1] == "@@@" and not is_open):
            continue
        name = match[2].lower()
        is_open = not (name in KNOWN and KNOWN[name]((match[3] or "").strip()))
        if match[1] == "@@" and is_open:
            found.append(name)
        elif found and not is_open and match[1] == "@@@":
            found.pop()
    return [name for name in found if name not in NOT_IN_CHATS]


def split_decorators(content: str) -> tuple[dict[str, str], str]:
    """The decorators that take effect, by name, and the text below them.

    The first of a name counts. A line with @@@ counts where the lines right above it, up to the one with @@, do not.
    """
    found: dict[str, str] = {}
    lines = content.splitlines(keepends=True)
    is_open, num_read = False, 0
    for line in lines:
        match = LINE.fullmatch(line)
        if match is None and line.strip():
            break
        num_read += 1
        if match is None:
            continue
        mark, name, value = match[1], match[2].lower(), (match[3] or "").strip()
        if mark == "@@@" and not is_open:
            continue
        is_open = not (name in KNOWN and KNOWN[name](value))
        if not is_open:
            found.setdefault(name, value)
    return found, "".join(lines[num_read:]).rstrip("\r\n") if found or is_open else content
