"""What earlier answers of a chat leave behind: entries that stay for some messages, or rest for some.

SillyTavern stores it in the chat. Here the chat's own messages tell: every answer's search is made again, so that
another version of an answer, or a branch, has what belongs to it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from random import Random

from core.personas.lore_entry import Entry
from core.personas.lore_scan import MOST_CHARS, Scan, Timing
from core.personas.lore_text import Chat

# A search takes some 10 µs an entry. So many of them together are looked at again, from the last answer on: what was
# longer ago has mostly ended. The states after the last answers are remembered.
MAX_REPLAYED_ENTRIES, MAX_REMEMBERED = 30_000, 4000


@dataclass(frozen=True, slots=True)
class Clock:
    """At which length of the chat an entry ceases to stay (sticky) or to rest (cooldown), by its index."""

    sticky: tuple[tuple[int, int], ...] = ()
    cooldown: tuple[tuple[int, int], ...] = ()

    def at(self, num_messages: int, entries: Sequence[Entry]) -> Clock:
        """The clock when the chat has this length: what has ended is gone, and an entry rests once it has stayed."""
        sticky = {index: end for index, end in self.sticky if num_messages < end}
        cooldown = {index: end for index, end in self.cooldown if num_messages < end}
        for index, _ in self.sticky:
            if index not in sticky and entries[index].cooldown:
                cooldown[index] = num_messages + entries[index].cooldown
        return Clock(tuple(sticky.items()), tuple(cooldown.items()))

    def after(self, num_messages: int, active: Iterable[int], entries: Sequence[Entry]) -> Clock:
        """The clock with what an answer at this length has begun."""
        sticky, cooldown = dict(self.sticky), dict(self.cooldown)
        for index in active:
            if entries[index].sticky:
                sticky.setdefault(index, num_messages + entries[index].sticky)
            if entries[index].cooldown:
                cooldown.setdefault(index, num_messages + entries[index].cooldown)
        return Clock(tuple(sticky.items()), tuple(cooldown.items()))

    @property
    def timing(self) -> Timing:
        return Timing(frozenset(index for index, _ in self.sticky), frozenset(index for index, _ in self.cooldown))


def replay(entries: Sequence[Entry], chat: Chat, most_chars: int = MOST_CHARS) -> Timing:
    """What the answers so far leave behind for the next one."""
    if not any(entry.is_enabled and (entry.sticky or entry.cooldown) for entry in entries):
        return Timing()
    answers = _answers(entries, chat)
    clock, begin = Clock(), 0
    for place in reversed(range(len(answers))):
        known = _clocks.get(answers[place][1])
        if known is not None:
            clock, begin = known, place + 1
            break
    for length, key in answers[begin:]:
        now = clock.at(length, entries)
        # Chance of its own: how much was remembered must not change what the prompt's macros draw.
        then = replace(chat, macros=replace(chat.macros, random=Random(f"{chat.macros.seed} {length}")))
        clock = now.after(length, Scan(entries, then, length, now.timing, most_chars).run().rounds, entries)
        _clocks.put(key, clock)
    return clock.at(len(chat.messages), entries).timing


def _answers(entries: Sequence[Entry], chat: Chat) -> list[tuple[int, int]]:
    """For each answer how many messages it followed, and what tells that chat up to there from all others."""
    macros = chat.macros
    known = hash(
        (repr(entries), macros.seed, macros.user, macros.char, chat.greeting_index, repr(chat.source_texts), chat.names)
    )
    found = []
    for length, message in enumerate(chat.messages):
        if length and message.role == "assistant":
            found.append((length, known))
        known = hash((known, message.role, message.text))
    return found[-max(1, MAX_REPLAYED_ENTRIES // len(entries)) :]


class _Clocks:
    """The clocks after the answers that were looked at last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[int, Clock] = OrderedDict()

    def get(self, key: int) -> Clock | None:
        return self._known.get(key)

    def put(self, key: int, clock: Clock) -> None:
        with self._lock:
            self._known[key] = clock
            while len(self._known) > MAX_REMEMBERED:
                self._known.popitem(last=False)


_clocks = _Clocks()
