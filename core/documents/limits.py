"""How much of a file is read, for a stranger's may be endless; and what its reader answers."""

from __future__ import annotations

# More tokens than any model here has context for. Of a longer text the beginning is read.
MAX_CHARS = 2_000_000
# What of a text file is decoded: a mark and characters of at most four bytes.
MAX_TEXT_BYTES = 4 * (MAX_CHARS + 1)
MAX_PAGES = 2000
# Reading a PDF ends with the page at which so much processor time has passed.
PAGES_S = 12.0
# What the text of a DOCX may unpack to, with its markup.
MAX_XML_BYTES = 64 * 2**20
# The first character of an answer: what follows is all of the text, its beginning, or why there is none.
WHOLE, PART, NO_TEXT = "+", "-", "!"


class Unreadable(Exception):
    """A file has no text to read; its one argument says why, as the end of "unreadable_…"."""
