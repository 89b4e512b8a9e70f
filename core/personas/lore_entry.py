"""The entries of a lorebook as data, whichever program's fields say what they mean."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from core.common.values import is_whole
from core.personas import sillytavern
from core.personas.decorators import WHOLE, split_decorators
from core.personas.names import same_name
from core.personas.patterns import Pattern, read_pattern

# How many of the last messages are searched for keys where the lorebook does not say.
DEFAULT_SCAN_DEPTH = 10
# What secondary keys do, in the order of SillyTavern's numbers.
Logic = Literal["and_any", "not_all", "not_any", "and_all"]
LOGICS: tuple[Logic, ...] = ("and_any", "not_all", "not_any", "and_all")
Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")
# By SillyTavern's numbers. Its author's note stands four messages before the end, and so does what belongs to it.
POSITIONS = (
    "before_char",
    "after_char",
    "note_top",
    "note_bottom",
    "at_depth",
    "examples_top",
    "examples_bottom",
    "outlet",
)
NOTE_DEPTH = 4
DEFAULT_WEIGHT = 100
# One key of a text with commas.
KEY = re.compile(r"\s*(/(?:\\.|[^/\\])+/[a-z]*(?=\s*(?:,|$))|[^,]*)\s*(?:,|$)")
KEY_DECORATORS = ("additional_keys", "exclude_keys", "exclude_keys_all")
MAX_NUMBER = 10**15


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry, decorators taken out of its text. `title` is what a person calls it.

    `position` is one of POSITIONS or a decorator's; `depth` says how many messages come after it. `sources` are the
    character's own texts that keys are looked for in, by their extension's name. `recursion_level` is 0 for an entry
    that waits for no other one. `sticky`, `cooldown` and `delay` count messages. `book` numbers the lorebook.
    `only_for` and `not_for` are characters, by same_name.
    """

    title: str
    keys: tuple[str, ...]
    secondary_keys: tuple[str, ...]
    text: str
    decorators: Mapping[str, str]
    order: float
    priority: float
    is_enabled: bool
    is_constant: bool
    is_case_sensitive: bool
    uses_regex: bool
    position: str
    book: int = 0
    is_sillytavern: bool = False
    logic: Logic = "and_any"
    has_whole_words: bool = False
    scan_depth: int = DEFAULT_SCAN_DEPTH
    sources: tuple[str, ...] = ()
    depth: int | None = None
    role: Role = "system"
    outlet: str = ""
    percent: float = 100
    groups: tuple[str, ...] = ()
    group_weight: float = DEFAULT_WEIGHT
    wins_group: bool = False
    scores_in_group: bool = False
    is_recursive: bool = False
    can_be_recursed: bool = True
    can_recurse: bool = True
    recursion_level: int = 0
    sticky: int = 0
    cooldown: int = 0
    delay: int = 0
    ignores_budget: bool = False
    only_for: tuple[str, ...] = ()
    not_for: tuple[str, ...] = ()

    def number(self, name: str) -> int | None:
        """The value of a decorator that is a number, None where the entry does not have it."""
        return int(self.decorators[name]) if name in self.decorators else None

    def words(self, name: str) -> tuple[str, ...]:
        """The values of a decorator that is a list."""
        return tuple(word.strip() for word in self.decorators.get(name, "").split(",") if word.strip())

    def pattern(self, key: str) -> Pattern | None:
        """What a key means where it is a pattern: for SillyTavern one that is written /so/."""
        if self.is_sillytavern:
            return read_pattern(key)
        if not self.uses_regex:
            return None
        return read_pattern(key) or Pattern(key, "" if self.is_case_sensitive else "i")

    @property
    def all_keys(self) -> tuple[str, ...]:
        """The keys of every kind, macros and all."""
        return (*self.keys, *self.secondary_keys, *(word for name in KEY_DECORATORS for word in self.words(name)))

    @property
    def ignores_excluded(self) -> bool:
        """V3 lets patterns be without keys that forbid."""
        return self.uses_regex and not self.is_sillytavern


def read_entries(book: Mapping[str, Any], number_of_book: int = 0) -> list[Entry]:
    """A lorebook's entries in the order in which they are inserted; what is no entry is passed over."""
    given = book.get("entries")
    entries = list(given.values()) if isinstance(given, dict) else given if isinstance(given, list) else []
    # Some programs put world info into a card as it is.
    cards = (sillytavern.card_entry(one) if "key" in one else one for one in entries if isinstance(one, dict))
    read = (_entry(entry, book, number_of_book) for entry in cards)
    return sorted(read, key=lambda entry: entry.order)


def is_recursive(book: Mapping[str, Any]) -> bool:
    """Whether some entry's text may call up others."""
    given = book.get("recursive_scanning")
    return given if isinstance(given, bool) else any(entry.is_recursive for entry in read_entries(book))


def without_decorators(book: Mapping[str, Any]) -> dict[str, Any]:
    """The lorebook for programs that would show decorators to the model."""
    given = book.get("entries")
    if not isinstance(given, list):
        return dict(book)
    entries = [
        entry | {"content": split_decorators(entry["content"])[1]}
        if isinstance(entry, dict) and isinstance(entry.get("content"), str)
        else entry
        for entry in given
    ]
    return dict(book) | {"entries": entries}


def _entry(values: Mapping[str, Any], book: Mapping[str, Any], number_of_book: int) -> Entry:
    content = values.get("content")
    decorators, text = split_decorators(content if isinstance(content, str) else "")
    given = values.get("extensions")
    more = sillytavern.with_card_names(given) if isinstance(given, dict) else {}
    is_sillytavern = sillytavern.is_entry(more)
    order = number(values.get("insertion_order"), 0)
    uses_regex = values.get("use_regex") is True
    # The specification of V3 ignores secondary keys beside patterns; SillyTavern writes use_regex into every entry.
    is_selective = values.get("selective") is True and (is_sillytavern or not uses_regex)
    position = _position(values, more) if is_sillytavern else _plain_position(values.get("position"))
    recursive = book.get("recursive_scanning")
    keys = strings(values.get("keys"))
    title = next((str(name) for name in (values.get("name"), values.get("comment")) if name), "")
    fields: dict[str, Any] = _sillytavern_fields(more) if is_sillytavern else {}
    characters = sillytavern.character_filter(values)
    names = tuple(map(same_name, strings(characters.get("names"))))
    return Entry(
        **fields,
        title=title or ", ".join(keys) or text[:40],
        keys=keys,
        secondary_keys=strings(values.get("secondary_keys")) if is_selective else (),
        text=text,
        decorators=decorators,
        order=order,
        priority=number(decorators.get("priority", values.get("priority")), order),
        is_enabled=values.get("enabled") is not False,
        is_constant=values.get("constant") is True and (is_sillytavern or not uses_regex),
        is_case_sensitive=_flag(more.get("case_sensitive"), values.get("case_sensitive") is True),
        uses_regex=uses_regex,
        position=decorators.get("position") or position,
        book=number_of_book,
        is_sillytavern=is_sillytavern,
        has_whole_words=_has_whole_words(decorators, more, book),
        scan_depth=_scan_depth(decorators, more, book),
        depth=_depth(position, more),
        role=_role(decorators, position, more),
        percent=_percent(decorators, more),
        # SillyTavern says nothing of it in a book, and comes with it switched on.
        is_recursive=recursive if isinstance(recursive, bool) else is_sillytavern,
        only_for=names if characters.get("isExclude") is not True else (),
        not_for=names if characters.get("isExclude") is True else (),
        can_be_recursed=more.get("exclude_recursion") is not True and "no_recursive_search" not in decorators,
    )


def _sillytavern_fields(more: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that only SillyTavern has."""
    group, outlet, logic = more.get("group"), more.get("outlet_name"), more.get("selectiveLogic")
    level = more.get("delay_until_recursion")
    return {
        "logic": LOGICS[logic] if is_whole(logic) and 0 <= logic < len(LOGICS) else "and_any",
        "sources": tuple(field.in_card for field in sillytavern.SOURCES if more.get(field.in_card) is True),
        "outlet": outlet.strip() if isinstance(outlet, str) else "",
        "groups": tuple(name.strip() for name in group.split(",") if name.strip()) if isinstance(group, str) else (),
        "group_weight": max(0, number(more.get("group_weight"), DEFAULT_WEIGHT)),
        "wins_group": more.get("group_override") is True,
        "scores_in_group": more.get("use_group_scoring") is True,
        "can_recurse": more.get("prevent_recursion") is not True,
        "recursion_level": 1 if level is True else whole(level, 0),
        "sticky": whole(more.get("sticky"), 0),
        "cooldown": whole(more.get("cooldown"), 0),
        "delay": whole(more.get("delay"), 0),
        "ignores_budget": more.get("ignore_budget") is True,
    }


def _plain_position(position: object) -> str:
    return "before_char" if position == "before_char" else "after_char"


def _position(values: Mapping[str, Any], more: Mapping[str, Any]) -> str:
    """SillyTavern writes the real place into the extensions; beside it stands what a card can say."""
    place = more.get("position")
    if is_whole(place) and 0 <= place < len(POSITIONS):
        return POSITIONS[place]
    return _plain_position(values.get("position"))


def _depth(position: str, more: Mapping[str, Any]) -> int | None:
    if position in ("note_top", "note_bottom"):
        return NOTE_DEPTH
    return whole(more.get("depth"), 4) if position == "at_depth" else None


def _role(decorators: Mapping[str, str], position: str, more: Mapping[str, Any]) -> Role:
    named = next((role for role in ROLES if role == decorators.get("role")), None)
    return named or (read_role(more.get("role")) if position == "at_depth" else "system")


def read_role(given: object) -> Role:
    """A role by its name or by SillyTavern's number; "system" for all else."""
    if isinstance(given, str):
        return next((role for role in ROLES if role == given.strip().lower()), "system")
    return ROLES[given] if is_whole(given) and 0 <= given < len(ROLES) else "system"


def _has_whole_words(decorators: Mapping[str, str], more: Mapping[str, Any], book: Mapping[str, Any]) -> bool:
    if "match_full_word" in decorators or "match_partial_word" in decorators:
        return "match_full_word" in decorators
    extensions = book.get("extensions")
    of_book = isinstance(extensions, dict) and extensions.get("risu_fullWordMatching") is True
    return _flag(more.get("match_whole_words"), of_book)


def _scan_depth(decorators: Mapping[str, str], more: Mapping[str, Any], book: Mapping[str, Any]) -> int:
    if "scan_depth" in decorators:
        return int(decorators["scan_depth"])
    of_book = int(number(book.get("scan_depth"), DEFAULT_SCAN_DEPTH))
    return whole(more.get("scan_depth"), of_book)


def _percent(decorators: Mapping[str, str], more: Mapping[str, Any]) -> float:
    """How often of a hundred times an entry comes that was called up."""
    if "probability" in decorators:
        return int(decorators["probability"])
    if more.get("useProbability", True) is False:
        return 100
    return number(more.get("probability"), number(more.get("risu_activationPercent"), 100))


def _flag(given: object, default: bool) -> bool:
    return given if isinstance(given, bool) else default


def whole(value: object, default: int) -> int:
    """A whole number from 0 on, `default` for what is none."""
    return int(max(0, number(value, default)))


def number(value: object, default: float) -> float:
    """A number of a card, `default` for what is none."""
    if isinstance(value, str) and WHOLE.fullmatch(value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return default
    # A card may say 10**400, which is more than any float.
    return max(min(value, MAX_NUMBER), -MAX_NUMBER)


def split_keys(text: str) -> list[str]:
    """The keys of a text with commas between them; those of a pattern are its own."""
    return [key for key in (match[1].strip() for match in KEY.finditer(text)) if key]


def strings(value: object) -> tuple[str, ...]:
    """A list of texts, or one text with commas between them, as V3 has its secondary keys."""
    entries = split_keys(value) if isinstance(value, str) else value if isinstance(value, list) else []
    texts = (str(entry).strip() for entry in entries if isinstance(entry, (str, int, float)) and entry is not True)
    return tuple(text for text in texts if text)
