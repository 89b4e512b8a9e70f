"""The words of a web page, without scripts, styles and tags."""

from __future__ import annotations

import re
from html.parser import HTMLParser

UNSEEN = frozenset(("script", "style", "noscript", "template", "svg"))
# Each begins a line of its own.
BLOCKS = frozenset(
    "address article aside blockquote br dd div dl dt fieldset figcaption footer form h1 h2 h3 h4 h5 h6 header hr li"
    " main nav ol option p pre section summary table title tr ul".split()
)
CELLS = frozenset(("td", "th"))


class _Words(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self._unseen: list[str] = []
        self._num_pre = 0

    def parse_html_declaration(self, i: int) -> int:
        """The library raises where a declaration is none (`<![.`); browsers take it for a comment."""
        try:
            return super().parse_html_declaration(i)
        except AssertionError:
            return self.parse_bogus_comment(i)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in UNSEEN:
            self._unseen.append(tag)
        self._num_pre += tag == "pre"
        if tag in BLOCKS:
            self.pieces.append("\n")
        elif tag in CELLS:
            self.pieces.append("\t")

    def handle_endtag(self, tag: str) -> None:
        if self._unseen and tag == self._unseen[-1]:
            self._unseen.pop()
        self._num_pre = max(0, self._num_pre - (tag == "pre"))
        if tag in BLOCKS:
            self.pieces.append("\n")

    def handle_data(self, data: str) -> None:
        if self._unseen:
            return
        if not self._num_pre:
            data = re.sub(r"\s+", " ", data)
            if not self.pieces or self.pieces[-1].endswith((" ", "\n", "\t")):
                data = data.lstrip(" ")
        self.pieces.append(data)


def words_of(page: str) -> str:
    words = _Words()
    words.feed(page)
    words.close()
    lines = (line.rstrip(" ") for line in "".join(words.pieces).split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
