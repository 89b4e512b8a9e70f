"""What a model thinks before it answers: a folded line that tells for how long, and opens."""

from __future__ import annotations

import streamlit as st

from core.chat.records import Thought
from ui.shared.browser import copy_button
from ui.shared.i18n import text, tr
from ui.shared.markdown import answer_markdown

# A longer thought scrolls in a window of its own.
LONG_CHARS, LONG_PX = 2000, 360
# So much of the end is shown of one that goes on.
TAIL_CHARS = 8000


def has_words(thought: Thought | None) -> bool:
    return thought is not None and bool(thought.text.strip())


def draw_thought(message: int, thought: Thought, is_thinking: bool = False) -> None:
    """The thought of the message `message`; nothing where it is over and empty.

    The key keeps it open while its title counts the seconds.
    """
    if not is_thinking and not has_words(thought):
        return
    seconds = round(thought.seconds or 0.0)
    if is_thinking:
        title = f":shimmer[{tr('chat.thinking', seconds=seconds)}]"
    elif not thought.seconds:
        title = tr("chat.thought")
    else:
        title = tr("chat.thought_for" if thought.closing else "chat.thought_unfinished", seconds=max(1, seconds))
    words = thought.text.strip()
    if is_thinking and len(words) > TAIL_CHARS:
        # It is drawn ten times a second.
        tail = words[-TAIL_CHARS:]
        begin = tail.find("\n") + 1
        words = f"…\n{tail[begin:]}"
    is_long = len(words) > LONG_CHARS
    with st.expander(title, type="compact", key=f"thought_{message}", icon=":material/psychology:"):
        with st.container(height=LONG_PX if is_long else "content", border=False, autoscroll=is_thinking and is_long):
            st.caption(answer_markdown(words))
        if not is_thinking:
            copy_button(words, f"copy_thought_{message}", text("chat.copy_thought"), text("chat.copied"),
                        text("chat.copy_failed"))  # fmt: skip
