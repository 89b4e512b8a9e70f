"""The format in which a model without a chat template is asked: which one it is, and the choice of another."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from core.chat.chat_formats import BY_NAME, find_format
from core.chat.model_prompt import choose_format, chosen_format, template_of
from core.common.errors import DeckError
from ui.shared.errors import show_error
from ui.shared.i18n import text, tr
from ui.shared.identity import key_of

NAME, ERROR_KEY = "format", "format_error"


def draw_chat_format(folder: Path, place: str) -> None:
    """The choice for the model in `folder`, which holds in every chat; nothing for one that brings a template.

    `place` tells the choices of several pages apart. Raises DeckError for files that cannot be read.
    """
    if template_of(folder).has_own:
        return
    if error := st.session_state.pop(ERROR_KEY, None):
        show_error(error)
    chosen = chosen_format(folder.name)
    key = key_of(f"{place}_{NAME}", folder.name, chosen if chosen in BY_NAME else "")
    found = find_format(folder)
    by_itself = text("chat.format_found", name=found.name) if found else text("chat.format_unknown")
    st.selectbox(tr("chat.format"), ["", *BY_NAME], key=key, help=tr("chat.format_help"), on_change=_choose,
                 format_func=lambda one: one or by_itself,
                 args=(folder.name, key))  # fmt: skip


def _choose(model: str, key: str) -> None:
    try:
        choose_format(model, st.session_state[key])
    except DeckError as error:
        st.session_state[ERROR_KEY] = error
