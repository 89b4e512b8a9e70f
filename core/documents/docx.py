"""The text of a Word document (DOCX): paragraphs as lines, the cells of a table's row beside each other."""

from __future__ import annotations

import io
import zipfile
import zlib
from typing import IO
from xml.etree.ElementTree import ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import iterparse

from core.documents.limits import MAX_CHARS, MAX_XML_BYTES, Unreadable

BODY = "word/document.xml"
SIGNATURE = b"PK\x03\x04"
# "strict" documents have the second one.
SPACES = (
    "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}",
    "{http://purl.oclc.org/ooxml/wordprocessingml/main}",
)
# The same drawing once more, for older programs.
FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
MARKS = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}


class _Bounded(io.RawIOBase):
    """The first MAX_XML_BYTES of a stream: a ZIP's own word for its size is not believed."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._left = MAX_XML_BYTES

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(min(size, self._left + 1) if size >= 0 else self._left + 1)
        self._left -= len(data)
        if self._left < 0:
            raise Unreadable("unpacked")
        return data


def read_docx(data: bytes) -> tuple[str, bool]:
    """The text, and whether that is all of it. Raises Unreadable, also for a ZIP of another kind."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if BODY not in archive.NameToInfo:
                raise Unreadable("kind")
            with archive.open(BODY) as body:
                return _read(_Bounded(body))
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError,
            ParseError, DefusedXmlException) as error:  # fmt: skip
        raise Unreadable("damaged") from error


def _read(body: _Bounded) -> tuple[str, bool]:
    pieces: list[str] = []
    num_chars = fallbacks = cells = 0
    for event, element in iterparse(body, events=("start", "end"), forbid_dtd=True):
        if element.tag == FALLBACK:
            fallbacks += 1 if event == "start" else -1
        name = next((element.tag.removeprefix(space) for space in SPACES if element.tag.startswith(space)), "")
        if event == "start":
            cells += name == "tc"
            continue
        if not fallbacks:
            piece = (element.text or "") if name == "t" else MARKS.get(name, "")
            if name == "p":
                # A cell's paragraphs stay on its row's line.
                piece = " " if cells else "\n"
            elif name == "tc":
                piece = "\t"
            elif name == "tr" and cells == 0:
                piece = "\n"
            pieces.append(piece)
            num_chars += len(piece)
        if name == "tc":
            cells -= 1
        if name in ("p", "tr"):
            element.clear()
        if num_chars > MAX_CHARS:
            return "".join(pieces), False
    text = "".join(pieces)
    return "\n".join(line.replace(" \t", "\t").rstrip() for line in text.split("\n")), True
