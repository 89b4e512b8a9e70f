"""The text chunks of a PNG or APNG, where a character card lies, read and written.

Layout: a signature, then chunks of length, kind, data and checksum (https://www.w3.org/TR/png-3).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from core.personas.character import CharacterError
from core.personas.parse import MAX_TEXT_BYTES

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_PNG_BYTES = 64 * 2**20
MAX_PIXELS = 50_000_000
MAX_CHUNKS = 100_000
# Chunks of text with these keywords, in any letter case, are cards; the first of the two goes before the second.
KEYWORDS = ("ccv3", "chara")


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk: its kind, such as b"IDAT", its data, and all of its bytes."""

    kind: bytes
    data: memoryview
    raw: memoryview


def check_png(file: str, png: bytes) -> None:
    """Raise CharacterError for a PNG that ends too early, is damaged, or has more pixels than the limit."""
    for _ in read_chunks(file, png):
        pass


def read_chunks(file: str, png: bytes) -> Iterator[Chunk]:
    """Every chunk, up to the last one. Raises CharacterError as check_png does; `file` is the name that it quotes."""
    if len(png) > MAX_PNG_BYTES:
        raise CharacterError("card_too_large", file=file, limit_mib=MAX_PNG_BYTES // 2**20)
    view, place = memoryview(png), len(SIGNATURE)
    for number in range(MAX_CHUNKS):
        head = view[place : place + 8]
        if len(head) < 8:
            raise CharacterError("png_truncated", file=file)
        length, kind = struct.unpack(">I4s", head)
        end = place + 12 + length
        if end > len(png):
            raise CharacterError("png_truncated", file=file)
        chunk = Chunk(kind, view[place + 8 : end - 4], view[place:end])
        if zlib.crc32(chunk.raw[4:-4]) != struct.unpack(">I", chunk.raw[-4:])[0]:
            raise CharacterError("png_damaged", file=file)
        if number == 0:
            _check_head(file, chunk)
        yield chunk
        if kind == b"IEND":
            return
        place = end
    raise CharacterError("png_damaged", file=file)


def read_cards(file: str, png: bytes) -> dict[str, bytes]:
    """The texts of the picture's cards by keyword, "ccv3" and "chara"."""
    return read_texts(file, png, KEYWORDS)


def read_texts(file: str, png: bytes, keywords: Collection[str]) -> dict[str, bytes]:
    """The texts with these keywords, in lower case: of several with one keyword the first."""
    found: dict[str, bytes] = {}
    for chunk in read_chunks(file, png):
        keyword = _keyword(chunk)
        if keyword in keywords and keyword not in found:
            found[keyword] = _text(file, chunk)
    return found


def without_cards(file: str, png: bytes) -> bytes:
    """The picture alone, all its other chunks as they were."""
    kept = (chunk.raw for chunk in read_chunks(file, png) if _keyword(chunk) not in KEYWORDS)
    return b"".join((SIGNATURE, *kept))


def with_cards(file: str, png: bytes, cards: Mapping[str, bytes]) -> bytes:
    """The picture with these texts by keyword, in place of any cards it holds.

    They come before the pixels: some programs look no further.
    """
    first, *others = (chunk.raw for chunk in read_chunks(file, png) if _keyword(chunk) not in KEYWORDS)
    written = (_chunk(b"tEXt", keyword.encode() + b"\0" + text) for keyword, text in cards.items())
    return b"".join((SIGNATURE, first, *written, *others))


def _check_head(file: str, chunk: Chunk) -> None:
    if chunk.kind != b"IHDR" or len(chunk.data) != 13:
        raise CharacterError("png_damaged", file=file)
    width, height = struct.unpack(">II", chunk.data[:8])
    if not width or not height:
        raise CharacterError("png_damaged", file=file)
    if width * height > MAX_PIXELS:
        raise CharacterError("picture_too_large", file=file, width=width, height=height, limit=MAX_PIXELS // 10**6)


def _keyword(chunk: Chunk) -> str:
    """The keyword of a chunk of text in lower case, empty for all others; it has at most 79 bytes."""
    if chunk.kind not in (b"tEXt", b"zTXt", b"iTXt"):
        return ""
    keyword, _, _ = bytes(chunk.data[:80]).partition(b"\0")
    return keyword.decode("latin-1").strip().lower()


def _text(file: str, chunk: Chunk) -> bytes:
    """The text of a chunk of text, unpacked."""
    _, _, rest = bytes(chunk.data).partition(b"\0")
    if chunk.kind == b"tEXt":
        return rest
    if chunk.kind == b"zTXt":
        return _unpack(file, rest[1:])
    # Two bytes say whether and how it is packed, then come a language and the keyword in that language.
    is_packed, parts = rest[:1] == b"\1", rest[2:].split(b"\0", 2)
    text = parts[2] if len(parts) == 3 else b""
    return _unpack(file, text) if is_packed else text


def _unpack(file: str, packed: bytes) -> bytes:
    """Raises CharacterError for more than the limit; no more than that is ever unpacked."""
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(packed, MAX_TEXT_BYTES)
    except zlib.error:
        raise CharacterError("png_damaged", file=file) from None
    if unpacker.unconsumed_tail:
        raise CharacterError("card_too_large", file=file, limit_mib=MAX_TEXT_BYTES // 2**20)
    return text


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
