"""The JSON of requests. ValueCounter counts a body's values while it comes; only then is it parsed.

A parser holds Python's lock, and with it every page, for as long as it takes. That depends on the number of values
far more than on bytes: 4 MiB of text are a few milliseconds, 4 MiB of empty lists half a second.
"""

from __future__ import annotations

import json
import re
from typing import Any

from core.common.plain_json import no_number

# As many as a request of 10,000 messages in parts has, or one of a quarter of a million tokens; about 0.1 s.
MAX_VALUES = 2**18
BYTE_ORDER_MARK = "\ufeff"
HALVES, REPLACEMENT = re.compile("[\ud800-\udfff]"), "\ufffd"
PIECE_CHARS = 2**16
# Beyond it a float holds no longer every whole number.
MAX_WHOLE_FLOAT = 2.0**53


def read_json(body: bytes) -> Any:
    """The value of a body in UTF-8. Raises ValueError.

    What is no valid Unicode is U+FFFD: half a character stays in a client's history, and each of its further requests
    would fail by it. A whole number may be written as a float, as some languages know no other numbers.
    """
    text = body.decode("utf-8", "replace").removeprefix(BYTE_ORDER_MARK)
    try:
        value = json.loads(text, parse_float=_number, parse_constant=no_number)
        # Half a character can only come by an escape: the decoder leaves none.
        return _mended(value) if rb"\ud" in body or rb"\uD" in body else value
    except RecursionError:
        raise ValueError("too deeply nested") from None


def to_json(content: object) -> str:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def _number(text: str) -> int | float:
    value = float(text)
    return int(value) if value.is_integer() and abs(value) <= MAX_WHOLE_FLOAT else value


def mend(text: str) -> str:
    """`text` with U+FFFD for each half of a character. The decoder has put together those that belong together."""
    if text.isascii():
        return text
    # In pieces, between which others get Python's lock.
    return "".join(HALVES.sub(REPLACEMENT, text[at : at + PIECE_CHARS]) for at in range(0, len(text), PIECE_CHARS))


def _mended(value: Any) -> Any:
    """`value` without halves of characters."""
    if isinstance(value, str):
        return mend(value)
    if isinstance(value, list):
        return [_mended(one) for one in value]
    if isinstance(value, dict):
        return {mend(name): _mended(one) for name, one in value.items()}
    return value
