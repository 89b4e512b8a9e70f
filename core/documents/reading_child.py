"""Reads the text of a stranger's file, in a process of its own; see core/documents/reading.py."""

from __future__ import annotations

from collections.abc import Callable

from core.common.sandbox_child import serve
from core.documents.docx import SIGNATURE as ZIP
from core.documents.docx import read_docx
from core.documents.encodings import decode
from core.documents.html_text import words_of
from core.documents.limits import MAX_CHARS, MAX_TEXT_BYTES, NO_TEXT, PART, WHOLE, Unreadable
from core.documents.pdf import read_pdf

PDF = b"%PDF-"
# Readers of PDF look for its mark so far.
PDF_MARK_BYTES = 1024
# Word's files before DOCX, and DOCX with a password.
OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
WEB_PAGES = (".html", ".htm", ".xhtml")


def prepare(_: None) -> Callable[[tuple[str, bytes]], str]:
    return read


def read(question: tuple[str, bytes]) -> str:
    """The text after a mark that says whether it is all of it, or whether it is why there is no text."""
    name, data = question
    try:
        text, is_whole = _read(name.lower(), data)
    except Unreadable as error:
        return NO_TEXT + str(error)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        return NO_TEXT + "empty"
    return (WHOLE if is_whole and len(text) <= MAX_CHARS else PART) + text[:MAX_CHARS]


def _read(name: str, data: bytes) -> tuple[str, bool]:
    if PDF in data[:PDF_MARK_BYTES]:
        return read_pdf(data)
    if data.startswith(ZIP):
        return read_docx(data)
    if data.startswith(OLE):
        raise Unreadable("old_office")
    text = decode(data[:MAX_TEXT_BYTES])
    if text is None:
        raise Unreadable("kind")
    is_whole = len(data) <= MAX_TEXT_BYTES
    if name.endswith(WEB_PAGES):
        # Its reader is slow with what is no page.
        return words_of(text[:MAX_CHARS]), is_whole and len(text) <= MAX_CHARS
    return text, is_whole


if __name__ == "__main__":
    serve(prepare)
