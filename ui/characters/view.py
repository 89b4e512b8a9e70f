"""Which part of the page Characters a tab shows, and what can be undone.

The address names the character (?character=Ada) or the lorebook (?lorebook=Town, of all ?lorebook=), so that a
reloaded or reopened tab finds it again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

import streamlit as st

from core.common.errors import DeckError
from ui.shared.browser import scroll_here
from ui.shared.errors import show_error
from ui.shared.i18n import tr
from ui.shared.icon_buttons import icons

PARAM, BOOK_PARAM = "character", "lorebook"
VIEW_KEY, UNDO_KEY = "characters_view", "characters_undo"
NUMBER_KEY = "characters_number"
ERROR_KEY, NOTICE_KEY = "characters_error", "characters_notice"

Part = Literal["gallery", "detail", "form", "user", "persona", "books", "book"]
# The part and the key of the character, the persona or the lorebook; a new one has none.
View = tuple[Part, str | None]
GALLERY: View = ("gallery", None)


@dataclass(frozen=True, slots=True)
class Undo:
    """What was done last, as the locale files name it ("deleted"), to whom, and what takes it back."""

    done: str
    name: str
    take_back: Callable[[], Any]
    number: int = field(default_factory=count().__next__)


def current_view(has_arrived: bool) -> View:
    """This tab's view: the address's, on arrival from another page the one shown last.

    Later an address without a name is the way back to all characters.
    """
    known: View = st.session_state.get(VIEW_KEY, GALLERY)
    if BOOK_PARAM in st.query_params:
        key = st.query_params[BOOK_PARAM]
        view: View = ("book", key) if key else ("books", None)
    elif PARAM in st.query_params:
        key = st.query_params[PARAM]
        view = known if _address(known) == {PARAM: key} else ("detail", key)
    else:
        view = known if has_arrived or not _address(known) else GALLERY
    if has_arrived:
        _set_address(view)
    st.session_state[VIEW_KEY] = view
    return view


def _address(view: View) -> dict[str, str]:
    """What the address says of a view."""
    part, key = view
    if part in ("books", "book"):
        return {BOOK_PARAM: key or ""}
    return {PARAM: key} if key is not None and part != "persona" else {}


def _set_address(view: View) -> None:
    wanted = _address(view)
    for name in (PARAM, BOOK_PARAM):
        if name not in wanted and name in st.query_params:
            del st.query_params[name]
    for name, value in wanted.items():
        if st.query_params.get(name) != value:
            st.query_params[name] = value


def show(part: Part, key: str | None = None) -> None:
    """For a button's on_click: show another part of the page."""
    st.session_state[VIEW_KEY] = (part, key)
    st.session_state[NUMBER_KEY] = st.session_state.get(NUMBER_KEY, 0) + 1
    _set_address((part, key))


def attempt(work: Callable[[], Any]) -> Any:
    """What `work` gives; None where it fails, which the page says then."""
    try:
        return work()
    except DeckError as error:
        st.session_state[ERROR_KEY] = error
        return None


def say(notice: str, **params: str | int) -> None:
    """Show the text of `notice` once, at the page's next run."""
    st.session_state[NOTICE_KEY] = (notice, params)


def offer_undo(done: str, name: str, take_back: Callable[[], Any]) -> None:
    st.session_state[UNDO_KEY] = Undo(done, name, take_back)


def draw_messages() -> None:
    """What the last click led to: an error, a word that it worked, the way to take it back.

    Another part of the page is seen from its beginning.
    """
    if number := st.session_state.get(NUMBER_KEY):
        scroll_here(f"characters_top_{number}")
    if error := st.session_state.pop(ERROR_KEY, None):
        show_error(error)
    if notice := st.session_state.pop(NOTICE_KEY, None):
        st.success(tr(f"characters.{notice[0]}", **notice[1]), icon=":material/check_circle:")
    undo: Undo | None = st.session_state.get(UNDO_KEY)
    if undo is None:
        return
    with st.container(border=True, horizontal=True, vertical_alignment="center", key="characters_undo_bar"):
        st.markdown(tr(f"characters.{undo.done}", name=undo.name), width="stretch")
        st.button(tr("characters.undo"), key=f"characters_undo_button_{undo.number}", icon=":material/undo:",
                  on_click=_undo, args=(undo,))  # fmt: skip
        with icons("characters_undo"):
            st.button(tr("characters.dismiss"), key=f"characters_undo_close_{undo.number}", icon=":material/close:",
                      type="tertiary", help=tr("characters.dismiss"), on_click=_forget_undo,
                      args=(undo,))  # fmt: skip


def _undo(undo: Undo) -> None:
    # What was done after it has an undo of its own.
    if st.session_state.get(UNDO_KEY) is undo:
        _forget_undo(undo)
        attempt(undo.take_back)


def _forget_undo(undo: Undo) -> None:
    if st.session_state.get(UNDO_KEY) is undo:
        del st.session_state[UNDO_KEY]


def new_chat_with(key: str) -> dict[str, str]:
    """What the address of the page Chat says for a new chat with a character."""
    return {"chat": "new", PARAM: key}


BACK = {"gallery": "characters.back", "user": "characters.personas_back", "books": "lorebooks.back"}


def back_button(part: Literal["gallery", "user", "books"] = "gallery") -> None:
    key = f"characters_back_{part}" if part != "gallery" else "characters_back"
    st.button(tr(BACK[part]), key=key, type="tertiary", icon=":material/arrow_back:", on_click=show, args=(part,))
