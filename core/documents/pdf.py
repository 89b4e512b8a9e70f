"""The text of a PDF, page after page."""

from __future__ import annotations

import io
import logging
import time

from pypdf import PageObject, PdfReader
from pypdf.errors import DependencyError, PyPdfError

from core.documents.limits import MAX_CHARS, MAX_PAGES, PAGES_S, Unreadable

# What the library raises at damaged pages and files beside its own errors.
DAMAGE = (PyPdfError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def read_pdf(data: bytes) -> tuple[str, bool]:
    """The text, and whether that is of all pages. Raises Unreadable."""
    # It tells of each small fault of a file.
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise Unreadable("encrypted")
        return _read_pages(reader)
    except DependencyError as error:
        raise Unreadable("encrypted") from error
    except DAMAGE as error:
        raise Unreadable("damaged") from error


def _read_pages(reader: PdfReader) -> tuple[str, bool]:
    texts: list[str] = []
    num_chars = num_damaged = 0
    is_whole = True
    # The process has read other files before.
    until_s = time.process_time() + PAGES_S
    for number, page in enumerate(reader.pages):
        if number >= MAX_PAGES or num_chars > MAX_CHARS or time.process_time() > until_s:
            is_whole = False
            break
        text = _text_of(page)
        num_damaged += text is None
        if text and text.strip():
            texts.append(text.strip())
            num_chars += len(text)
    if not texts:
        raise Unreadable("damaged" if num_damaged else "no_text")
    return "\n\n".join(texts), is_whole and not num_damaged


def _text_of(page: PageObject) -> str | None:
    """A page's text; None for a damaged one, which keeps out none of the others."""
    try:
        return str(page.extract_text())
    except DAMAGE:
        return None
