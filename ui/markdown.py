"""Text of models, people and file names made safe to show as Markdown; knows no page."""

from __future__ import annotations

import re

SPECIAL = re.compile(r"([\\`*_{}\[\]<>#$~|])")
# A fence runs to its end or, while an answer grows, to the end of the text; a span stays in its paragraph.
CODE = re.compile(
    r"(^[ \t]*(?P<fence>`{3,}|~{3,}).*?(?:^[ \t]*(?P=fence)[`~]*[ \t]*$|\Z)"
    r"|(?<!`)(?P<tick>`+)(?!`)(?:(?!\n\n).)+?(?<!`)(?P=tick)(?!`))",
    re.MULTILINE | re.DOTALL,
)


def escape(text: str) -> str:
    """`text` such that Markdown shows it letter by letter."""
    return SPECIAL.sub(r"\\\1", text)


def shortened(text: str, num_chars: int) -> str:
    """`text` on one line, cut with an ellipsis where it is longer than `num_chars`."""
    line = " ".join(text.split())
    return line if len(line) <= num_chars else line[: num_chars - 1].rstrip() + "…"


def answer_markdown(text: str) -> str:
    """A model's Markdown: money stays money, no picture is fetched from elsewhere, code is left alone."""
    pieces, done = [], 0
    for code in CODE.finditer(text):
        pieces += [_prose(text[done : code.start()]), code.group()]
        done = code.end()
    return "".join([*pieces, _prose(text[done:])])


def _prose(text: str) -> str:
    text = re.sub(r"(?<!\\)\$", r"\\$", text)
    # A picture's address could carry what was said to a stranger's server; as a link it waits for a click.
    return text.replace("![", "\\![")
