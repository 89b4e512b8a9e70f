"""Which entries of a lorebook a chat calls up, in which order and where they belong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from core.personas.lore_entry import Entry, number, read_entries
from core.personas.macros import Macros
from core.personas.patterns import Pattern, Patterns

# How many of the last messages are searched for keys where the lorebook does not say.
DEFAULT_SCAN_DEPTH = 10
# How many times over the text of entries may call up further entries.
MAX_RECURSIONS = 10
Role = Literal["system", "user", "assistant"]
ROLES: Mapping[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class LoreMessage:
    """One message of the chat, with what a lorebook needs of it."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Lore:
    """An entry that was called up: its text with macros expanded and where it goes.

    `depth` is None, or how many of the last messages come after it; then `role` says who says it.
    `goes_first`: where the context is full, this text is left out before all else.
    """

    text: str
    position: str
    depth: int | None = None
    role: Role = "system"
    goes_first: bool = False
    disabled_prompt: str = ""


@dataclass(frozen=True, slots=True)
class Chat:
    """The chat that entries are matched against. `patterns` searches for the keys that are patterns."""

    messages: Sequence[LoreMessage]
    macros: Macros
    greeting_index: int = 0
    patterns: Patterns = field(default_factory=lambda: Patterns(()))


@dataclass(frozen=True, slots=True)
class LoreText:
    """The text that keys are searched in: the last messages, and `recursed`, the text of other entries.

    `made` keeps each text that was asked for, by its first message and its letter case.
    """

    messages: Sequence[LoreMessage]
    recursed: str = ""
    made: dict[tuple[int, bool], str] = field(default_factory=dict)

    def last(self, count: int, *, is_case_sensitive: bool) -> str:
        key = (max(len(self.messages) - max(count, 0), 0), is_case_sensitive)
        if key not in self.made:
            text = "\n".join([*(message.text for message in self.messages[key[0] :]), self.recursed])
            self.made[key] = text if is_case_sensitive else text.casefold()
        return self.made[key]


def activate(book: Mapping[str, Any], chat: Chat, count_tokens: Callable[[str], int]) -> list[Lore]:
    """The entries that this chat calls up, in the order of insertion, within the lorebook's own token budget."""
    entries = read_entries(book)
    chat = replace(chat, patterns=Patterns(one for entry in entries if entry.is_enabled for one in _patterns(entry)))
    depth = int(number(book.get("scan_depth"), DEFAULT_SCAN_DEPTH))
    text = LoreText(chat.messages)
    active = {index for index, entry in enumerate(entries) if _is_active(entry, chat, depth, text)}
    for _ in range(MAX_RECURSIONS if book.get("recursive_scanning") is True else 0):
        said = "\n".join(chat.macros.expand(entries[index].text, for_matching=True) for index in sorted(active))
        text = LoreText(chat.messages, said)
        others = set(range(len(entries))) - active
        more = {index for index in others if _is_active(entries[index], chat, depth, text)}
        if not more:
            break
        active |= more
    placed = [(entries[index], _lore(entries[index], chat)) for index in sorted(active)]
    placed = [(entry, lore) for entry, lore in placed if lore.text or lore.disabled_prompt]
    return _within_budget(placed, book.get("token_budget"), count_tokens)


def _is_active(entry: Entry, chat: Chat, depth: int, text: LoreText) -> bool:
    """Whether the chat, or the text of other entries, calls this entry up."""
    if not entry.is_enabled:
        return False
    if "activate" in entry.decorators:
        return True
    if "dont_activate" in entry.decorators or not _is_time(entry, chat):
        return False
    if "keep_activate_after_match" in entry.decorators and _matched_before(entry, chat, depth):
        return True
    if "dont_activate_after_match" in entry.decorators and _matched_before(entry, chat, depth):
        return False
    return _matches(entry, chat, text, depth)


def _is_time(entry: Entry, chat: Chat) -> bool:
    """Whether the decorators allow the entry at this number of answers and with this greeting."""
    if not entry.decorators:
        return True
    num_answers = sum(message.role == "assistant" for message in chat.messages)
    greeting, after = entry.number("is_greeting"), entry.number("activate_only_after")
    every = entry.number("activate_only_every") or 1
    return greeting in (None, chat.greeting_index) and num_answers >= (after or 0) and num_answers % every == 0


def _matched_before(entry: Entry, chat: Chat, depth: int) -> bool:
    """Whether an earlier answer had the keys in its text. The chat itself tells, so nothing has to be stored."""
    asked = [index for index, message in enumerate(chat.messages) if message.role == "user"]
    return any(_matches(entry, chat, LoreText(chat.messages[: index + 1]), depth) for index in asked[:-1])


def _matches(entry: Entry, chat: Chat, text: LoreText, depth: int) -> bool:
    own_depth = entry.number("scan_depth")
    count = depth if own_depth is None else own_depth
    if entry.uses_regex:
        return any(chat.patterns.finds(one, text.last(count, is_case_sensitive=True)) for one in _patterns(entry))
    said = text.last(count, is_case_sensitive=entry.is_case_sensitive)

    def has_any(keys: Sequence[str]) -> bool:
        wanted = [chat.macros.expand(key).strip() for key in keys]
        return any((key if entry.is_case_sensitive else key.casefold()) in said for key in wanted if key)

    additional, excluded = entry.words("additional_keys"), entry.words("exclude_keys")
    is_called = entry.is_constant or (
        has_any(entry.keys) and (not entry.secondary_keys or has_any(entry.secondary_keys))
    )
    return is_called and (not additional or has_any(additional)) and not has_any(excluded)


def _patterns(entry: Entry) -> list[Pattern]:
    """The keys of an entry that uses patterns; one may be written as /pattern/flags."""
    return [_pattern(key, not entry.is_case_sensitive) for key in entry.keys] if entry.uses_regex else []


def _pattern(key: str, ignores_case: bool) -> Pattern:
    begin, slash, flags = key.rpartition("/")
    if slash and begin.startswith("/") and set(flags) <= set("gimsuy"):
        return Pattern(begin[1:], "i" in flags, "s" in flags)
    return Pattern(key, ignores_case)


def _lore(entry: Entry, chat: Chat) -> Lore:
    return Lore(
        text=chat.macros.expand(entry.text).strip(),
        position=entry.position,
        depth=None if "position" in entry.decorators else _depth(entry, len(chat.messages)),
        role=ROLES[entry.decorators.get("role", "system")],
        goes_first="ignore_on_max_context" in entry.decorators,
        disabled_prompt=entry.decorators.get("disable_ui_prompt", ""),
    )


def _depth(entry: Entry, num_messages: int) -> int | None:
    depth, reverse = entry.number("depth"), entry.number("reverse_depth")
    if depth is None and reverse is not None:
        depth = num_messages - reverse
    return None if depth is None else min(max(depth, 0), num_messages)


def _within_budget(placed: list[tuple[Entry, Lore]], budget: object, count_tokens: Callable[[str], int]) -> list[Lore]:
    """The entries that fit into the budget: those of the lowest priority are left out first."""
    limit = number(budget, -1)
    if limit >= 0:
        counts = [count_tokens(lore.text) if lore.text else 0 for _, lore in placed]
        total = sum(counts)
        # Of equals the later one goes.
        for index in sorted(range(len(placed)), key=lambda index: (placed[index][0].priority, -index)):
            if total <= limit:
                break
            total -= counts[index]
            counts[index] = -1
        placed = [one for one, count in zip(placed, counts, strict=True) if count >= 0]
    return [lore for _, lore in placed]
