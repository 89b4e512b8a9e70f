"""What the list of chats says of a search's hit."""

from __future__ import annotations

import pytest

from core.chat.records import Hit
from ui.chat.history import snippet_of


@pytest.mark.parametrize(
    ("text", "found", "shown"),
    [
        ("the lighthouse keeper", "lighthouse", "the :primary[lighthouse] keeper"),
        ("a light, then", "light", "a :primary[light], then"),
        ("note:this", "this", r"note\::primary[this]"),
        ("a $5 b", "$5", r"a :primary[\$5] b"),
        ("the end", "end", "the :primary[end]"),
    ],
)
def test_what_was_found_stands_out_and_what_is_around_it_stays(text: str, found: str, shown: str) -> None:
    begin = text.index(found)
    assert snippet_of(Hit(1, "", 1, "user", 0.0, text, begin, begin + len(found))) == shown
