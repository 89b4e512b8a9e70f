"""Pictures of people's own: made into PNG, upright and of a size that a page can show; bad ones get a sentence."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from core.personas.character import CharacterError
from core.personas.pictures import MAX_SIDE, as_png
from tests.support.cards import PICTURE


def picture(kind: str, size: tuple[int, int] = (30, 20), mode: str = "RGB", **options: object) -> bytes:
    written = io.BytesIO()
    Image.new(mode, size, "red").save(written, kind, **options)
    return written.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF", "BMP"])
def test_every_usual_picture_becomes_a_png(kind: str) -> None:
    with Image.open(io.BytesIO(as_png("x", picture(kind)))) as made:
        assert (made.format, made.size) == ("PNG", (30, 20))


def test_a_png_stays_as_it_is() -> None:
    assert as_png("x", PICTURE) == PICTURE


def test_a_large_photograph_is_made_smaller_and_upright() -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    with Image.open(io.BytesIO(as_png("x", picture("JPEG", (4000, 2000), exif=turned)))) as made:
        assert made.size == (MAX_SIDE // 2, MAX_SIDE)


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (b"", "picture_unreadable"),
        (b"words", "picture_unreadable"),
        (b"\xff\xd8\xff", "picture_unreadable"),
        (picture("JPEG")[:-200], "picture_unreadable"),
        (PICTURE[:-20], "png_truncated"),
        (picture("GIF", (9000, 9000), "P"), "picture_too_large"),
        (b"\x00" * (65 * 2**20), "card_too_large"),
    ],
    ids=["empty", "words", "head", "cut", "png", "pixels", "bytes"],
)
def test_what_is_no_picture_gets_a_sentence(content: bytes, key: str) -> None:
    with pytest.raises(CharacterError) as caught:
        as_png("x", content)
    assert caught.value.key == key
