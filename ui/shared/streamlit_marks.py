"""Streamlit's own additions to Markdown, written such that they stand as the letters they are.

Streamlit makes colours of `:red[x]`, pictures of `:smile:` and `:material/home:`, and an arrow of ` -> `. Of a text
that others wrote that is never meant.
"""

from __future__ import annotations

import re

# A directive (`:red[x]`, `:::note`) begins with a colon before a letter; a colon before a colon may begin a longer one.
# A table's `|:---:|` has neither.
DIRECTIVE = r":(?=[^\W\d_]|:)"
# Names of pictures are looked for after Markdown was read, so no backslash hides them. `12:30:45` is no name.
# Where a name ends is found first: an endless word would be searched again for each of its letters.
PICTURE = r":(?=(?:[+-]1|100|1234):|(?=[\w+-]+:)[^A-Za-z:]*[A-Za-z]|material/)"
# Between spaces only. `--` may also be the line under a heading or under a table's head.
ARROW = r"(?<=[^\s|:-][ \t])(?:<->|->|<-|--|>=|<=|~=)(?=\s|\Z)"
MARK = rf"(?P<picture>\\?{PICTURE})|(?P<directive>{DIRECTIVE})|(?P<arrow>{ARROW})"
_MARK = re.compile(MARK)


def plain_mark(found: re.Match[str]) -> str:
    """What a match of MARK has to be written as."""
    if found["picture"]:
        return _apart(r"\:")
    if found["directive"]:
        return r"\:"
    return found["arrow"][0] + _apart(rf"\{found['arrow'][1]}") + found["arrow"][2:]


def without_marks(text: str) -> str:
    """`text`, none of which Streamlit takes for a mark of its own."""
    return _MARK.sub(plain_mark, text)


def _apart(letter: str) -> str:
    """A letter that is a text of its own to Streamlit, and looks like any other: coloured in no colour."""
    return f":color[{letter}]"
