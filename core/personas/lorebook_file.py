"""Lorebooks alone as the bytes of a file, whichever program wrote them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from core.common.errors import DeckError
from core.personas.cards import read_card, read_text, shown_name
from core.personas.character import CharacterError
from core.personas.charx import ZIP
from core.personas.fields import read_name
from core.personas.lorebook_formats import read_book
from core.personas.notices import book_notices
from core.personas.parse import decode_text, parse_json
from core.personas.png import SIGNATURE, read_texts

# Where NovelAI puts a lorebook into a picture.
NOVELAI_KEYWORD = "naidata"
# What the reader of characters says of a file in which it finds none.
NO_BOOK = ("card_not_object", "card_no_character", "card_is_chat")


@dataclass(frozen=True, slots=True)
class Lorebook:
    """A lorebook as a card has it under `character_book`, its entries in a list; `name` is never empty.

    `notices` are sentences about what has no effect here.
    """

    name: str
    book: Mapping[str, Any]
    notices: tuple[DeckError, ...] = ()


def read_lorebook(file_name: str, content: bytes) -> Lorebook:
    """The lorebook in the bytes of a file: one alone, or that of a character's card. Raises CharacterError."""
    file = shown_name(file_name)
    if not content:
        raise CharacterError("card_empty", file=file)
    try:
        book = _read(file, content)
    except CharacterError as error:
        if error.key not in NO_BOOK:
            raise
        book = None
    if book is None:
        raise CharacterError("no_lorebook", file=file)
    name = read_name(book.get("name")) or read_name(PurePosixPath(file).stem) or "Lorebook"
    return Lorebook(name, book, tuple(book_notices(file, book)))


def _read(file: str, content: bytes) -> Mapping[str, Any] | None:
    if content.startswith(SIGNATURE):
        packed = read_texts(file, content, (NOVELAI_KEYWORD,)).get(NOVELAI_KEYWORD)
        if packed is not None:
            return read_book(_novelai_values(file, packed))
    elif not content.startswith(ZIP) and (book := read_book(read_text(file, content))) is not None:
        return book
    return read_card(file, content).character.lorebook or None


def _novelai_values(file: str, packed: bytes) -> dict[str, Any]:
    try:
        return parse_json(file, decode_text(file, base64.b64decode(packed, validate=True)))
    except binascii.Error:
        raise CharacterError("card_bad_base64", file=file) from None
