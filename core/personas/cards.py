"""Character cards as the bytes of a file, read and written. A file's kind is told by its bytes, not by its name."""

from __future__ import annotations

import base64
import binascii
import io
import re
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Any, Literal

from core.common.errors import DeckError
from core.common.files import regular_size
from core.common.values import printable
from core.personas.assets import keep_embedded, main_icon, picture_at
from core.personas.character import Character, CharacterError, check_name
from core.personas.charx import CARD, MAX_CHARX_BYTES, ZIP, open_charx
from core.personas.fields import read_name
from core.personas.formats import newer_version, read_object, write_backfill, write_card, write_file
from core.personas.notices import character_notices
from core.personas.parse import decode_text, parse_json, parse_yaml, write_json, write_yaml
from core.personas.pictures import as_png
from core.personas.png import KEYWORDS, SIGNATURE, read_cards, with_cards, without_cards

Format = Literal["yaml", "json", "v2", "png"]
FORMATS: tuple[Format, ...] = ("yaml", "json", "v2", "png")
SUFFIXES: Mapping[Format, str] = {"yaml": ".yaml", "json": ".json", "v2": ".json", "png": ".png"}
# Other pictures by their first bytes: no card was ever written into one that programs agree on.
PICTURES = ((b"\xff\xd8\xff", "JPEG"), (b"GIF8", "GIF"), (b"BM", "BMP"), (b"RIFF", "WebP"))
# What RisuAI packs beside a card for its own scripts, in a code of its own.
MODULE = "module.risum"
SPACE = re.compile(rb"\s+")
MAX_FILE_CHARS = 80


@dataclass(frozen=True, slots=True)
class Card:
    """What a file held: a character, its picture as PNG, and sentences about what was left out or changed."""

    character: Character
    picture: bytes | None = None
    notices: tuple[DeckError, ...] = ()


def read_path(path: Path) -> Card:
    """The card in a file. Raises CharacterError for one that cannot be read or holds no character."""
    name = printable(path.name)
    try:
        if regular_size(path) > MAX_CHARX_BYTES:
            raise CharacterError("card_too_large", file=name, limit_mib=MAX_CHARX_BYTES // 2**20)
        content = path.read_bytes()
    except FileNotFoundError:
        raise CharacterError("card_no_file", file=printable(str(path))) from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise CharacterError("unreadable", file=printable(str(path)), why=why) from None
    return read_card(path.name, content)


def read_card(file_name: str, content: bytes) -> Card:
    """The card in the bytes of a file: PNG, CHARX, JSON or YAML. Raises CharacterError with a sentence."""
    file = shown_name(file_name)
    if not content:
        raise CharacterError("card_empty", file=file)
    if file_name.lower().endswith(".jsonl") and b"\n{" in content:
        raise CharacterError("card_is_chat", file=file)
    if content.startswith(SIGNATURE):
        card = _read_png(file, content)
    elif content.startswith(ZIP):
        card = _read_charx(file, content)
    elif _has_zip(content):
        # RisuAI hides a CHARX behind a JPEG, so that sites for pictures take it.
        card = _read_charx(file, content, front=content)
    else:
        card = _read_text(file, content)
    card = _named(file, card)
    check_name(card.character.name)
    return replace(card, notices=(*card.notices, *character_notices(file, card.character)))


def shown_name(file_name: str) -> str:
    """A file's name as a sentence quotes it, without what would turn the words beside it."""
    return read_name(printable(PureWindowsPath(file_name).name))[-MAX_FILE_CHARS:]


def read_text(file: str, content: bytes) -> dict[str, Any]:
    """The plain values in JSON or YAML. Raises CharacterError; `file` is the name that it quotes."""
    kind = next((kind for mark, kind in PICTURES if content.startswith(mark)), None)
    if kind is not None:
        raise CharacterError("card_other_picture", file=file, kind=kind)
    text = decode_text(file, content)
    return parse_json(file, text) if text.lstrip()[:1] in ("{", "[") else parse_yaml(file, text)


def write(character: Character, picture: bytes, kind: Format) -> bytes:
    """The file of this kind: "json" is V3, "v2" a V2 card in JSON. `picture` is a PNG, which only "png" needs.

    Raises CharacterError for a picture that is none.
    """
    if kind == "yaml":
        return write_yaml(write_file(character)).encode()
    if kind == "png":
        cards = {"chara": write_backfill(character), "ccv3": write_card(character, 3)}
        texts = {
            keyword: base64.b64encode(write_json(card, is_compact=True).encode()) for keyword, card in cards.items()
        }
        return with_cards(character.name[:MAX_FILE_CHARS], picture, texts)
    return write_json(write_card(character, 2 if kind == "v2" else 3)).encode()


def _read_text(file: str, content: bytes) -> Card:
    values = read_text(file, content)
    data = values.get("data")
    picture = main_icon(file, data, None) if isinstance(data, dict) else picture_at(file, values.get("avatar"))
    return Card(read_object(file, values), picture, _notices(file, values))


def _read_png(file: str, content: bytes) -> Card:
    texts = read_cards(file, content)
    picture = without_cards(file, content)
    if not texts:
        if _has_zip(content):
            return _read_charx(file, content, front=picture)
        raise CharacterError("png_no_card", file=file)
    first, *others = (texts[keyword] for keyword in KEYWORDS if keyword in texts)
    try:
        return _read_packed(file, first, picture)
    except CharacterError:
        # An older copy of the card beside a damaged one is better than none.
        if not others:
            raise
        card = _read_packed(file, others[0], picture)
        return replace(card, notices=(*card.notices, CharacterError("card_older_copy", file=file)))


def _read_packed(file: str, text: bytes, picture: bytes) -> Card:
    values = parse_json(file, decode_text(file, _decode(file, text)))
    return Card(read_object(file, values), picture, _notices(file, values))


def _read_charx(file: str, content: bytes, front: bytes | None = None) -> Card:
    """The card in a zip. `front` is the picture that the zip lies behind, the character's where the card has none."""
    charx = open_charx(file, content)
    values = parse_json(file, decode_text(file, charx.read(CARD)))
    data = values.get("data")
    if not isinstance(data, dict):
        raise CharacterError("card_no_character", file=file)
    picture = main_icon(file, data, charx)
    data, notices = keep_embedded(file, data, charx, picture is not None)
    if picture is None and front is not None:
        with suppress(CharacterError):
            picture = as_png(file, front)
    if MODULE in charx.names:
        notices.append(CharacterError("card_module", file=file, name=MODULE))
    return Card(read_object(file, values | {"data": data}), picture, (*_notices(file, values), *notices))


def _named(file: str, card: Card) -> Card:
    """The card with the file's name where it has none: some programs call a character as its file is called."""
    name = file.rpartition(".")[0].strip() if "." in file else file
    if card.character.name or not name:
        return card
    notice = CharacterError("card_named_by_file", file=file, name=name)
    return Card(replace(card.character, name=name), card.picture, (*card.notices, notice))


def _has_zip(content: bytes) -> bool:
    return zipfile.is_zipfile(io.BytesIO(content))


def _decode(file: str, text: bytes) -> bytes:
    """Base64, as the specifications have it, or the JSON itself, as some programs do."""
    if text.lstrip().startswith(b"{"):
        return text
    packed = SPACE.sub(b"", text).rstrip(b"=")
    try:
        return base64.b64decode(packed + b"=" * (-len(packed) % 4), validate=True)
    except binascii.Error:
        raise CharacterError("card_bad_base64", file=file) from None


def _notices(file: str, values: Mapping[str, Any]) -> tuple[DeckError, ...]:
    version = newer_version(values)
    return (CharacterError("card_newer", file=file, version=version),) if version else ()
