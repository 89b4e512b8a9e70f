r"""The formulas of an answer: where they begin and end, and how Streamlit has to be given them.

Models write them as \(..\), \[..\], $..$, $$..$$ or as an environment. Streamlit draws $$..$$ alone, and takes every
other dollar for the beginning of one, prices too.
"""

from __future__ import annotations

import re
from typing import NamedTuple

ENVIRONMENT = (
    r"\\begin\{(?P<environment>(?:equation|align|alignat|gather|[a-zA-Z]*matrix|cases|array|aligned|split)\*?)\}"
)
OPENING = rf"\\\(|\\\[|\$+|{ENVIRONMENT}"
CLOSINGS = {"\\(": "\\)", "\\[": "\\]", "$": "$", "$$": "$$"}
MAX_CHARS = 5000
# Beside a list, how far back the line is looked for that says so.
MAX_LINES_BACK = 50
BLANK_LINE = re.compile(r"\n[ \t>]*\n")
# Quotation marks, indentation and list markers, behind which a line's own text begins.
CONTAINER = re.compile(r"(?:[ \t]*>)*[ \t]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)*")
LIST_ITEM = re.compile(r"[ \t>]*(?:[-*+]|\d{1,9}[.)])[ \t]")
MARKER = re.compile(r"[^\s>]")
# What only TeX has, and what no sentence without TeX has between two dollars.
TEX = re.compile(r"\\[a-zA-Z]|[\^_{}]")
SIGN = re.compile(r"[\\^_{}=+<>/*|\d-]")
WORDS = re.compile(
    r"[A-Za-z]{4,}|\b(?:and|or|to|per|for|the|vs|each|is|in|at|of)\b|\d\s+[A-Za-z]{2,}"
    r"|[\u2e80-\u9fff\uac00-\ud7af\u3000-\u30ff\u0400-\u05ff\u0600-\u06ff]"
)
# What a formula of one line neither begins nor ends with, but what is between two prices, or two variables of a shell.
NO_BEGINNING, NO_END = re.compile(r"[\s,.;:!?/)\]}%]"), re.compile(r"(?<![\^_])[+*=<>-]|[\s,.;:?/(\[&#@~\"“–—-]")
BRACKETS = {**dict.fromkeys("([{", 1), **dict.fromkeys(")]}", -1)}
SPACES = re.compile(r"\s+")
# A parser that knows no formulas would take it for an address.
LIKE_ADDRESS = re.compile(r"<(?=[A-Za-z][A-Za-z0-9+.-]*:)")
# Their numbers would count through all messages of the page.
NUMBERED = re.compile(r"\\(begin|end)\{(equation|align|alignat|gather)\}")
# A sentence's mark behind a displayed formula belongs to it; spaces would begin the next line.
BEHIND = re.compile(r"(?:[ \t]*([.,;:。，；：])(?=\s|\Z))?[ \t]*")


class Formula(NamedTuple):
    """Where a formula ends, and what stands for it; or for the beginning of one, which ends with the text."""

    end: int
    shown: str | None


def formula_at(text: str, opening: re.Match[str]) -> Formula | None:
    """The formula that begins with a match of OPENING; None where that begins none."""
    mark = opening[0]
    if mark == "$":
        return _between_dollars(text, opening.start())
    closing = CLOSINGS.get(mark) or rf"\end{{{opening['environment']}}}"
    if mark.startswith("$$$"):
        return None
    line = _line(text, opening.start())
    if opening["environment"] and not line.is_beginning:
        return None
    end = _closing(text, opening.end(), closing)
    if end is None:
        is_open = (mark[0] == "\\" or line.is_beginning) and _is_last_paragraph(text, opening.end())
        return Formula(len(text), None) if is_open else None
    body = text[opening.end() : end].strip()
    end += len(closing)
    if not body or not re.search(r"[\w\\]", body):
        return None
    if mark == "\\(":
        return Formula(end, _inline(body, line))
    if opening["environment"]:
        return _display(text, opening.start(), end, text[opening.start() : end], line)
    has_own_lines = (line.is_beginning or text[opening.end()] == "\n") and _ends_line(text, end)
    if has_own_lines or _may_stand_in_a_line(text, end, mark, body):
        return _display(text, opening.start(), end, body, line)
    return None


# In a line ----------------------------------------------------------------------------------------------------------


def _between_dollars(text: str, begin: int) -> Formula | None:
    """As pandoc has it, no space inside of the dollars and no digit behind; and what is between is no part of a
    sentence."""
    before = text[begin - 1] if begin else " "
    line_end = text.find("\n", begin, begin + MAX_CHARS)
    end = _closing(text, begin + 1, "$", len(text) if line_end < 0 else line_end)
    if end is None or end == begin + 1 or (before.isascii() and before.isalnum()):
        return None
    body, behind = text[begin + 1 : end], text[end + 1 : end + 2]
    if behind in ("$", "{") or behind.isdecimal() or not _reads_like_formula(body):
        return None
    return Formula(end + 1, _inline(body, _line(text, begin)))


def _reads_like_formula(body: str) -> bool:
    if NO_BEGINNING.match(body) or NO_END.match(body, len(body) - 1) or "`" in body:
        return False
    depth = 0
    for one in body:
        depth += BRACKETS.get(one, 0)
        if depth < 0:
            return False
    return TEX.search(body) is not None or WORDS.search(body) is None


def _may_stand_in_a_line(text: str, end: int, mark: str, body: str) -> bool:
    r"""Escaped brackets of a link or a note, \[1\], and restaurants of $$ or $$$ are no formulas."""
    if mark == "\\[":
        return text[end : end + 1] not in ("(", "[", ":") and SIGN.search(body) is not None and not body.isdecimal()
    return text[end : end + 1] != "$" and (TEX.search(body) is not None or WORDS.search(body) is None)


def _inline(body: str, line: _Line) -> str:
    body = LIKE_ADDRESS.sub(r"\\lt ", SPACES.sub(" ", body.strip()))
    if line.is_row:
        # Here a bar would be the next cell.
        body = body.replace("\\|", "\\Vert ").replace("|", "\\vert ")
    # Two dollars are no display in a line; what is between them may have one of its own.
    return f"$${body}$$"


# Displayed ----------------------------------------------------------------------------------------------------------


def _display(text: str, begin: int, end: int, body: str, line: _Line) -> Formula:
    if line.is_row or line.is_heading:
        return Formula(end, _inline(rf"\displaystyle {body}", line))
    if behind := BEHIND.match(text, end):
        body, end = body + (behind[1] or ""), behind.end()
    body = NUMBERED.sub(r"\\\1{\2*}", LIKE_ADDRESS.sub(r"\\lt ", body))
    lines = [one.lstrip("> \t") for one in body.splitlines()]
    fence = f"\n{line.prefix}"
    shown = fence.join(["$$", *filter(None, lines), "$$"])
    if not line.is_beginning or line.is_deep:
        shown = fence + shown
    if not _ends_line(text, end):
        shown += fence
    return Formula(end, shown)


class _Line(NamedTuple):
    """The line in which a formula begins: what each further line needs in front to be in the same list or quotation."""

    prefix: str
    is_beginning: bool
    is_deep: bool
    is_row: bool
    is_heading: bool


def _line(text: str, begin: int) -> _Line:
    start = text.rfind("\n", max(0, begin - MAX_CHARS), begin) + 1
    before = text[start:begin] if start or begin <= MAX_CHARS else "…"
    container = CONTAINER.match(before)
    found = container[0] if container else ""
    own, prefix = before[len(found) :], MARKER.sub(" ", found)
    # So far in, and beside no list, it would be code. A formula's marks would not stand at a line's beginning there.
    is_deep = not found.strip() and len(found.expandtabs(4)) >= 4 and not _is_in_list(text, start, found)
    return _Line("" if is_deep else prefix, not own, is_deep, own.startswith("|"), own.startswith("#"))


def _is_in_list(text: str, start: int, prefix: str) -> bool:
    lines = text[max(0, start - MAX_CHARS) : start].splitlines()[-MAX_LINES_BACK:]
    for one in reversed(lines):
        if one.strip() and len(one) - len(one.lstrip()) < len(prefix):
            return LIST_ITEM.match(one) is not None
    return False


# Ends ---------------------------------------------------------------------------------------------------------------


def _closing(text: str, begin: int, closing: str, last: int | None = None) -> int | None:
    """Where the first `closing` stands that no backslash escapes, in this paragraph and not too far away."""
    last = min(begin + MAX_CHARS, len(text) if last is None else last)
    at = begin
    while (found := text.find(closing, at, last)) >= 0:
        body = text[begin:found]
        if (len(body) - len(body.rstrip("\\"))) % 2 == 0:
            return found if BLANK_LINE.search(body) is None else None
        at = found + 1
    return None


def _is_last_paragraph(text: str, begin: int) -> bool:
    return len(text) - begin <= MAX_CHARS and BLANK_LINE.search(text, begin) is None


def _ends_line(text: str, end: int) -> bool:
    line_end = text.find("\n", end)
    return not text[end : line_end if line_end >= 0 else len(text)].strip()
