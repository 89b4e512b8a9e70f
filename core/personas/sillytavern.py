"""What SillyTavern adds to the entries of a lorebook: in a card it lies in their extensions, in world info beside them.

Meaning: SillyTavern/SillyTavern, public/scripts/world-info.js and src/endpoints/characters.js.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from core.personas.patterns import read_pattern


class EntryField(NamedTuple):
    """One of its fields: the name in a card's extensions and in world info, what it means where it is left out.

    `has_effect` is False for what this program only keeps.
    """

    in_card: str
    in_world: str
    default: Any
    has_effect: bool = True


ENTRY_FIELDS = (
    EntryField("position", "position", 0),
    EntryField("depth", "depth", 4),
    EntryField("role", "role", 0),
    EntryField("outlet_name", "outletName", ""),
    EntryField("selectiveLogic", "selectiveLogic", 0),
    EntryField("scan_depth", "scanDepth", None),
    EntryField("case_sensitive", "caseSensitive", None),
    EntryField("match_whole_words", "matchWholeWords", None),
    EntryField("match_persona_description", "matchPersonaDescription", False),
    EntryField("match_character_description", "matchCharacterDescription", False),
    EntryField("match_character_personality", "matchCharacterPersonality", False),
    EntryField("match_character_depth_prompt", "matchCharacterDepthPrompt", False),
    EntryField("match_scenario", "matchScenario", False),
    EntryField("match_creator_notes", "matchCreatorNotes", False),
    EntryField("probability", "probability", 100),
    EntryField("useProbability", "useProbability", True),
    EntryField("group", "group", ""),
    EntryField("group_override", "groupOverride", False),
    EntryField("group_weight", "groupWeight", 100),
    EntryField("use_group_scoring", "useGroupScoring", None),
    EntryField("exclude_recursion", "excludeRecursion", False),
    EntryField("prevent_recursion", "preventRecursion", False),
    EntryField("delay_until_recursion", "delayUntilRecursion", 0),
    EntryField("sticky", "sticky", None),
    EntryField("cooldown", "cooldown", None),
    EntryField("delay", "delay", None),
    EntryField("ignore_budget", "ignoreBudget", False),
    EntryField("display_index", "displayIndex", None),
    EntryField("vectorized", "vectorized", False, has_effect=False),
    EntryField("automation_id", "automationId", "", has_effect=False),
    EntryField("triggers", "triggers", [], has_effect=False),
)
# The character's own texts that keys can be looked for in.
SOURCES = tuple(
    field for field in ENTRY_FIELDS if field.in_card.startswith(("match_persona", "match_char", "match_sc", "match_cr"))
)
CARD_NAMES = frozenset(field.in_card for field in ENTRY_FIELDS)
WORLD_NAMES = frozenset(field.in_world for field in ENTRY_FIELDS)
# World info's plain fields, by the names that the specifications of cards have for them.
PLAIN_FIELDS = {
    "uid": "id",
    "key": "keys",
    "keysecondary": "secondary_keys",
    "order": "insertion_order",
}
WORLD_INFO = "world_info"
# What is escaped, or a slash, which would end a pattern.
SLASH = re.compile(r"\\.|/", re.DOTALL)


def is_entry(extensions: Mapping[str, Any]) -> bool:
    """Whether an entry with these extensions was written by SillyTavern, and means what SillyTavern means."""
    return not CARD_NAMES.isdisjoint(extensions)


def with_card_names(extensions: Mapping[str, Any]) -> Mapping[str, Any]:
    """The extensions with a card's names for what some programs write there by world info's."""
    renamed = {one.in_card: extensions[one.in_world] for one in ENTRY_FIELDS if one.in_world in extensions}
    return {**renamed, **extensions} if renamed else extensions


def character_filter(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Which characters an entry is for: "names" and "tags", or for all others where "isExclude" is true."""
    extensions = values.get("extensions")
    kept = extensions.get(WORLD_INFO) if isinstance(extensions, dict) else None
    given = values.get("characterFilter") or (kept.get("characterFilter") if isinstance(kept, dict) else None)
    return given if isinstance(given, dict) else {}


def card_entry(values: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of world info as a card has it. What has no field there is kept in the extensions."""
    rest = dict(values)
    given = rest.pop("extensions", None)
    extensions = dict(given) if isinstance(given, dict) else {}
    entry: dict[str, Any] = {"keys": [], "secondary_keys": [], "selective": True, "insertion_order": 100,
                             "enabled": True}  # fmt: skip
    for own, name in PLAIN_FIELDS.items():
        # Some programs write both: the card's field counts, and the other one is kept.
        if own in rest and name not in rest:
            entry[name] = rest.pop(own)
    if "disable" in rest and "enabled" not in rest:
        entry["enabled"] = rest.pop("disable") is not True
    for field in ENTRY_FIELDS:
        # Some programs write a card's "before_char" there.
        if field.in_world in rest and not isinstance(rest[field.in_world], str if field.in_card == "position" else ()):
            extensions[field.in_card] = rest.pop(field.in_world)
    if "position" not in rest:
        rest["position"] = "before_char" if extensions.setdefault("position", 0) == 0 else "after_char"
    # It is what tells that keys such as /bee/i are patterns.
    extensions.setdefault("selectiveLogic", 0)
    kept = {name: rest.pop(name) for name in [name for name in rest if name not in CARD_FIELDS]}
    if kept:
        extensions[WORLD_INFO] = kept
    return entry | rest | {"extensions": extensions}


def world_entry(entry: Mapping[str, Any], uid: int) -> dict[str, Any]:
    """The reverse of card_entry, with all fields that SillyTavern looks for. `uid` is the entry's number there."""
    rest = dict(entry)
    given = rest.pop("extensions", None)
    extensions = dict(with_card_names(given)) if isinstance(given, dict) else {}
    kept = extensions.pop(WORLD_INFO, {})
    # Elsewhere a key is a pattern where use_regex says so, there where it is written as one.
    has_bare_patterns = rest.get("use_regex") is True and not is_entry(extensions)
    written: dict[str, Any] = {"comment": str(rest.get("name") or ""), "content": "", "constant": False,
                               "selective": not rest.get("secondary_keys")}  # fmt: skip
    for own, name in PLAIN_FIELDS.items():
        written[own] = rest.pop(name, [] if own.startswith("key") else 0)
    if has_bare_patterns and isinstance(written["key"], list):
        written["key"] = [_as_pattern(key, rest.get("case_sensitive") is True) for key in written["key"]]
    written["disable"] = rest.pop("enabled", True) is False
    extensions.setdefault("position", 0 if rest.get("position") == "before_char" else 1)
    if extensions.get("case_sensitive") is None and rest.get("case_sensitive") is True:
        extensions["case_sensitive"] = True
    rest.pop("position", None)
    fields = {one.in_world: extensions.pop(one.in_card, one.default) for one in ENTRY_FIELDS}
    others = {name: value for name, value in extensions.items() if name not in WORLD_NAMES}
    written |= fields | rest | {"uid": uid} | ({"extensions": others} if others else {})
    return kept | written if isinstance(kept, dict) else written


def _as_pattern(key: object, is_case_sensitive: bool) -> object:
    if not isinstance(key, str) or read_pattern(key) is not None:
        return key
    escaped = SLASH.sub(lambda found: found[0] if found[0] != "/" else "\\/", key)
    return f"/{escaped}/{'' if is_case_sensitive else 'i'}"


# The fields of an entry in a card, V2 and V3.
CARD_FIELDS = frozenset(
    {"keys", "content", "extensions", "enabled", "insertion_order", "case_sensitive", "use_regex", "constant", "name"}
    | {"priority", "id", "comment", "selective", "secondary_keys", "position"}
)
