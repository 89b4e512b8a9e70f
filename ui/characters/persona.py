"""One persona of the user in a form: name, description, picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

import streamlit as st

from core.common.errors import DeckError
from core.personas.thumbnails import make_thumbnail
from core.personas.user import (
    PICTURE,
    UserPersona,
    add_persona,
    read_picture,
    require_personas,
    save_persona,
    save_picture,
)
from ui.characters.picture import PictureChoice, draw_picture_choice
from ui.characters.view import ERROR_KEY, back_button, draw_messages, say, show
from ui.shared.errors import show_error
from ui.shared.i18n import tr
from ui.shared.identity import begin_with
from ui.shared.people import person

DRAFTS_KEY, NAME, ABOUT = "characters_user_drafts", "characters_user_name", "characters_user_about"
_numbers = count(1)


@dataclass
class UserDraft:
    """What the form holds until it is saved, begun with what was stored then. `number` is this draft's alone.

    `key` is the persona's; a new one has none.
    """

    key: str | None
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


def draw_persona(key: str | None) -> None:
    back_button("user")
    draw_messages()
    st.header(tr("characters.user" if key is not None else "characters.persona_new"))
    st.caption(tr("characters.user_help") + (f" {tr('characters.user_yours')}" if person() else ""))
    try:
        draft = _draft(key)
    except DeckError as error:
        # It is not written over: there may be more in it than can be read.
        show_error(error)
        return
    name_key, about_key = draft.keys()
    begin_with(name_key, draft.now.name)
    begin_with(about_key, draft.now.description)
    st.text_input(tr("characters.user_name"), key=name_key, live=True, on_change=_collect, args=(draft,))
    draw_picture_choice(draft.picture, "characters_user_picture", draft.number, _stored_picture(draft), draft.now.name)
    st.text_area(tr("characters.user_about"), key=about_key, height=180, on_change=_collect, args=(draft,),
                 placeholder=tr("characters.user_about_example"))  # fmt: skip
    with st.bottom.container(horizontal=True):
        st.button(tr("characters.save"), key=f"characters_user_save_{draft.number}", type="primary",
                  icon=":material/save:", on_click=_save, args=(draft,))  # fmt: skip
        st.button(tr("characters.discard"), key=f"characters_user_discard_{draft.number}", icon=":material/close:",
                  on_click=_discard, args=(draft,))  # fmt: skip


def user_drafts() -> dict[str | None, UserDraft]:
    """This tab's drafts by the persona's key; None for a new one."""
    found: dict[str | None, UserDraft] = st.session_state.setdefault(DRAFTS_KEY, {})
    return found


def renew_user_drafts() -> None:
    """On arrival from another page: the browser has forgotten its fields, where the server may not have."""
    for draft in user_drafts().values():
        draft.number = next(_numbers)


def has_user_changes(key: str | None) -> bool:
    draft = user_drafts().get(key)
    return draft is not None and draft.is_changed


def stored_face(key: str) -> bytes | None:
    """The persona's picture, made small, if there is one. Raises DeckError."""
    picture = read_picture(person(), key)
    return make_thumbnail(PICTURE, picture) if picture is not None else None


def _draft(key: str | None) -> UserDraft:
    """Raises DeckError for a file that cannot be read, and for a persona that is gone."""
    draft = user_drafts().get(key)
    if draft is None or not draft.is_changed:
        stored = UserPersona() if key is None else require_personas(person()).need(key)
        if draft is None or stored != draft.base:
            draft = user_drafts()[key] = UserDraft(key, stored, _picture_now(key), stored)
    return draft


def _stored_picture(draft: UserDraft) -> bytes | None:
    try:
        return None if draft.key is None else stored_face(draft.key)
    except DeckError as error:
        show_error(error)
        return None


def _picture_now(key: str | None) -> bytes | None:
    """What the picture's file holds; one that cannot be read is said where it is shown."""
    try:
        return None if key is None else read_picture(person(), key)
    except DeckError:
        return None


def _collect(draft: UserDraft) -> None:
    seen = zip(draft.keys(), (draft.now.name, draft.now.description), strict=True)
    draft.now = UserPersona(*(str(st.session_state.get(key, old) or "") for key, old in seen))


def _save(draft: UserDraft) -> None:
    """Write what was typed. What another tab saved meanwhile is shown first and overwritten by a second click."""
    if user_drafts().get(draft.key) is not draft:
        return
    _collect(draft)
    try:
        if draft.key is None:
            add_persona(draft.now, person(), draft.picture.new)
        else:
            _require_same(draft, draft.key)
            save_persona(draft.now, person(), draft.key, draft.base)
            if draft.picture.is_changed:
                save_picture(draft.picture.new, person(), draft.key)
    except DeckError as error:
        st.session_state[ERROR_KEY] = error
        return
    _discard(draft)
    say("user_saved")


def _require_same(draft: UserDraft, key: str) -> None:
    stored, picture = require_personas(person()).need(key), _picture_now(key)
    is_other = stored not in (draft.base, draft.now) or (draft.picture.is_changed and picture != draft.base_picture)
    if is_other:
        draft.base, draft.base_picture = stored, picture
        raise DeckError("persona_changed")


def _discard(draft: UserDraft) -> None:
    if user_drafts().get(draft.key) is draft:
        del user_drafts()[draft.key]
        show("user")
