"""A file as a question holds it: its name and its text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from core.common.values import printable

MAX_NAME_CHARS, MAX_ENDING_CHARS = 200, 20


@dataclass(frozen=True, slots=True)
class Document:
    """The text of a file, or its beginning where that is not the whole.

    The text is empty where another program's chat names a file that did not come along.
    """

    name: str
    size_bytes: int
    text: str
    is_whole: bool = True


def file_name(name: str) -> str:
    """A file's name without folders, on one line, and not endless; its ending stays."""
    path = PurePosixPath(" ".join(printable(name.replace("\\", "/")).split()))
    ending = path.suffix[:MAX_ENDING_CHARS]
    return f"{path.stem[: MAX_NAME_CHARS - len(ending)]}{ending}" or "?"
