"""The dates of other programs' chats as seconds since 1970."""

from __future__ import annotations

import re
from datetime import datetime
from email.utils import parsedate_to_datetime

# Seconds beyond are milliseconds, those beyond are microseconds, then nanoseconds; else it is nonsense.
MAX_SECONDS = 4e9
MAX_DATE_CHARS = 100
# SillyTavern's names of files: 2024-11-29@08h05m02s, and the older 2023-06-19 @16h 20m 05s 12ms.
HUMANIZED = re.compile(r"(\d{4})-(\d{1,2})-(\d{1,2}) ?@(\d{1,2})h ?(\d{1,2})m(?: ?(\d{1,2})s)?(?: ?\d{1,3}ms)?")
# A browser's own form: Fri Nov 29 2024 08:05:02 GMT+0100 (Central European Standard Time).
BROWSER = re.compile(r"\w{3} (\w{3} \d{1,2} \d{4} \d{2}:\d{2}:\d{2}) GMT([+-]\d{4})")
WRITTEN = (
    "%B %d, %Y %I:%M%p",  # SillyTavern
    "%B %d, %Y %I:%M:%S%p",
    "%B %d, %Y %H:%M",
    "%b %d, %Y %I:%M%p",
    "%b %d, %Y %H:%M",  # text-generation-webui
    "%b %d, %Y %H:%M:%S",
    "%m/%d/%Y, %I:%M:%S%p",  # A browser's, for people in the USA
    "%Y/%m/%d %H:%M:%S",
    "%d.%m.%Y %H:%M:%S",
    "%d.%m.%Y, %H:%M:%S",
)


def seconds(value: object) -> float:
    """A time as seconds since 1970, from a number or a date in words; 0 where it says nothing."""
    if isinstance(value, str):
        return float(value) if value.isdecimal() and len(value) <= 10 else _of_words(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_SECONDS * 1e9:
        return 0.0
    while value > MAX_SECONDS:
        value = value / 1000
    return float(value)


def _of_words(text: str) -> float:
    if len(text) > MAX_DATE_CHARS:
        return 0.0
    if text.isdecimal():
        return seconds(int(text))
    text = re.sub(r"\s+", " ", text.strip())
    for parse in (datetime.fromisoformat, _humanized, _browser, _written, parsedate_to_datetime):
        try:
            time_s = parse(text).timestamp()
            return time_s if 0 <= time_s <= MAX_SECONDS else 0.0
        except (ValueError, OverflowError, OSError):
            continue
    return 0.0


def _humanized(text: str) -> datetime:
    found = HUMANIZED.fullmatch(text)
    if found is None:
        raise ValueError
    return datetime(*(int(part or 0) for part in found.groups()))  # type: ignore[arg-type]


def _browser(text: str) -> datetime:
    found = BROWSER.match(text)
    if found is None:
        raise ValueError
    return datetime.strptime(" ".join(found.groups()), "%b %d %Y %H:%M:%S %z")


def _written(text: str) -> datetime:
    # "8:05 pm" and "8:05pm" are the same.
    text = re.sub(r" (?=[ap]\.?m\.?$)", "", text, flags=re.IGNORECASE)
    for form in WRITTEN:
        try:
            return datetime.strptime(text, form)
        except ValueError:
            continue
    raise ValueError
