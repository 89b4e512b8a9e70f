"""A lorebook as other programs' files: V3's own form and SillyTavern's world info. The reverse of lorebook_formats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.personas.lore_editing import NEW_ENTRY
from core.personas.sillytavern import world_entry

SPEC = "lorebook_v3"


def write_v3(book: Mapping[str, Any]) -> dict[str, Any]:
    """V3's lorebook. Its specification wants some fields in every entry: those that are not there get empty values."""
    given = book.get("entries", [])
    entries = [dict(NEW_ENTRY) | {"insertion_order": 0} | one if isinstance(one, dict) else one for one in given]
    return {"spec": SPEC, "data": {"extensions": {}} | dict(book) | {"entries": entries}}


def write_world_info(book: Mapping[str, Any]) -> dict[str, Any]:
    """World info. What is no entry has no place there."""
    given = [one for one in book.get("entries", []) if isinstance(one, dict)]
    entries: dict[str, Any] = {}
    for place, one in enumerate(given):
        number = one.get("id")
        # SillyTavern finds an entry by its number, which is its key too.
        uid = _free(entries, number if type(number) is int and number >= 0 else place)
        entries[str(uid)] = world_entry(one, uid)
    return {key: value for key, value in book.items() if key != "entries"} | {"entries": entries}


def _free(entries: Mapping[str, Any], number: int) -> int:
    while str(number) in entries:
        number += 1
    return number
