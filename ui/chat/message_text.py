"""How the words of a message stand on the page: a person's as they wrote them, a model's as Markdown."""

from __future__ import annotations

import streamlit as st

from ui.chat.question_text import split_question
from ui.chat.text_direction import is_right_to_left
from ui.shared.markdown import answer_markdown

# A person's own text beyond this scrolls in a window of its own.
LONG_CHARS, LONG_PX = 3000, 320
# Code and formulas run from left to right in every language. A question's row of icons is as high as its first line.
STYLE = """<style>
[data-testid="stChatMessage"] :is(p, li, h1, h2, h3, h4, h5, h6, td, th, [data-testid="stText"]) {
  unicode-bidi: plaintext; text-align: start;
}
[class*="st-key-rtl_"] { direction: rtl; }
[class*="st-key-rtl_"] :is(ul, ol) { padding: 0 1.5rem 0 0; }
[data-testid="stChatMessage"] :is(pre, code, .katex) { direction: ltr; unicode-bidi: isolate; }
[data-testid="stChatMessage"] pre { text-align: left; }
[class*="st-key-question_"] > [data-testid="stLayoutWrapper"]:has(> [class*="st-key-icons_"]) { margin: -0.5rem 0; }
</style>"""


def draw_question(text: str) -> None:
    """A person's own words, line by line as they wrote them, and their code in blocks."""
    if len(text) > LONG_CHARS:
        with st.container(height=LONG_PX, border=False):
            _draw_pieces(text)
    else:
        _draw_pieces(text)


def _draw_pieces(text: str) -> None:
    for piece in split_question(text):
        if piece.language is None:
            st.text(piece.text, width="stretch")
        else:
            st.code(piece.text, piece.language or None)


def draw_answer_text(message: int, text: str) -> None:
    """A model's words, in the direction in which they begin."""
    if is_right_to_left(text):
        with st.container(key=f"rtl_{message}"):
            st.markdown(answer_markdown(text))
    else:
        st.markdown(answer_markdown(text))
