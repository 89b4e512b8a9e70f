"""A lorebook as other programs' files: V3's own form and SillyTavern's world info. The reverse of lorebook_formats."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any

from core.common.values import is_whole
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
    # SillyTavern finds an entry by its number, which is its key too. Of several with one number the first keeps it.
    own = {number: place for place, one in reversed(list(enumerate(given))) if is_whole(number := one.get("id"))}
    free = (number for number in count() if number not in own)
    entries: dict[str, Any] = {}
    for place, one in enumerate(given):
        number = one.get("id")
        uid = number if is_whole(number) and own[number] == place else next(free)
        entries[str(uid)] = world_entry(one, uid)
    return {key: value for key, value in book.items() if key != "entries"} | {"entries": entries}
