"""A person's own text in pieces: what they wrote, line by line, and the code that they pasted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

# Nothing of its first line is tried twice: for a line without an end that would grow with the square of its length.
FENCED = re.compile(
    r"^[ ]{0,3}(?P<fence>`{3,}+|~{3,}+)[ \t]*+(?P<language>[\w+#.-]*+)[^\n`]*+\n"
    r"(?P<code>.*?)(?:\n?^[ ]{0,3}(?P=fence)[`~]*[ \t]*$|\Z)",
    re.MULTILINE | re.DOTALL,
)
# How a line of code ends or begins, and hardly one of a letter.
CODE_END = re.compile(r"[;{}]\s*$|\):\s*$|=>\s*$|\\\s*$|^\s*[)\]}]+[;,]?\s*$|^\s*[\w.\[\]]+\([^()\n]*\)\s*$")
CODE_BEGINNING = re.compile(
    r"\s*(?:def |class |import |from \S+ import |return\b|elif |else:|try:|except\b|@\w|#include|#!"
    r"|(?:async )?function\b|(?:if|for|while|switch) ?\(|SELECT |INSERT |CREATE |</?[a-zA-Z][\w-]*[ />]|//|/\*|\$ \w"
    r"|(?:const|let|var|fn|func|pub|public|private|static|package|using|struct|enum) "
    r"|\w[\w.\[\]\"']* ?(?::\s?\w+ ?)?[-+*/]?= ?\S|\w+: ?[\[{\"'\d]|\"[^\"\n]*\" ?:)"
)
# Fewer lines than this may be anything.
MIN_LINES = 3


class Piece(NamedTuple):
    """`language` is None for what is no code, and empty for code that names none."""

    text: str
    language: str | None = None


def split_question(text: str) -> list[Piece]:
    """The pieces in their order; code is what stands in a fence, or several lines that look like it."""
    pieces: list[Piece] = []
    done = 0
    for found in FENCED.finditer(text):
        pieces += _unfenced(text[done : found.start()])
        pieces.append(Piece(found["code"], found["language"].lower()))
        done = found.end()
    pieces += _unfenced(text[done:])
    return [Piece(piece.text.strip("\n"), piece.language) for piece in pieces if piece.text.strip()]


def _unfenced(text: str) -> Iterator[Piece]:
    """Runs of lines that look like code, and what is between them."""
    lines, begin, prose = text.split("\n"), 0, 0
    while begin < len(lines):
        end = _code_end(lines, begin)
        if end:
            yield Piece("\n".join(lines[prose:begin]))
            yield Piece("\n".join(lines[begin:end]), "")
            prose = end
        begin = end or begin + 1
    yield Piece("\n".join(lines[prose:]))


def _code_end(lines: list[str], begin: int) -> int:
    """Behind the last line of the code that begins at `begin`; 0 where none begins there."""
    if not _is_code(lines[begin]):
        return 0
    end, num_code = begin, 0
    for place in range(begin, len(lines)):
        line = lines[place]
        if _is_code(line):
            num_code += 1
            end = place + 1
        elif line.strip() and not (line[0] in " \t" and num_code):
            break
    return end if num_code >= MIN_LINES else 0


def _is_code(line: str) -> bool:
    return CODE_BEGINNING.match(line) is not None or CODE_END.search(line) is not None
