"""Small pictures: made once, made anew when the picture changes, drawn where it cannot be read."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from core.personas.character import Character, CharacterError
from core.personas.store import Characters
from core.personas.thumbnails import SIDE, Thumbnails, make_thumbnail
from tests.support.cards import PICTURE

WAIT_S = 60.0


def png(colour: str, width: int = 50, height: int = 90) -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(written, "PNG")
    return written.getvalue()


def test_a_picture_of_any_shape_becomes_a_small_square() -> None:
    for width, height in ((1, 1), (10, 900), (900, 10)):
        small = Image.open(io.BytesIO(make_thumbnail("x", png("red", width, height))))
        assert (small.format, small.size) == ("WEBP", (SIDE, SIDE))
    with pytest.raises(CharacterError):
        make_thumbnail("x", b"nonsense")


def test_a_thumbnail_is_made_once_until_the_picture_changes(tmp_path: Path) -> None:
    store, thumbnails = Characters(tmp_path), Thumbnails()
    key = store.add(Character("Ada"))
    drawn = thumbnails.get(store, store.need(key)).result(WAIT_S)
    assert thumbnails.get(store, store.need(key)).result(WAIT_S) is drawn
    store.set_picture(key, png("red"))
    assert thumbnails.get(store, store.need(key)).result(WAIT_S) != drawn


def test_a_broken_picture_gives_the_drawn_one(tmp_path: Path) -> None:
    store, thumbnails = Characters(tmp_path), Thumbnails()
    key = store.add(Character("Ada"), PICTURE)
    drawn = thumbnails.get(store, store.need(store.add(Character("Bob")))).result(WAIT_S)
    (tmp_path / f"{key}.png").write_bytes(b"broken")
    assert Image.open(io.BytesIO(thumbnails.get(store, store.need(key)).result(WAIT_S))).size == (SIDE, SIDE)
    assert drawn
