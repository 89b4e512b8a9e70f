"""The text that a lorebook's keys are looked for in, and whether they are there."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from core.personas.lore_entry import Entry, Role
from core.personas.macros import Macros
from core.personas.patterns import Pattern, Patterns

# SillyTavern puts it, and the speaker's name, before each message; patterns that name it can ask who speaks.
MARK = "\x01"
# Parts of words. Chinese, Japanese and Thai letters (Lo) are not: those languages set no spaces between words.
WORD_CATEGORIES = ("Lu", "Ll", "Lt", "Lm", "Mn", "Nd", "Pc")


@dataclass(frozen=True, slots=True)
class LoreMessage:
    """One message of the chat, with what a lorebook needs of it."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Chat:
    """The chat that entries are matched against. `patterns` searches for the keys that are patterns.

    `sources` make the character's own texts, which some entries look at too, by their extension's name; `source_texts`
    are those that were made. `names` are those of the character who answers, by same_name.
    """

    messages: Sequence[LoreMessage]
    macros: Macros
    greeting_index: int = 0
    patterns: Patterns = field(default_factory=lambda: Patterns(()))
    sources: Mapping[str, Callable[[], str]] = field(default_factory=dict)
    source_texts: Mapping[str, str] = field(default_factory=dict)
    names: frozenset[str] = frozenset()


def patterns_of(entries: Iterable[Entry], macros: Macros) -> Patterns:
    """All keys that are patterns, with their macros expanded."""
    enabled = (entry for entry in entries if entry.is_enabled)
    found = (entry.pattern(macros.expand(key).strip()) for entry in enabled for key in entry.all_keys)
    return Patterns(one for one in found if one is not None)


class LoreText:
    """The last messages, and `recursed`, the text of other entries. Each text is put together once."""

    def __init__(self, chat: Chat, num_messages: int, recursed: str = "") -> None:
        self._chat, self._recursed = chat, recursed
        self._messages = chat.messages[:num_messages]
        self._made: dict[tuple[object, ...], str] = {}

    def finds(self, entry: Entry, key: str) -> bool:
        """Whether one of an entry's keys is there."""
        wanted = self._chat.macros.expand(key).strip()
        pattern = entry.pattern(wanted)
        if pattern is not None:
            return self._chat.patterns.finds(pattern, self._text(entry, names=_asks_for_names(pattern)))
        if not wanted:
            return False
        is_folded = not entry.is_case_sensitive
        text = self._text(entry, is_folded=is_folded)
        wanted = wanted.casefold() if is_folded else wanted
        # As in SillyTavern, several words are a phrase, and found wherever it stands.
        return has_word(text, wanted) if entry.has_whole_words and len(wanted.split()) == 1 else wanted in text

    def num_found(self, entry: Entry) -> int:
        """How many of an entry's keys are there, as SillyTavern scores the entries of a group."""
        first = sum(self.finds(entry, key) for key in entry.keys)
        second = sum(self.finds(entry, key) for key in entry.secondary_keys)
        if not entry.keys or entry.logic not in ("and_any", "and_all"):
            return first
        return first + (second if entry.logic == "and_any" or second == len(entry.secondary_keys) else 0)

    def _text(self, entry: Entry, *, is_folded: bool = False, names: bool = False) -> str:
        begin = max(len(self._messages) - max(entry.scan_depth, 0), 0)
        made_of = (begin, entry.sources, entry.can_be_recursed, is_folded, names)
        if made_of not in self._made:
            texts = [self._named(one) if names else one.text for one in self._messages[begin:]]
            texts += [self._chat.source_texts.get(source, "") for source in entry.sources]
            text = "\n".join([*texts, self._recursed] if entry.can_be_recursed else texts)
            self._made[made_of] = text.casefold() if is_folded else text
        return self._made[made_of]

    def _named(self, message: LoreMessage) -> str:
        name = self._chat.macros.user if message.role == "user" else self._chat.macros.char
        return f"{MARK}{name}: {message.text}"


def has_word(text: str, word: str) -> bool:
    """Whether `word` stands in `text` and is no part of a longer one."""
    begin = text.find(word)
    while begin >= 0:
        end = begin + len(word)
        if not (_continues(text[begin - 1 : begin], word[0]) or _continues(word[-1], text[end : end + 1])):
            return True
        begin = text.find(word, begin + 1)
    return False


def _continues(left: str, right: str) -> bool:
    return all(letter and unicodedata.category(letter) in WORD_CATEGORIES for letter in (left, right))


def _asks_for_names(pattern: Pattern) -> bool:
    return MARK in pattern.text or r"\x01" in pattern.text
