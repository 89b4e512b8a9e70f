"""All personas of the user: which one is the default; the ways to make, edit, delete, import and export them."""

from __future__ import annotations

import streamlit as st

from core.common.errors import DeckError
from core.personas.fields import visible
from core.personas.persona_backup import read_backup, write_backup
from core.personas.user import (
    Personas,
    UserPersona,
    add_personas,
    delete_persona,
    read_personas,
    require_personas,
    restore_persona,
    set_default_persona,
)
from ui.characters.persona import has_user_changes, stored_face, user_drafts
from ui.characters.view import attempt, back_button, draw_messages, offer_undo, say, show
from ui.shared.errors import show_error
from ui.shared.i18n import tr
from ui.shared.markdown import escape, shortened
from ui.shared.people import person
from ui.shared.personas import persona_keys, persona_label

FACE_PX, ABOUT_CHARS = 56, 160
IMPORT_KEY = "characters_personas_imported"
MAX_BACKUP_MIB = 16
BACKUP_FILE = "personas.json"


def open_user() -> None:
    """For the button that leads here: where nothing was said yet, there is only a form to fill in."""
    personas = read_personas(person())
    is_new = len(personas.by_key) == 1 and personas.by_key[personas.default].is_empty
    try:
        is_new = is_new and require_personas(person()) == personas
    except DeckError:
        is_new = False
    show("persona" if is_new else "user", personas.default if is_new else None)


def draw_user() -> None:
    back_button()
    draw_messages()
    st.header(tr("characters.user"))
    st.caption(tr("characters.personas_help") + (f" {tr('characters.user_yours')}" if person() else ""))
    try:
        personas = require_personas(person())
    except DeckError as error:
        show_error(error)
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(tr("characters.persona_new"), key="characters_persona_new", icon=":material/add:", type="primary",
                  on_click=show, args=("persona",))  # fmt: skip
        with st.popover(tr("characters.import"), icon=":material/upload:", key="characters_persona_import"):
            _draw_import()
        st.download_button(tr("characters.export"), lambda: write_backup(personas), BACKUP_FILE,
                           mime="application/json", key="characters_persona_export", icon=":material/download:",
                           on_click="ignore", help=tr("characters.personas_export_help"))  # fmt: skip
    if has_user_changes(None):
        st.caption(f":orange[:material/edit:] {tr('characters.persona_unsaved')}")
    for key in persona_keys(personas):
        _draw_one(personas, key)


def _draw_one(personas: Personas, key: str) -> None:
    persona, is_default = personas.by_key[key], key == personas.default
    with st.container(border=True, gap="xsmall", key=f"characters_persona_{key}"):
        with st.container(horizontal=True, vertical_alignment="center", wrap=False):
            try:
                face = stored_face(key)
            except DeckError as error:
                face = None
                show_error(error)
            if face is not None:
                st.image(face, width=FACE_PX, alt=persona_label(persona))
            badge = f" :green-badge[{tr('characters.persona_default')}]" if is_default else ""
            st.markdown(f"**{escape(persona_label(persona))}**{badge}", width="stretch")
        if about := shortened(persona.description, ABOUT_CHARS):
            st.caption(escape(about))
        if has_user_changes(key):
            st.markdown(f":orange-badge[:material/edit: {tr('characters.unsaved')}]")
        with st.container(horizontal=True, gap="small"):
            st.button(tr("characters.edit"), key=f"characters_persona_edit_{key}", icon=":material/edit:",
                      on_click=show, args=("persona", key))  # fmt: skip
            if not is_default:
                st.button(tr("characters.persona_make_default"), key=f"characters_persona_default_{key}",
                          icon=":material/check:", on_click=_make_default, args=(key,))  # fmt: skip
            if len(personas.by_key) > 1 or not persona.is_empty:
                st.button(tr("characters.delete"), key=f"characters_persona_delete_{key}", icon=":material/delete:",
                          on_click=_delete, args=(key, persona))  # fmt: skip


def _make_default(key: str) -> None:
    attempt(lambda: set_default_persona(key, person()))


def _delete(key: str, seen: UserPersona) -> None:
    owner = person()
    removed = attempt(lambda: delete_persona(key, owner, seen))
    if removed is not None:
        user_drafts().pop(key, None)
        offer_undo("deleted", persona_label(seen), lambda: restore_persona(removed, owner))


def _draw_import() -> None:
    key = f"{IMPORT_KEY}_{st.session_state.setdefault(IMPORT_KEY, 0)}"
    st.file_uploader(tr("characters.personas_import_label"), type=["json"], key=key, max_upload_size=MAX_BACKUP_MIB,
                     on_change=_import, args=(key,))  # fmt: skip
    st.caption(tr("characters.personas_import_help"))


def _import(key: str) -> None:
    upload = st.session_state.get(key)
    if upload is None:
        return
    st.session_state[IMPORT_KEY] += 1

    def add() -> tuple[int, int, int]:
        found, num_elsewhere = read_backup(visible(upload.name), upload.getvalue())
        return add_personas(found, person()), len(found.by_key), num_elsewhere

    if (done := attempt(add)) is not None:
        new, found, elsewhere = done
        say("personas_imported_elsewhere" if elsewhere else "personas_imported", new=new, found=found, count=elsewhere)
