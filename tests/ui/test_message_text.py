"""A person's text in pieces, and which way a text runs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ui.chat.question_text import Piece, split_question
from ui.chat.text_direction import is_right_to_left

PASTED = "def f(x):\n    y = x * 2\n\n    return y"


def test_fenced_code_is_a_block_in_its_language() -> None:
    text = "Please fix:\n  this\n```Python\nx = 1\n```\nThanks"
    assert split_question(text) == [Piece("Please fix:\n  this"), Piece("x = 1", "python"), Piece("Thanks")]


def test_a_fence_without_an_end_runs_to_the_end() -> None:
    assert split_question("~~~\na\n```\nb") == [Piece("a\n```\nb", "")]


@pytest.mark.parametrize(
    "code",
    [
        PASTED,
        "function f() {\n  return 1;\n}",
        "#include <stdio.h>\nint main(void) {\n  puts(x);\n}",
        "<div class='a'>\n  <p>x</p>\n</div>",
        '{\n  "a": 1,\n  "b": [2]\n}',
        "import os\nfrom sys import path\nprint(path)",
    ],
)
def test_pasted_code_is_a_block_without_a_fence(code: str) -> None:
    assert split_question(code) == [Piece(code, "")]
    assert split_question(f"What does this do?\n\n{code}\n\nI wonder.") == [
        Piece("What does this do?"),
        Piece(code, ""),
        Piece("I wonder."),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "Dear all,\n\nhere is a list:\n- one\n- two\n\nBest,\nAda",
        "Roses are red,\n  violets are blue,\nsugar is sweet.",
        "你好\n这是第二行；\n第三行（好）",
        "x = 1\nis what I wrote.\nWhy?",
        "Import taxes rose.\nClass was dull.\nReturn soon!",
        "1. a\n2. b\n3. c",
        "Q: why?\nA: because.\nQ: really?",
        "   \n",
        "",
    ],
)
def test_a_letter_is_no_code(text: str) -> None:
    assert [piece.language for piece in split_question(text)] == [None] * bool(text.strip())


@pytest.mark.parametrize("line", ["~", "```a", "```\t", "``` a`"])
def test_an_endless_line_without_an_end_is_shown_all_the_same(line: str) -> None:
    text = line[:-1] + line[-1] * 300_000 if line[-1] != "`" else f"```{' ' * 150_000}{'a' * 150_000}`\n"
    assert [piece.language for piece in split_question(text)] == [None]


@given(st.lists(st.sampled_from([*PASTED.split("\n"), "word", "```", "~~~", "", "  ", "}", "a b c."]), max_size=14))
def test_no_line_of_a_question_is_lost(lines: list[str]) -> None:
    shown = "\n".join(piece.text for piece in split_question("\n".join(lines))).split()
    words = [word for word in " ".join(lines).split() if not word.startswith(("```", "~~~"))]
    assert [word for word in shown if not word.startswith(("```", "~~~"))] == words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("مرحبا world", True),
        ("123 (שלום)", True),
        ("Hello مرحبا", False),
        ("你好", False),
        ("", False),
        ("12 + 3", False),
    ],
)
def test_a_text_runs_as_its_first_letter_does(text: str, expected: bool) -> None:
    assert is_right_to_left(text) is expected
