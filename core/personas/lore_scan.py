"""Which entries of lorebooks a chat calls up at one time, by their keys and by each other's text.

As SillyTavern does it (public/scripts/world-info.js, checkWorldInfo), with what the V3 specification has beyond that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Literal

from core.personas.lore_entry import Entry
from core.personas.lore_text import Chat, LoreText

# How many times over the text of entries may call up further entries.
MAX_RECURSIONS = 10
# Where nobody says how much lore there may be, so many characters of it call up no more.
MOST_CHARS = 200_000
# Why an entry that was called up is not there; see `left_out_…` in the locale files.
Reason = Literal["chance", "group", "cooldown", "delay", "budget", "full"]


@dataclass(frozen=True, slots=True)
class Timing:
    """The entries that an earlier answer keeps in the prompt or out of it, by their indexes."""

    sticky: frozenset[int] = frozenset()
    cooldown: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Found:
    """The entries that were called up, each with the round in which it was, and those that were kept back.

    `sticky` are those that an earlier answer keeps there.
    """

    rounds: dict[int, int] = field(default_factory=dict)
    kept_back: dict[int, Reason] = field(default_factory=dict)
    sticky: frozenset[int] = frozenset()


class Scan:
    """One search for the answer after the first `num_messages` of the chat.

    Once entries of `most_chars` have been called up, they call up no others: there is no room for these.
    """

    def __init__(
        self, entries: Sequence[Entry], chat: Chat, num_messages: int, timing: Timing, most_chars: int = MOST_CHARS
    ) -> None:
        self._entries, self._chat, self._num_messages, self._timing = entries, chat, num_messages, timing
        self._room_chars = most_chars
        self._text = LoreText(chat, num_messages)
        self._found = Found(sticky=timing.sticky)
        # None in the first round, later how long an entry may have waited for others.
        self._level: int | None = None

    def run(self) -> Found:
        rounds, kept_back = self._found.rounds, self._found.kept_back
        waiting = sorted({entry.recursion_level for entry in self._entries if entry.recursion_level})
        level = waiting.pop(0) if waiting else 0
        said: list[str] = []
        for number in range(MAX_RECURSIONS + 1):
            called = [i for i in range(len(self._entries)) if self._may_come(i) and self._is_called(i)]
            new = self._with_luck(self._one_of_each_group(called))
            for index in new:
                rounds[index] = number
                kept_back.pop(index, None)
            self._room_chars -= sum(len(self._entries[i].text) for i in new)
            if self._room_chars < 0:
                break
            sources = [i for i in sorted(new) if self._entries[i].is_recursive and self._entries[i].can_recurse]
            if not sources:
                if not waiting:
                    break
                level = waiting.pop(0)
            said += [self._chat.macros.expand(self._entries[i].text, for_matching=True) for i in sources]
            self._text = LoreText(self._chat, self._num_messages, "\n".join(said))
            self._level = level
        return self._found

    def _may_come(self, index: int) -> bool:
        """Whether nothing is decided yet. What lost in its group may come where the winner had no luck."""
        return index not in self._found.rounds and self._found.kept_back.get(index, "group") == "group"

    def _is_called(self, index: int) -> bool:
        entry, is_sticky = self._entries[index], index in self._timing.sticky
        if not entry.is_enabled or not self._is_for_character(entry):
            return False
        if "activate" in entry.decorators:
            return True
        if "dont_activate" in entry.decorators or not self._is_time(entry):
            return False
        if not is_sticky and not self._is_turn(entry):
            return False
        is_called = entry.is_constant or is_sticky or self._is_kept(entry) or self._has_keys(entry, self._text)
        if not is_called or not self._is_allowed(entry):
            return False
        if self._num_messages < entry.delay:
            self._found.kept_back[index] = "delay"
        elif index in self._timing.cooldown and not is_sticky:
            self._found.kept_back[index] = "cooldown"
        else:
            return True
        return False

    def _is_for_character(self, entry: Entry) -> bool:
        names = self._chat.names
        return not names or (
            (not entry.only_for or not names.isdisjoint(entry.only_for)) and names.isdisjoint(entry.not_for)
        )

    def _is_turn(self, entry: Entry) -> bool:
        """Whether an entry takes part in this round, by what it says of recursion."""
        if self._level is None:
            return not entry.recursion_level
        return entry.is_recursive and entry.can_be_recursed and entry.recursion_level <= self._level

    def _is_time(self, entry: Entry) -> bool:
        """Whether the decorators allow the entry at this number of answers and with this greeting."""
        if not entry.decorators:
            return True
        num_answers = sum(message.role == "assistant" for message in self._chat.messages[: self._num_messages])
        greeting, after = entry.number("is_greeting"), entry.number("activate_only_after")
        every = entry.number("activate_only_every") or 1
        return (
            greeting in (None, self._chat.greeting_index) and num_answers >= (after or 0) and num_answers % every == 0
        )

    def _is_kept(self, entry: Entry) -> bool:
        return "keep_activate_after_match" in entry.decorators and self._matched_before(entry)

    def _is_allowed(self, entry: Entry) -> bool:
        """Whether nothing forbids an entry that was called up."""
        if not entry.decorators:
            return True
        if "dont_activate_after_match" in entry.decorators and self._matched_before(entry):
            return False
        if "keep_activate_after_match" in entry.decorators and self._matched_before(entry):
            return True
        additional, excluded = entry.words("additional_keys"), entry.words("exclude_keys")
        all_excluded = entry.words("exclude_keys_all")
        return (
            (not additional or self._finds_any(entry, additional))
            and (entry.ignores_excluded or not self._finds_any(entry, excluded))
            and not (all_excluded and all(self._text.finds(entry, key) for key in all_excluded))
        )

    def _finds_any(self, entry: Entry, keys: Sequence[str]) -> bool:
        return any(self._text.finds(entry, key) for key in keys)

    def _matched_before(self, entry: Entry) -> bool:
        """Whether an earlier answer had the keys in its text. The chat itself tells, so nothing has to be stored."""
        messages = self._chat.messages[: self._num_messages]
        asked = [index for index, message in enumerate(messages) if message.role == "user"]
        return any(self._has_keys(entry, LoreText(self._chat, index + 1)) for index in asked[:-1])

    def _has_keys(self, entry: Entry, text: LoreText) -> bool:
        if not any(text.finds(entry, key) for key in entry.keys):
            return False
        if not entry.secondary_keys:
            return True
        found = [text.finds(entry, key) for key in entry.secondary_keys]
        match entry.logic:
            case "not_all":
                return not all(found)
            case "not_any":
                return not any(found)
            case "and_all":
                return all(found)
        return any(found)

    def _one_of_each_group(self, called: list[int]) -> list[int]:
        """Those called up now without the losers of groups, from each of which one entry comes at a time."""
        left = list(called)
        for group in dict.fromkeys(group for i in called for group in self._entries[i].groups):
            members = [i for i in left if group in self._entries[i].groups]
            for loser in set(members) - self._winners(group, members):
                left.remove(loser)
                self._found.kept_back[loser] = "group"
        return left

    def _winners(self, group: str, members: list[int]) -> set[int]:
        if sticky := self._timing.sticky.intersection(members):
            return set(sticky)
        if any(group in self._entries[i].groups for i in self._found.rounds):
            return set()
        if any(self._entries[i].scores_in_group for i in members):
            scores = {i: self._text.num_found(self._entries[i]) for i in members}
            best = max(scores.values())
            members = [i for i in members if scores[i] == best or not self._entries[i].scores_in_group]
        if len(members) < 2:
            return set(members)
        if first := [i for i in members if self._entries[i].wins_group]:
            return {max(first, key=lambda i: self._entries[i].order)}
        weights = [self._entries[i].group_weight for i in members]
        if not any(weights):
            return {members[0]}
        return set(self._chance(f"group {group}").choices(members, weights))

    def _with_luck(self, called: list[int]) -> list[int]:
        """Those that come by their probability, which what is sticky has behind it."""
        left = []
        for index in called:
            entry = self._entries[index]
            is_sure = index in self._timing.sticky or entry.percent >= 100
            if is_sure or self._chance(f"entry {index}").random() * 100 < entry.percent:
                left.append(index)
            else:
                self._found.kept_back[index] = "chance"
        return left

    def _chance(self, of: str) -> Random:
        """The same for the same chat at the same length: a prompt made again is the same text."""
        return Random(f"{self._chat.macros.seed} {self._num_messages} {of}")
