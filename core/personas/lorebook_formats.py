"""From a file's plain values to a lorebook as a card has it, whichever program wrote it. Knows neither text nor bytes.

SillyTavern's world info, V3's lorebook, RisuAI's lorebooks and modules, Agnai's memory books, NovelAI's lorebooks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.personas.lore_entry import split_keys
from core.personas.sillytavern import card_entry

# A character has one of these; a lorebook may have a name and a description too.
CHARACTER_KEYS = ("data", "first_mes", "mes_example", "char_name", "char_persona", "context", "greeting", "personality")
NOVELAI_ORDER = 400


def read_book(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """The lorebook that `values` are, its entries in a list; None where they are something else, such as a card."""
    data, kind = values.get("data"), values.get("type")
    if values.get("spec") == "lorebook_v3" and isinstance(data, dict):
        return _with_rest(_plain(data), {key: value for key, value in values.items() if key not in ("spec", "data")})
    if kind == "risu" and isinstance(data, list):
        return _book(values, "data", [_risu_entry(entry) for entry in _objects(data)])
    if kind == "risuModule":
        module = values["module"] if isinstance(values.get("module"), dict) else values
        return _book(module, "lorebook", [_risu_entry(entry) for entry in _objects(module.get("lorebook"))])
    if any(key in values for key in CHARACTER_KEYS) or not isinstance(values.get("entries"), (dict, list)):
        return None
    entries = _objects(values["entries"])
    if values.get("kind") == "memory":
        return _memory_book(values, [_agnai_entry(entry) for entry in entries])
    if "lorebookVersion" in values:
        return _book(values, "entries", [_novelai_entry(entry) for entry in entries])
    return _plain(values)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """World info, or a card's lorebook: the keys of an entry tell which."""
    given = values.get("entries")
    if isinstance(given, list) and not any("key" in entry for entry in _objects(given)):
        return {"extensions": {}, "entries": []} | dict(values)
    entries = [card_entry(entry) for entry in _objects(given)]
    return {"extensions": {}} | {key: value for key, value in values.items() if key != "entries"} | {"entries": entries}


def _book(values: Mapping[str, Any], entries_key: str, entries: list[dict[str, Any]]) -> dict[str, Any]:
    """A lorebook with the name and the words about it; the rest of its file is kept in its extensions."""
    known = {key: values[key] for key in ("name", "description") if isinstance(values.get(key), str)}
    rest = {key: value for key, value in values.items() if key not in (*known, entries_key)}
    return known | {"extensions": {"file": rest} if rest else {}, "entries": entries}


def _with_rest(book: dict[str, Any], rest: Mapping[str, Any]) -> dict[str, Any]:
    """The book with what its file holds around it."""
    if not rest or not isinstance(book["extensions"], dict):
        return book
    return book | {"extensions": {"file": dict(rest)} | book["extensions"]}


def _risu_entry(given: Mapping[str, Any]) -> dict[str, Any]:
    rest = dict(given)
    extensions = rest.pop("extentions", None)
    extensions = dict(extensions) if isinstance(extensions, dict) else {}
    comment = rest.pop("comment", "")
    entry = {
        "keys": split_keys(str(rest.pop("key", None) or "")),
        "secondary_keys": split_keys(str(rest.pop("secondkey", None) or "")),
        "content": rest.pop("content", ""),
        "enabled": rest.get("mode") != "folder",
        "insertion_order": rest.pop("insertorder", 100),
        "name": comment,
        "comment": comment,
        "constant": rest.pop("alwaysActive", False) is True,
        "selective": rest.pop("selective", False) is True,
        "case_sensitive": extensions.get("risu_case_sensitive") is True,
        "use_regex": rest.pop("useRegex", False) is True,
    }
    if rest.get("activationPercent") is not None:
        extensions["risu_activationPercent"] = rest.pop("activationPercent")
    return entry | {"extensions": extensions | ({"risu": rest} if rest else {})}


def _memory_book(values: Mapping[str, Any], entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Agnai's, which has a lorebook's own settings under names of its own."""
    names = {"scanDepth": "scan_depth", "tokenBudget": "token_budget", "recursiveScanning": "recursive_scanning"}
    settings = {name: values[key] for key, name in names.items() if values.get(key) is not None}
    others = {key: value for key, value in values.items() if key not in names}
    return settings | _book(others, "entries", entries)


def _agnai_entry(given: Mapping[str, Any]) -> dict[str, Any]:
    rest = dict(given)
    # Of two entries the lighter one stands first, and the one of lower priority is left out first.
    names = {"keywords": "keys", "entry": "content", "weight": "insertion_order", "secondaryKeys": "secondary_keys"}
    entry = {name: rest.pop(key) for key, name in names.items() if key in rest}
    plain = ("name", "priority", "enabled", "id", "comment", "constant", "position", "selective")
    entry |= {name: rest.pop(name) for name in plain if name in rest}
    extended = {"probability": "probability", "useProbability": "useProbability", "selectiveLogic": "selectiveLogic",
                "excludeRecursion": "exclude_recursion"}  # fmt: skip
    extensions = {name: rest.pop(key) for key, name in extended.items() if key in rest}
    return (
        {"insertion_order": 0, "enabled": True} | entry | {"extensions": extensions | ({"agnai": rest} if rest else {})}
    )


def _novelai_entry(given: Mapping[str, Any]) -> dict[str, Any]:
    """NovelAI puts what has a higher order further up, and leaves out what has a lower one."""
    rest = dict(given)
    placing = rest.get("contextConfig")
    order = placing.get("budgetPriority") if isinstance(placing, dict) else None
    order = order if isinstance(order, (int, float)) and not isinstance(order, bool) else NOVELAI_ORDER
    return {
        "keys": rest.pop("keys", []),
        "content": rest.pop("text", ""),
        "enabled": rest.pop("enabled", True) is not False,
        "insertion_order": -order,
        "priority": order,
        "name": rest.pop("displayName", ""),
        "constant": rest.pop("forceActivation", False) is True,
        # Its keys are plain words or patterns, as SillyTavern's are.
        "extensions": {"selectiveLogic": 0, "novelai": rest},
    }


def _objects(given: object) -> list[dict[str, Any]]:
    values = list(given.values()) if isinstance(given, dict) else given if isinstance(given, list) else []
    return [value for value in values if isinstance(value, dict)]
