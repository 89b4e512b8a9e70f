"""Changes to a lorebook as a card holds it, one entry at a time; all that is not changed stays as it was read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.personas.lore_entry import is_recursive, number, read_entries, strings

# What both specifications want of an entry.
NEW_ENTRY: Mapping[str, Any] = {
    "keys": [],
    "content": "",
    "extensions": {},
    "enabled": True,
    "insertion_order": 100,
    "case_sensitive": False,
    "use_regex": False,
    "constant": False,
}
KNOWN_KEYS = frozenset({*NEW_ENTRY, "name", "comment", "id", "priority", "selective", "secondary_keys", "position"})
BOOK_KEYS = frozenset({"name", "description", "scan_depth", "token_budget", "recursive_scanning", "entries"})


def can_change_entries(book: Mapping[str, Any]) -> bool:
    """Whether the entries are a list, as the specifications have them; others are only kept."""
    return isinstance(book.get("entries", []), list)


def entry_indexes(book: Mapping[str, Any]) -> list[int]:
    """The places of what is an entry; what is none keeps its place in the list."""
    entries = book.get("entries")
    return [i for i, entry in enumerate(entries) if isinstance(entry, dict)] if isinstance(entries, list) else []


def entry_values(book: Mapping[str, Any], index: int) -> dict[str, Any]:
    """An entry's values as a form shows them, of the kinds that they should be."""
    given = book["entries"][index]
    read = read_entries({"entries": [given]})[0]
    content, priority, is_selective = given.get("content"), given.get("priority"), given.get("selective") is True
    return {
        "name": str(given.get(_title_key(given)) or ""),
        "enabled": read.is_enabled,
        "constant": given.get("constant") is True,
        "keys": list(dict.fromkeys(read.keys)),
        "secondary_keys": list(dict.fromkeys(strings(given.get("secondary_keys")))) if is_selective else [],
        "content": content if isinstance(content, str) else "",
        "insertion_order": int(read.order),
        "priority": None if priority is None else int(number(priority, 0)),
        "position": "before_char" if given.get("position") == "before_char" else "after_char",
        "case_sensitive": given.get("case_sensitive") is True,
        "use_regex": read.uses_regex,
    }


def book_values(book: Mapping[str, Any]) -> dict[str, Any]:
    """The lorebook's own values as a form shows them: None where it leaves them to the program."""
    numbers = {name: book.get(name) for name in ("scan_depth", "token_budget")}
    shown = {name: None if value is None else max(0, int(number(value, 0))) for name, value in numbers.items()}
    return {**shown, "recursive_scanning": is_recursive(book)}


def change_book(book: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The lorebook with other values of its own; None takes a value away."""
    return {name: value for name, value in {**book, **changes}.items() if value is not None or name not in changes}


def change_entry(book: Mapping[str, Any], index: int, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The lorebook with other values in one entry; None takes a value away."""
    entries = list(book["entries"])
    changed = dict(entries[index])
    for name, value in changes.items():
        key = _title_key(changed) if name == "name" else name
        changed[key] = value
        if value is None:
            del changed[key]
        if name == "secondary_keys":
            changed["selective"] = bool(value)
    entries[index] = changed
    return dict(book) | {"entries": entries}


def add_entry(book: Mapping[str, Any]) -> dict[str, Any]:
    """The lorebook with an empty entry at its end."""
    new = dict(NEW_ENTRY) | {"keys": [], "extensions": {}}
    return {"extensions": {}} | dict(book) | {"entries": [*book.get("entries", []), new]}


def remove_entry(book: Mapping[str, Any], index: int) -> dict[str, Any]:
    entries = list(book["entries"])
    del entries[index]
    return dict(book) | {"entries": entries}


def foreign_keys(book: Mapping[str, Any]) -> list[str]:
    """The names of what a form does not show, of the lorebook and of its entries."""
    entries = [book["entries"][index] for index in entry_indexes(book)]
    own = {key for key in book if key not in BOOK_KEYS and not (key == "extensions" and not book[key])}
    inner = {key for entry in entries for key in entry if key not in KNOWN_KEYS or (key == "extensions" and entry[key])}
    return sorted(str(key) for key in own | inner)


def _title_key(entry: Mapping[str, Any]) -> str:
    """Programs call an entry's title by either name."""
    return "comment" if entry.get("comment") and not entry.get("name") else "name"
