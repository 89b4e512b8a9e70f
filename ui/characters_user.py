"""Who the user is in every chat: name, description, picture; knows no character."""

from __future__ import annotations

from dataclasses import dataclass, field

import streamlit as st

from core.errors import DeckError
from core.personas.thumbnails import make_thumbnail
from core.personas.user import UserPersona, read_picture, require_persona, save_persona, save_picture
from ui.characters import ERROR_KEY, back_button, draw_messages, say, show
from ui.characters_draft import PictureChoice
from ui.characters_picture import draw_picture_choice
from ui.errors import show_error
from ui.i18n import tr
from ui.people import person

DRAFT_KEY, NAME_KEY, ABOUT_KEY = "characters_user_draft", "characters_user_name", "characters_user_about"


@dataclass
class UserDraft:
    """What the form holds until it is saved."""

    now: UserPersona
    picture: PictureChoice = field(default_factory=PictureChoice)


def draw_user() -> None:
    back_button()
    draw_messages()
    st.header(tr("characters.user"))
    st.caption(tr("characters.user_help") + (f" {tr('characters.user_yours')}" if person() else ""))
    try:
        draft = _draft()
    except DeckError as error:
        # It is not written over: there may be more in it than can be read.
        show_error(error)
        return
    st.session_state.setdefault(NAME_KEY, draft.now.name)
    st.session_state.setdefault(ABOUT_KEY, draft.now.description)
    st.text_input(tr("characters.user_name"), key=NAME_KEY, live=True, on_change=_collect)
    draw_picture_choice(draft.picture, "characters_user_picture", _stored_picture(), draft.now.name)
    st.text_area(tr("characters.user_about"), key=ABOUT_KEY, height=180, on_change=_collect,
                 placeholder=tr("characters.user_about_example"))  # fmt: skip
    with st.bottom.container(horizontal=True):
        st.button(tr("characters.save"), key="characters_user_save", type="primary", icon=":material/save:",
                  on_click=_save)  # fmt: skip
        st.button(tr("characters.discard"), key="characters_user_discard", icon=":material/close:", on_click=_discard)


def _draft() -> UserDraft:
    """Raises DeckError for a file that cannot be read."""
    if DRAFT_KEY not in st.session_state:
        st.session_state[DRAFT_KEY] = UserDraft(require_persona(person()))
    draft: UserDraft = st.session_state[DRAFT_KEY]
    return draft


def _stored_picture() -> bytes | None:
    try:
        picture = read_picture(person())
        return make_thumbnail("persona.png", picture) if picture is not None else None
    except DeckError as error:
        show_error(error)
        return None


def _collect() -> None:
    draft = st.session_state.setdefault(DRAFT_KEY, UserDraft(UserPersona()))
    draft.now = UserPersona(str(st.session_state[NAME_KEY] or ""), str(st.session_state[ABOUT_KEY] or ""))


def _save() -> None:
    _collect()
    draft: UserDraft = st.session_state[DRAFT_KEY]
    try:
        save_persona(draft.now, person())
        if draft.picture.is_changed:
            save_picture(draft.picture.new, person())
    except DeckError as error:
        st.session_state[ERROR_KEY] = error
        return
    _discard()
    say("user_saved")


def _discard() -> None:
    for key in (DRAFT_KEY, NAME_KEY, ABOUT_KEY):
        st.session_state.pop(key, None)
    show("gallery")
