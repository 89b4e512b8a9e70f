"""The name of a file for a character of any name: never a path, and a name on every system."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container, Iterable

# What no system, or not every one, lets a file be called. Names of devices count with any ending.
FORBIDDEN = re.compile(r'[\x00-\x1f\x7f-\x9f/\\:*?"<>|\ud800-\udfff\u200e\u200f\u2028-\u202e\u2066-\u2069]')
DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)(\..*)?", re.IGNORECASE)
# Files may have 255 bytes; the ending, a number and what a copy adds need some.
MAX_STEM_BYTES = 120
FALLBACK = "character"


def file_stem(name: str, taken: Iterable[str] = (), fallback: str = FALLBACK) -> str:
    """A file's name without its ending, numbered where it would differ from one of `taken` in nothing but case."""
    return free_stem(name, {same_name(each) for each in taken}, fallback)


def free_stem(name: str, taken: Container[str], fallback: str = FALLBACK) -> str:
    """The same, where `taken` holds what same_name() makes of the names."""
    stem = unicodedata.normalize("NFC", FORBIDDEN.sub("_", name))
    stem = stem.encode()[:MAX_STEM_BYTES].decode(errors="ignore").strip(" .\u200d")
    if DEVICES.fullmatch(stem):
        stem = f"_{stem}"
    stem = stem or fallback
    number, numbered = 1, stem
    while same_name(numbered) in taken:
        number += 1
        numbered = f"{stem} {number}"
    return numbered


def same_name(name: str) -> str:
    """What two names have in common that people, or a disk that ignores case, take for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
