"""Who the user is in every chat: name, description, picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

import streamlit as st

from core.common.errors import DeckError
from core.personas.thumbnails import make_thumbnail
from core.personas.user import UserPersona, read_picture, require_persona, save_persona, save_picture
from ui.characters.picture import PictureChoice, draw_picture_choice
from ui.characters.view import ERROR_KEY, back_button, draw_messages, say, show
from ui.shared.errors import show_error
from ui.shared.i18n import tr
from ui.shared.people import person

DRAFT_KEY, NAME, ABOUT = "characters_user_draft", "characters_user_name", "characters_user_about"
_numbers = count(1)


@dataclass
class UserDraft:
    """What the form holds until it is saved, begun with what was stored then. `number` is this draft's alone."""

    base: UserPersona
    base_picture: bytes | None
    now: UserPersona
    picture: PictureChoice = field(default_factory=PictureChoice)
    number: int = field(default_factory=_numbers.__next__)

    @property
    def is_changed(self) -> bool:
        return self.now != self.base or self.picture.is_changed

    def keys(self) -> tuple[str, str]:
        return f"{NAME}_{self.number}", f"{ABOUT}_{self.number}"


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
    name_key, about_key = draft.keys()
    st.session_state.setdefault(name_key, draft.now.name)
    st.session_state.setdefault(about_key, draft.now.description)
    st.text_input(tr("characters.user_name"), key=name_key, live=True, on_change=_collect, args=(draft,))
    draw_picture_choice(draft.picture, "characters_user_picture", draft.number, _stored_picture(), draft.now.name)
    st.text_area(tr("characters.user_about"), key=about_key, height=180, on_change=_collect, args=(draft,),
                 placeholder=tr("characters.user_about_example"))  # fmt: skip
    with st.bottom.container(horizontal=True):
        st.button(tr("characters.save"), key=f"characters_user_save_{draft.number}", type="primary",
                  icon=":material/save:", on_click=_save, args=(draft,))  # fmt: skip
        st.button(tr("characters.discard"), key=f"characters_user_discard_{draft.number}", icon=":material/close:",
                  on_click=_discard, args=(draft,))  # fmt: skip


def _draft() -> UserDraft:
    """Raises DeckError for a file that cannot be read."""
    draft: UserDraft | None = st.session_state.get(DRAFT_KEY)
    if draft is None or not draft.is_changed:
        stored = require_persona(person())
        if draft is None or stored != draft.base:
            draft = st.session_state[DRAFT_KEY] = UserDraft(stored, _picture_now(), stored)
    return draft


def renew_user_draft() -> None:
    """On arrival from another page: the browser has forgotten its fields, where the server may not have."""
    draft: UserDraft | None = st.session_state.get(DRAFT_KEY)
    if draft is not None:
        draft.number = next(_numbers)


def _stored_picture() -> bytes | None:
    try:
        picture = read_picture(person())
        return make_thumbnail("persona.png", picture) if picture is not None else None
    except DeckError as error:
        show_error(error)
        return None


def _picture_now() -> bytes | None:
    """What the picture's file holds; one that cannot be read is said where it is shown."""
    try:
        return read_picture(person())
    except DeckError:
        return None


def _collect(draft: UserDraft) -> None:
    seen = zip(draft.keys(), (draft.now.name, draft.now.description), strict=True)
    draft.now = UserPersona(*(str(st.session_state.get(key, old) or "") for key, old in seen))


def _save(draft: UserDraft) -> None:
    """Write what was typed. What another tab saved meanwhile is shown first and overwritten by a second click."""
    if st.session_state.get(DRAFT_KEY) is not draft:
        return
    _collect(draft)
    try:
        _require_same(draft)
        save_persona(draft.now, person())
        if draft.picture.is_changed:
            save_picture(draft.picture.new, person())
    except DeckError as error:
        st.session_state[ERROR_KEY] = error
        return
    _discard(draft)
    say("user_saved")


def _require_same(draft: UserDraft) -> None:
    stored, picture = require_persona(person()), _picture_now()
    is_other = stored not in (draft.base, draft.now) or (draft.picture.is_changed and picture != draft.base_picture)
    if is_other:
        draft.base, draft.base_picture = stored, picture
        raise DeckError("persona_changed")


def _discard(draft: UserDraft) -> None:
    if st.session_state.get(DRAFT_KEY) is draft:
        del st.session_state[DRAFT_KEY]
        show("gallery")
