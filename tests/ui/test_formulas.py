"""Formulas in an answer, money beside them, and Streamlit's own marks, which no model means."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from ui.shared.markdown import answer_markdown, escape

# What the page draws as a formula.
DRAWN = re.compile(r"(?<![\\$])\$\$(?!\$)(.+?)\$\$(?!\$)", re.DOTALL)


def formulas(text: str) -> list[str]:
    return [found.strip(" \n>") for found in DRAWN.findall(answer_markdown(text))]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (r"So \(a^2\) is it.", "So $$a^2$$ is it."),
        ("So $E=mc^2$, as $m$ is.", "So $$E=mc^2$$, as $$m$$ is."),
        ("the $n$th and the $x$-axis", "the $$n$$th and the $$x$$-axis"),
        ("函数$f(x)$在", "函数$$f(x)$$在"),
        ("\\[\nx = 1\n\\]", "$$\nx = 1\n$$"),
        ("so\n$$\na\n\nb\n$$", "so\n\\$\\$\na\n\nb\n\\$\\$"),
        ("so $$a+b$$, then", "so \n$$\na+b,\n$$\nthen"),
        ("1. it\n   \\[ x = 1 \\]\n2. that", "1. it\n   $$\n   x = 1\n   $$\n2. that"),
        ("- $$x$$\n- b", "- $$\n  x\n  $$\n- b"),
        ("> \\[ x\n> = y \\]", "> $$\n> x\n> = y\n> $$"),
        ("so:\n\n    \\[ x = 1 \\]", "so:\n\n    \n$$\nx = 1\n$$"),
        ("\\begin{align*}\na &= b\n\\end{align*}", "$$\n\\begin{align*}\na &= b\n\\end{align*}\n$$"),
        ("\\begin{align}\na\n\\end{align}", "$$\n\\begin{align*}\na\n\\end{align*}\n$$"),
        ("| $|x|$ | \\[\\|y\\|\\] |", r"| $$\vert x\vert $$ | $$\displaystyle \Vert y\Vert $$ |"),
        (r"a costs \$5, \(x\) none", r"a costs \$5, $$x$$ none"),
        (r"\(a \text{ if } b \\ c\)", r"$$a \text{ if } b \\ c$$"),
    ],
)
def test_a_formula_is_drawn(text: str, shown: str) -> None:
    assert answer_markdown(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "$5 and $6",
        "$5-$6",
        "US$5, A$6",
        "from 5$ to 6$",
        "5$, 6$",
        "5 $/h, 6$/h",
        "($5) or ($6)",
        "(5$), (6$)",
        "$5 or 6$",
        "价格是$5，或者$6元",
        "$5（约35元），共10$",
        "$20 + $30 = $50",
        "$20+$30=$50",
        "| $5 | $6 |",
        "|$5|$6|",
        "$5 million, then $6 million$",
        "restaurants: $$, $$$ and $$ again",
        "$HOME/$USER",
        "$PATH:$HOME",
        "${a}${b}",
        "$a, $b",
        "$('#a') and $('b')",
        "$name$",
        "$",
        "$$",
        "$ $",
        "$$$$",
        "a $ b $ c",
        "\\$5 \\$6$",
        r"\\(x\\)",
        r"\[1\] and \[note\](url) and - \[ \] and \[x\]",
        "- $5\n- $6",
        "$5\n$6",
        "\\( \\)",
    ],
)
def test_money_and_other_dollars_stay(text: str) -> None:
    assert formulas(text) == []
    assert "$" not in re.sub(r"\\\$", "", answer_markdown(text))


@pytest.mark.parametrize(
    "text",
    [
        "`$x$ \\(a\\)`",
        "```\n$$\nx\n$$\n\\[y\\]\n```",
        "https://e.org/$a$/:id:/b",
        "<https://e.org/$a$>",
        "[a](https://e.org/$a$/:id:)",
        "[a]: https://e.org/$a$",
    ],
)
def test_code_and_addresses_keep_their_letters(text: str) -> None:
    assert answer_markdown(text) == text


@pytest.mark.parametrize("text", ["\\(x_1 + *y*", "so:\n\\[\nx_1\n- y_2", "$$\n\\frac{1", "> $$\n> x_1"])
def test_a_formula_that_is_still_being_written_stands_as_its_letters(text: str) -> None:
    shown = MarkdownIt().render(answer_markdown(text))
    assert formulas(text) == [] and "<em>" not in shown and "<li>" not in shown
    assert all(mark in shown for mark in re.findall(r"\w_?\d?", text))


def test_a_growing_answer_never_shows_half_a_formula() -> None:
    text = "Take \\(a_1\\), then\n\n\\[\n\\frac{a_1}{2}\n\\]\n\nand $$\\sqrt{a_1}$$ or $a_1$ for $5."
    whole = formulas(text)
    assert whole == ["a_1", "\\frac{a_1}{2}", "\\sqrt{a_1}", "a_1"]
    for length in range(len(text)):
        assert formulas(text[:length]) == whole[: len(formulas(text[:length]))]


@pytest.mark.parametrize(
    "text",
    [
        ":red[x]",
        ":smile:",
        ":material/home:",
        "a -> b",
        "std::vector",
        ":::note\nx\n:::",
        "color:red and key:value[0]",
        "\\:smile:",
        "::+1:",
        "a <-> b",
        ":100:",
        ":help[x]",
        "x :streamlit: y",
        "ls -- a",
    ],
)
@pytest.mark.parametrize("write", [answer_markdown, escape])
def test_marks_of_streamlits_own_are_letters(write: object, text: str) -> None:
    assert callable(write)
    shown = write(text)
    apart = re.sub(r":color\[(.*?)\]", "\0", shown)
    assert not re.search(r"(?<!\\):(?=[A-Za-z:])|:[\w+-]+:|:material/", apart)
    assert not re.search(r"(^|\s)(<->|->|<-|--)(\s|$)", apart)
    plain = re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", re.sub(r":color\[\\(.)\]", r"\1", shown))
    assert plain == re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text)


@pytest.mark.parametrize(
    "text", ["|:---|:-:|--|\n| -- | -- |", "a\n--", "at 12:30:45", "Note: this", "---", "a\n\n--\n"]
)
def test_a_table_a_time_and_a_colon_in_a_sentence_stay(text: str) -> None:
    assert answer_markdown(text) == text


AMOUNT = st.builds(
    "{}{}{}".format,
    st.sampled_from(["$", "US$", "A$"]),
    st.integers(0, 10**7).map("{:,}".format),
    st.sampled_from(["", ".50", "k", "M", "/month", "+", "%"]),
)
BETWEEN = st.sampled_from(
    [
        " and ",
        " or ",
        ", ",
        "-",
        "–",
        " to ",
        "/",
        " plus ",
        "; ",
        "。",
        "，或者",
        "\n",
        " (",
        ") ",
        " = ",
        " + ",
        " x ",
        "\n- ",
        " | ",
        ": ",
    ]
)


@given(st.lists(AMOUNT, min_size=1, max_size=5), st.lists(BETWEEN, min_size=6, max_size=6))
def test_a_sentence_with_prices_has_no_formula(amounts: list[str], between: list[str]) -> None:
    text = "It costs " + "".join(a + b for a, b in zip(amounts, between, strict=False)) + "in all."
    assert formulas(text) == []
    assert answer_markdown(text).count("\\$") == text.count("$")


ATOM = st.sampled_from(
    [
        "x",
        "y_1",
        "\\alpha",
        "n^2",
        "\\frac{a}{b}",
        "f(x)",
        "12",
        "\\text{if so}",
        "|z|",
        "\\sqrt{2}",
        "\\left( a \\right)",
        "\\vec{v}",
        "A'",
        "k!",
        "\\{1, 2\\}",
    ]
)
SIGNS = st.sampled_from([" + ", "-", " = ", " < ", "\\cdot ", " \\le ", "\\to ", ", "])
BODY = st.builds(
    lambda first, more: first + "".join(sign + atom for sign, atom in more),
    ATOM,
    st.lists(st.tuples(SIGNS, ATOM), max_size=4),
)
MARKS = st.sampled_from(
    [("\\(", "\\)"), ("$", "$"), ("$$\n", "\n$$"), ("\\[\n", "\n\\]"), ("\\[", "\\]"), ("$$", "$$")]
)
WORDS = st.sampled_from(["So ", "for $5, ", "其中", "**hence** ", "(see below) ", "and then\n\n", "- "])


@given(st.lists(st.tuples(WORDS, MARKS, BODY), min_size=1, max_size=4))
def test_formulas_are_found_whatever_stands_around_them(parts: list[tuple[str, tuple[str, str], str]]) -> None:
    text = "".join(f"{word}{begin}{body}{end}\n\n" for word, (begin, end), body in parts)
    # "[" alone is what Markdown writes for a bracket: a formula within a line has a sign.
    if all(begin != "\\[" or re.search(r"[\\^_{}=+<>/*|-]", body) for _, (begin, _), body in parts):
        assert formulas(text) == [body for _, _, body in parts]


@given(
    st.lists(
        st.sampled_from(
            [
                "$",
                "$$",
                "\\(",
                "\\)",
                "\\[",
                "\\]",
                "x",
                " ",
                "\n",
                "\n\n",
                "`",
                "[a](",
                ")",
                "![",
                "javascript:x",
                "\\",
                "|",
                "- ",
                "    ",
                ":red[",
                "]",
                "<a:b>",
            ]
        ),
        max_size=14,
    )
)
def test_no_formula_hides_a_bad_link_or_a_picture(pieces: list[str]) -> None:
    html = MarkdownIt("commonmark", {"html": False}).render(answer_markdown("".join(pieces)))
    assert "<img" not in html and 'href="javascript' not in html and 'href="a:' not in html


@pytest.mark.parametrize("piece", ["\\(a ", "\\[a ", "$a ", "$$a\n", "\\begin{align}", "    \\[x\\]\n", "- \\(", ":a:"])
def test_an_endless_row_of_marks_is_shown_all_the_same(piece: str) -> None:
    assert len(answer_markdown(piece * 4000)) < 40 * 4000


@pytest.mark.parametrize("text", [":" + "a" * 290_000, "](javascript:x" + "\n " * 140_000 + "]"])
def test_an_endless_word_or_blank_is_shown_all_the_same(text: str) -> None:
    assert len(answer_markdown(text)) >= 280_000


def test_formulas_follow_one_another_in_order() -> None:
    shown = answer_markdown(" ".join(f"\\(x_{{{number}}}\\)" for number in range(50)))
    numbers = [int(one) for one in re.findall(r"x_\{(\d+)\}", shown)]
    assert all(after == before + 1 for before, after in pairwise(numbers)) and len(numbers) == 50
