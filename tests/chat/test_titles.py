"""Titles are proposed from what was said first: short, on one line, without marks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.chat.titles import MAX_TITLE_CHARS, propose_title, shortened


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("What is the capital of France?", "What is the capital of France?"),
        ("  Hi! \n\n Can you help me with my homework? It is due soon.", "Hi! Can you help me with my homework?"),
        ("# Plan\n- **first** `x`\n- second thing to do", "Plan first x second thing to do"),
        ("```python\nprint(1)\n```\nWhy does this not work?", "Why does this not work?"),
        ("```\nonly code\n```", "only code"),
        ("今天天气怎么样？我想去公园。", "今天天气怎么样？"),
        ("你好。请用两句话解释天空为什么是蓝色的。", "你好。请用两句话解释天空为什么是蓝色的。"),
        ("Version 2.5 of the program fails", "Version 2.5 of the program fails"),
        ("word " * 40, "word word word word word word word word word…"),
        ("x" * 100, "x" * (MAX_TITLE_CHARS - 1) + "…"),
        ("?!", "?!"),
        ("", ""),
        (" \n ", ""),
    ],
)
def test_a_title_is_the_beginning_of_what_was_asked(text: str, title: str) -> None:
    assert propose_title(text) == title


@given(st.text())
def test_every_text_has_a_title_on_one_line(text: str) -> None:
    title = propose_title(text)
    assert len(title) <= MAX_TITLE_CHARS and title == " ".join(title.split())
    assert bool(title) == bool(text.strip())


def test_short_texts_stay() -> None:
    assert shortened("a b", 3) == "a b" and shortened("a bcd, efg", 8) == "a bcd…"
