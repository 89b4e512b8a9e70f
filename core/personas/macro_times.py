"""Times as macros write them: in the letters of moment.js, and in other time zones."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

# moment.js's letters, as strftime has them. A text in square brackets stands for itself.
LETTERS = {
    "YYYY": "%Y", "YY": "%y", "MMMM": "%B", "MMM": "%b", "MM": "%m", "DDDD": "%j", "DD": "%d", "dddd": "%A",
    "ddd": "%a", "HH": "%H", "hh": "%I", "mm": "%M", "ss": "%S", "A": "%p", "Z": "%z",
    "LT": "%H:%M", "LTS": "%H:%M:%S", "LL": "%Y-%m-%d", "L": "%Y-%m-%d",
}  # fmt: skip
# Those without a zero before them.
SHORT = {"M": "%m", "D": "%d", "H": "%H", "h": "%I", "m": "%M", "s": "%S"}
TOKENS = re.compile(r"\[([^\]]*)\]|" + "|".join(sorted((*LETTERS, *SHORT, "a"), key=len, reverse=True)))
MAX_FORMAT_CHARS = 200
OFFSET = re.compile(r"([+-]?[0-9]{1,2})")


def formatted(now: datetime, pattern: str) -> str:
    """`now` by a pattern of moment.js, such as "DD.MM.YYYY HH:mm"."""

    def value(match: re.Match[str]) -> str:
        token = match[0]
        if token.startswith("["):
            return match[1]
        if token == "a":
            return now.strftime("%p").lower()
        return now.strftime(SHORT[token]).lstrip("0") or "0" if token in SHORT else now.strftime(LETTERS[token])

    return TOKENS.sub(value, pattern[:MAX_FORMAT_CHARS])


def time_at(now: datetime, offset: str) -> str:
    """The time of day so many hours from UTC, such as "+2"; empty for another offset."""
    match = OFFSET.fullmatch(offset)
    hours = int(match[1]) if match else 99
    return now.astimezone(timezone(timedelta(hours=hours))).strftime("%H:%M") if -14 <= hours <= 14 else ""
