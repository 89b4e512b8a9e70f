"""Text of models, people and file names made safe to show as Markdown."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence

from markdown_it import MarkdownIt
from markdown_it.token import Token

from ui.shared.formulas import OPENING, formula_at
from ui.shared.streamlit_marks import MARK, plain_mark, without_marks

SPECIAL = re.compile(r"([\\`*_{}\[\]<>#$~|])")
# Where Markdown makes a link of an address as it stands, and so would show the escapes in it.
BARE = re.compile(r"(?i)(?<=http|ttps)(?=://)|(?<=www)(?=\.)")
# A fence runs to its end or, while an answer grows, to the end of the text. A span stays in its paragraph. Its length
# is limited, since for each mark without an end all that follows is searched.
CODE = (
    r"(?P<code>^[ \t]*(?P<fence>`{3,}|~{3,}).*?(?:^[ \t]*(?P=fence)[`~]*[ \t]*$|\Z)"
    r"|(?<!`)(?P<tick>`+)(?!`)(?:(?!\n\n).){1,5000}?(?<!`)(?P=tick)(?!`))"
)
# Where an answer names an address, nothing may be put in between: where a link or a reference leads, and bare ones.
NAMED = (
    r"(?P<named>(?<=\])\(\s*(?:<[^<>\n]*>|[^\s()]*(?:\([^\s()]*\)[^\s()]*)*)|^[ >]*\[[^\]\n]{1,999}\]:[ \t]*\S+"
    r"|<[A-Za-z][A-Za-z0-9+.-]*:[^\s<>]*>|(?<![A-Za-z])(?:https?://|www\.)[^\s<]*)"
)
PROSE = rf"{NAMED}|(?P<formula>{OPENING})|{MARK}|(?P<escaped>\\[!-/:-@\[-`{{-~])"
PIECE, NO_CODE = (re.compile(pattern, re.MULTILINE | re.DOTALL) for pattern in (rf"{CODE}|{PROSE}", PROSE))
PICTURE = re.compile(r"(?P<before>(?<!\\)\\*)(?P<mark>!\[)")
# At a line's beginning these would make a list or a heading.
LINE_MARK = re.compile(r"^([ \t]*)([-+=])", re.MULTILINE)
# What an address holds up to the end of its scheme, each letter of which may be written as ten (&#0000100;).
ADDRESS = r"(?P<address>[^\s<>]{0,400})"
# Where an address may begin: in a link or a picture, in what a reference means, in angle brackets. A quotation's mark
# may stand before it on a line of its own.
INLINE, DEFINITION, AUTOLINK = (
    re.compile(opening + ADDRESS + ")") for opening in (r"\((?=[\s>]*<?", r"\]:(?=[\s>]*<?", r"<(?=")
)
SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):", re.IGNORECASE)
# A browser ignores these, wherever in a scheme they stand.
UNSEEN = re.compile(r"[\x00-\x20\x7f-\xa0\xad\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff]")
# The characters with which a scheme may begin.
FIRST = re.compile(rf"[a-z&\\]|{UNSEEN.pattern}", re.IGNORECASE)
ESCAPED = re.compile(r"\\([!-/:-@\[-`{-~])")
# What a click may open. Other schemes run code (javascript:), make a page of the address itself (data:), or start other
# programs (file:, ms-msdt:).
SCHEMES = ("http", "https", "mailto", "tel")
TITLE = re.compile(r"""\s*+(?:(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|\((?:\\.|[^()\\])*\))\s*+)?\)""", re.DOTALL)
# Texts longer than the first are shown letter by letter. Texts longer than the second are not parsed: the parser's time
# grows with the square of the length.
MAX_CHARS, MAX_PARSED_CHARS = 300_000, 20_000
# The most brackets that may be open in an address.
MAX_OPEN = 32
# The parser looks no deeper; nobody writes lists as deep.
MAX_NESTING = 200


def escape(text: str) -> str:
    """`text` such that Markdown shows it letter by letter."""
    return without_marks(BARE.sub(r"\\", SPECIAL.sub(r"\\\1", text)))


def shortened(text: str, num_chars: int) -> str:
    """`text` on one line, cut with an ellipsis where it is longer than `num_chars`."""
    line = " ".join(text.split())
    return line if len(line) <= num_chars else line[: num_chars - 1].rstrip() + "…"


def answer_markdown(text: str) -> str:
    """A model's Markdown: formulas are drawn, money stays money, no picture is fetched from elsewhere, a link leads to
    a page or a mail address and to nothing else; what Streamlit adds to Markdown is left out; code is left alone.

    What is code here may be none to the page, by rules that are many. Where that would matter a parser decides.
    """
    if len(text) > MAX_CHARS:
        return escape(text)
    shown = "".join(_pieces(text))
    if not _needs_parser(shown):
        return shown
    if len(text) > MAX_PARSED_CHARS:
        return _prose(text)
    if _is_harmless(shown):
        return shown
    shown = _prose(text)
    return shown if _is_harmless(shown) else escape(text)


def _pieces(text: str) -> Iterator[str]:
    """Prose made safe, and between it code as it is and formulas as the page draws them."""
    prose, at = [], 0
    while found := PIECE.search(text, at):
        prose.append(text[at : found.start()])
        at = found.end()
        if found["code"]:
            yield _safe("".join(prose)) + found["code"]
            prose.clear()
        elif found["formula"] and (formula := formula_at(text, found)) is not None:
            shown = formula.shown or LINE_MARK.sub(r"\1\\\2", escape(text[found.start() : formula.end]))
            yield _safe("".join(prose)) + shown
            prose.clear()
            at = formula.end
        else:
            prose.append(_plain(found))
    yield _safe("".join(prose) + text[at:])


def _plain(found: re.Match[str]) -> str:
    """A match of PIECE that is neither code nor a formula."""
    if found["formula"]:
        return found[0].replace("$", r"\$")
    return found["named"] or found["escaped"] or plain_mark(found)


def has_bad_scheme(address: str) -> bool:
    """Whether a click on this address, as it stands in Markdown or as it is read from there, would open something else
    than a page or a mail."""
    if not FIRST.match(address):
        return False
    plain = UNSEEN.sub("", ESCAPED.sub(r"\1", html.unescape(address)))
    scheme = SCHEME.match(plain)
    return scheme is not None and scheme[1].lower() not in SCHEMES


def _prose(text: str) -> str:
    """`text` none of which is code or a formula."""
    return _safe(NO_CODE.sub(_plain, text))


def _safe(text: str) -> str:
    # A picture's address could carry what was said to a stranger's server; as a link it waits for a click.
    text = _escape_unescaped(PICTURE, text)
    text = _without_bad_links(text)
    text = DEFINITION.sub(lambda found: r"]\:" if has_bad_scheme(found["address"]) else found[0], text)
    return AUTOLINK.sub(lambda found: "&lt;" if has_bad_scheme(found["address"]) else found[0], text)


def _escape_unescaped(mark: re.Pattern[str], text: str) -> str:
    """A backslash before each `mark` with an even number of them before it: the others are escaped already."""
    return mark.sub(lambda one: one[0] if len(one["before"]) % 2 else rf"{one['before']}\{one['mark']}", text)


def _without_bad_links(text: str) -> str:
    """`text` where links to what must not be opened have lost their address."""
    pieces, done, at = [], 0, 0
    while (at := text.find("](", at) + 1) > 0:
        while (found := INLINE.match(text, at)) is not None and has_bad_scheme(found["address"]):
            pieces.append(text[done:at])
            done = at
            if (end := _end_of_link(text, found.start("address"))) is None:
                # No whole link yet, or none at all.
                pieces.append("\\")
                break
            # What follows could be the address now.
            done = at = end
    return "".join([*pieces, text[done:]])


def _end_of_link(text: str, at: int) -> int | None:
    """Where the link ends whose address begins at `at`; None where it is no whole link."""
    begin, depth = at, 0
    if text[at - 1] == "<":
        end = text.find(">", at)
        at = end + 1 if end >= 0 else len(text)
    else:
        while at < len(text) and not text[at].isspace() and (text[at] != ")" or depth) and depth <= MAX_OPEN:
            depth += (text[at] == "(") - (text[at] == ")")
            at += 2 if text[at] == "\\" else 1
    closing = TITLE.match(text, at)
    return closing.end() if closing and at > begin else None


def _needs_parser(shown: str) -> bool:
    """Whether anything is left that would be bad if it were no code."""
    openings = (one for kind in (INLINE, DEFINITION, AUTOLINK) for one in kind.finditer(shown))
    is_picture = any(len(one["before"]) % 2 == 0 for one in PICTURE.finditer(shown))
    return is_picture or any(has_bad_scheme(one["address"]) for one in openings)


def _is_harmless(shown: str) -> bool:
    parser = MarkdownIt("commonmark", {"maxNesting": MAX_NESTING}).enable(["table", "strikethrough"])
    parser.validateLink = lambda url: True  # type: ignore[method-assign]
    for token in _all(parser.parse(shown)):
        if token.type == "image" or (token.type == "link_open" and has_bad_scheme(str(token.attrs.get("href", "")))):
            return False
    return True


def _all(tokens: Sequence[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from _all(token.children or ())
