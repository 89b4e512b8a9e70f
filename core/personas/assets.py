"""The pictures and other files that a V3 card names. Fetches nothing."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from core.common.errors import DeckError
from core.personas.character import CharacterError
from core.personas.charx import Charx
from core.personas.pictures import as_png
from core.personas.png import MAX_PNG_BYTES

# The specification spells it so; some programs spell it right.
EMBEDDED = ("embeded://", "embedded://")
DEFAULT_URI = "ccdefault:"
# What a character's file keeps of a CHARX, as text within it.
MAX_KEPT_BYTES = 16 * 2**20
# A hostile card names any number of files: at most so many icons are searched for the main one, so many files kept.
MAX_ICONS, MAX_KEPT = 16, 1000


def main_icon(file: str, data: Mapping[str, Any], charx: Charx | None) -> bytes | None:
    """The card's main picture as PNG, where the card itself holds it and it is one."""
    icons = [asset for asset in _assets(data) if asset.get("type") == "icon"]
    icons.sort(key=lambda asset: asset.get("name") != "main")
    for asset in icons[:MAX_ICONS]:
        try:
            content = _content(str(asset.get("uri", "")), charx)
            if content is not None:
                return as_png(file, content)
        except CharacterError:
            # Another icon may be a picture; without one the character has the default picture.
            continue
    return None


def picture_at(file: str, address: object) -> bytes | None:
    """The picture as PNG that a text such as "data:image/png;base64,…" holds itself; None for all else."""
    try:
        content = _content(address, None) if isinstance(address, str) else None
        return as_png(file, content) if content is not None else None
    except CharacterError:
        return None


def keep_embedded(
    file: str, data: Mapping[str, Any], charx: Charx, has_picture: bool
) -> tuple[dict[str, Any], list[DeckError]]:
    """The card's data with what the CHARX holds written into it, and what had to be left out, in a sentence.

    The main icon is the character's picture, so it is only named.
    """
    kept, left, room, num_kept = [], 0, MAX_KEPT_BYTES, 0
    assets = data.get("assets")
    is_main = has_picture
    for asset in assets if isinstance(assets, list) else []:
        path = _path(asset.get("uri")) if isinstance(asset, dict) else None
        if path is None or path not in charx.names:
            kept.append(asset)
        elif is_main and asset.get("type") == "icon" and asset.get("name") == "main":
            is_main = False
            kept.append(asset | {"uri": DEFAULT_URI})
        elif charx.size_bytes(path) > room or num_kept == MAX_KEPT:
            left += 1
            kept.append(asset)
        else:
            content = charx.read(path, room)
            room -= len(content)
            num_kept += 1
            kept.append(asset | {"uri": "data:application/octet-stream;base64," + base64.b64encode(content).decode()})
    notices: list[DeckError] = []
    if left:
        notices.append(CharacterError("card_assets_left", file=file, count=left, limit_mib=MAX_KEPT_BYTES // 2**20))
    return dict(data) | ({"assets": kept} if isinstance(assets, list) else {}), notices


def _assets(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    assets = data.get("assets")
    return [asset for asset in assets if isinstance(asset, dict)] if isinstance(assets, list) else []


def _content(uri: str, charx: Charx | None) -> bytes | None:
    """What lies at an address within the card; None for those that are elsewhere."""
    path = _path(uri)
    if path is not None and charx is not None:
        return charx.read(path, MAX_PNG_BYTES)
    head, comma, data = uri.partition(",")
    if not (head.startswith("data:") and head.endswith(";base64") and comma):
        return None
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return None


def _path(uri: object) -> str | None:
    """The path in a CHARX that an address means."""
    mark = next((mark for mark in EMBEDDED if isinstance(uri, str) and uri.startswith(mark)), None)
    return str(uri)[len(mark) :] if mark is not None else None
