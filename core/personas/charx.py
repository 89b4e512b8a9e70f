"""CHARX files: zips with a card and its pictures, read within limits. Writes nothing to disk."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from dataclasses import dataclass

from core.personas.character import CharacterError
from core.personas.parse import MAX_TEXT_BYTES

MAX_CHARX_BYTES = 256 * 2**20
MAX_ENTRIES = 5_000
# What all entries may be unpacked, and how many times more than packed: text packs 10 : 1, a bomb 1000 : 1.
MAX_UNPACKED_BYTES = 2**30
MAX_RATIO = 200
CARD = "card.json"
ZIP = b"PK\x03\x04"
# Each entry has this mark in the list at the zip's end. What the list says of itself is not believed.
ENTRY_MARK = b"PK\x01\x02"
# Others unpack a whole piece at once, however much that is, and no program writes a CHARX with them.
PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
CHUNK_BYTES = 2**16
FAULTS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    OSError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    LookupError,
    OverflowError,
)


@dataclass(frozen=True, slots=True)
class Charx:
    """A CHARX file that is within the limits."""

    file: str
    zip: zipfile.ZipFile

    @property
    def names(self) -> list[str]:
        return [info.filename for info in self.zip.infolist() if not info.is_dir()]

    def size_bytes(self, name: str) -> int:
        """The size of an entry when unpacked; 0 where there is none of this name."""
        return self.zip.getinfo(name).file_size if name in self.zip.NameToInfo else 0

    def read(self, name: str, limit_bytes: int = MAX_TEXT_BYTES) -> bytes:
        """An entry's bytes. Raises CharacterError for one that is missing, damaged or larger than the limit.

        Unpacked piece by piece: an entry may unpack to more than the zip says of it.
        """
        if name not in self.zip.NameToInfo:
            raise CharacterError("charx_missing", file=self.file, name=name)
        if self.size_bytes(name) > limit_bytes:
            raise CharacterError("card_too_large", file=self.file, limit_mib=limit_bytes // 2**20)
        content = bytearray()
        try:
            with self.zip.open(name) as entry:
                while len(content) <= limit_bytes and (chunk := entry.read(CHUNK_BYTES)):
                    content += chunk
        except FAULTS:
            raise CharacterError("charx_damaged", file=self.file) from None
        if len(content) > limit_bytes:
            raise CharacterError("card_too_large", file=self.file, limit_mib=limit_bytes // 2**20)
        return bytes(content)


def open_charx(file: str, content: bytes) -> Charx:
    """The zip in `content`. Raises CharacterError for one that is damaged, encrypted, or unpacks to more than the
    limits. `file` is the name that a sentence quotes."""
    if len(content) > MAX_CHARX_BYTES:
        raise CharacterError("card_too_large", file=file, limit_mib=MAX_CHARX_BYTES // 2**20)
    count = content.count(ENTRY_MARK)
    if count > MAX_ENTRIES:
        raise CharacterError("charx_bomb", file=file, count=count, size_mib=len(content) // 2**20)
    try:
        opened = zipfile.ZipFile(io.BytesIO(content))
    except FAULTS:
        raise CharacterError("charx_damaged", file=file) from None
    entries = opened.infolist()
    unpacked = sum(entry.file_size for entry in entries)
    ratio = max((entry.file_size / max(entry.compress_size, 1) for entry in entries), default=0)
    if len(entries) > MAX_ENTRIES or unpacked > MAX_UNPACKED_BYTES or (ratio > MAX_RATIO and unpacked > 2**20):
        raise CharacterError("charx_bomb", file=file, count=len(entries), size_mib=unpacked // 2**20)
    if any(entry.flag_bits & 1 for entry in entries):
        raise CharacterError("charx_encrypted", file=file)
    if any(entry.compress_type not in PACKINGS for entry in entries):
        raise CharacterError("charx_damaged", file=file)
    return Charx(file, opened)
