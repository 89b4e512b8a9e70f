"""What lorebooks add to a prompt: the entries that a chat calls up, where they go, and what had to be left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from core.personas.lore_entry import Entry, Role, number, read_entries
from core.personas.lore_scan import MOST_CHARS, Found, Reason, Scan
from core.personas.lore_text import Chat, patterns_of
from core.personas.lore_timing import replay


@dataclass(frozen=True, slots=True)
class Lore:
    """An entry that was called up: its text with macros expanded and where it goes.

    `depth` is None, or how many of the last messages come after it; then `role` says who says it.
    `goes_first`: where the context is full, this text is left out before all else. `outlet` names the macro that it
    stands in for. `book` is the name of its lorebook.
    """

    text: str
    position: str
    depth: int | None = None
    role: Role = "system"
    goes_first: bool = False
    disabled_prompt: str = ""
    title: str = ""
    outlet: str = ""
    book: str = ""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An entry that the chat called up and that is not in the prompt, and why."""

    title: str
    reason: Reason
    book: str = ""


@dataclass(frozen=True, slots=True)
class Activated:
    """The entries that are in the prompt, in the order of insertion, their tokens, and those that were left out."""

    lore: list[Lore]
    num_tokens: int = 0
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True, slots=True)
class LoreBudget:
    """How many tokens lore may take: `share_tokens` where a lorebook names no budget of its own, `most_tokens` in all.

    None is no limit.
    """

    share_tokens: int | None = None
    most_tokens: int | None = None


NO_LIMITS = LoreBudget()
# Of English about twice as many as there are.
CHARS_PER_TOKEN = 8


def activate(
    books: Sequence[Mapping[str, Any]],
    chat: Chat,
    count_tokens: Callable[[str], int],
    budget: LoreBudget = NO_LIMITS,
) -> Activated:
    """The entries that this chat calls up from all of these lorebooks, within their budgets."""
    entries = [entry for place, book in enumerate(books) for entry in read_entries(book, place)]
    entries.sort(key=lambda entry: entry.order)
    sources = {name for entry in entries if entry.is_enabled for name in entry.sources if name in chat.sources}
    patterns = patterns_of(entries, chat.macros)
    chat = replace(chat, patterns=patterns, source_texts={name: chat.sources[name]() for name in sorted(sources)})
    limits = {place: int(number(book.get("token_budget"), -1)) for place, book in enumerate(books)}
    limits = {place: limit for place, limit in limits.items() if limit >= 0}
    most_chars = _most_chars(budget, limits, len(books))
    timing = replay(entries, chat, most_chars)
    found = Scan(entries, chat, len(chat.messages), timing, most_chars).run()
    names = [name if isinstance(name := book.get("name"), str) else "" for book in books]
    placed = {index: _lore(entries[index], chat, names) for index in sorted(found.rounds)}
    placed = {index: lore for index, lore in placed.items() if lore.text or lore.disabled_prompt}
    counts = {index: count_tokens(lore.text) if lore.text else 0 for index, lore in placed.items()}
    kept = _within(budget, limits, entries, found, counts)
    left_out = found.kept_back | dict.fromkeys(placed.keys() - kept, "budget")
    return Activated(
        [lore for index, lore in placed.items() if index in kept],
        sum(counts[index] for index in kept),
        tuple(
            LeftOut(entries[index].title, reason, names[entries[index].book])
            for index, reason in sorted(left_out.items())
        ),
    )


def _most_chars(budget: LoreBudget, limits: Mapping[int, int], num_books: int) -> int:
    """How many characters of lore there can be room for, and then some."""
    share = budget.share_tokens if num_books > len(limits) else 0
    tokens = None if share is None else sum(limits.values()) + share
    most = [limit for limit in (tokens, budget.most_tokens) if limit is not None]
    return min([MOST_CHARS, *(CHARS_PER_TOKEN * limit for limit in most)])


def _lore(entry: Entry, chat: Chat, names: Sequence[str]) -> Lore:
    return Lore(
        text=chat.macros.expand(entry.text).strip(),
        position=entry.position,
        depth=None if "position" in entry.decorators else _depth(entry, len(chat.messages)),
        role=entry.role,
        goes_first="ignore_on_max_context" in entry.decorators,
        disabled_prompt=entry.decorators.get("disable_ui_prompt", ""),
        title=entry.title,
        outlet=entry.outlet,
        book=names[entry.book],
    )


def _depth(entry: Entry, num_messages: int) -> int | None:
    depth, reverse = entry.number("depth"), entry.number("reverse_depth")
    if depth is None and reverse is not None:
        depth = num_messages - reverse
    depth = entry.depth if depth is None else depth
    return None if depth is None else min(max(depth, 0), num_messages)


def _within(
    budget: LoreBudget, limits: Mapping[int, int], entries: Sequence[Entry], found: Found, counts: Mapping[int, int]
) -> set[int]:
    """The entries that fit: of each lorebook with a limit, of those without one together, and of all."""
    kept = set(counts)
    for place, limit in limits.items():
        kept -= _too_much(limit, [i for i in counts if entries[i].book == place], entries, found, counts)
    if budget.share_tokens is not None:
        others = [i for i in counts if entries[i].book not in limits]
        kept -= _too_much(budget.share_tokens, others, entries, found, counts)
    if budget.most_tokens is not None:
        kept -= _too_much(budget.most_tokens, sorted(kept), entries, found, counts, is_last_resort=True)
    return kept


def _too_much(
    limit: int,
    indexes: Sequence[int],
    entries: Sequence[Entry],
    found: Found,
    counts: Mapping[int, int],
    is_last_resort: bool = False,
) -> set[int]:
    """Those that go: the lowest priority first, of equals the later one. Of SillyTavern's those go before that other
    entries called up; what is sticky, and what ignores budgets, goes last."""

    def rank(index: int) -> tuple[bool, int, bool, float, int]:
        entry = entries[index]
        number = found.rounds[index] if entry.is_sillytavern else 0
        return not entry.ignores_budget, number, index not in found.sticky, -entry.priority, index

    total, gone = 0, set()
    is_over = False
    for index in sorted(indexes, key=rank):
        if entries[index].ignores_budget and not is_last_resort:
            continue
        total += counts[index]
        is_over = is_over or total > limit
        if is_over and counts[index]:
            gone.add(index)
    return gone
