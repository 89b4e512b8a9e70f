"""The form that makes or changes a character: its fields in groups, saving, and what another tab saved meanwhile."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from core.common.errors import DeckError
from core.personas.attached import with_attached
from core.personas.character import Character
from core.personas.formats import OWN
from core.personas.lore_editing import foreign_keys
from core.personas.lore_entry import MAX_NUMBER, ROLES
from core.personas.names import same_name
from core.personas.note import KEY as NOTE_KEY
from core.personas.note import read_note
from ui.characters.attached import draw_attached_choice
from ui.characters.draft import PARTS, Draft, collect, draft_of, set_shape
from ui.characters.lore_draft import note_typed
from ui.characters.lorebook import draw_foreign, draw_lorebook
from ui.characters.picture import draw_picture_choice
from ui.characters.preview import draw_preview
from ui.characters.saving import Theirs, changed_fields, discard, save, save_as_new, take_theirs, their_version
from ui.characters.view import back_button, draw_messages
from ui.shared.errors import show_error
from ui.shared.i18n import language, tr
from ui.shared.identity import begin_with
from ui.shared.markdown import escape
from ui.shared.resources import characters, thumbnails

ONE_TEXT = "text"
TABS = ("who", "talk", "rules", "lore", "card")
HEIGHTS = {"context": 320, "description": 220, "example_dialogue": 220, "greeting": 140}
DEFAULT_HEIGHT = 110


def draw_form(key: str | None) -> None:
    back_button()
    draw_messages()
    try:
        draft = draft_of(key)
    except DeckError as error:
        show_error(error)
        return
    st.header(tr("characters.editing", name=draft.base.name) if key is not None else tr("characters.making"))
    if _draw_conflict(draft):
        draft = draft_of(key)
    draft.renew_in(language())
    for name, tab in zip(TABS, st.tabs([tr(f"characters.tab_{name}") for name in TABS]), strict=True):
        with tab:
            DRAW[name](draft)
    _draw_bottom(draft, draw_preview(draft.now, draft.key or ""))


def _draw_bottom(draft: Draft, length: str) -> None:
    """The form's buttons, always in the same place: a click misses a button that moves as a field is left."""
    with st.bottom.container(horizontal=True, vertical_alignment="center"):
        st.button(tr("characters.save"), key=f"character_save_{draft.number}", type="primary", icon=":material/save:",
                  on_click=save, args=(draft.number,))  # fmt: skip
        st.button(tr("characters.discard"), key=f"character_discard_{draft.number}", icon=":material/close:",
                  on_click=discard, args=(draft.number,))  # fmt: skip
        unsaved = f":orange[:material/edit:] {tr('characters.unsaved')}"
        st.caption(" · ".join(words for words in (unsaved if draft.is_changed else "", length) if words))


def _draw_conflict(draft: Draft) -> bool:
    """Show what became of the file meanwhile. True where the unchanged draft was begun anew."""
    try:
        theirs: Theirs | None = their_version(draft)
    except DeckError as error:
        show_error(error)
        st.button(tr("characters.save_as_new"), key=f"character_save_as_new_{draft.number}", icon=":material/save:",
                  on_click=save_as_new, args=(draft.number,))  # fmt: skip
        return False
    if theirs is None:
        return False
    if not draft.is_changed:
        take_theirs(draft.number)
        return True
    with st.container(border=True, key="character_conflict"):
        fields = [*changed_fields(draft.base, theirs[0]), *(["picture"] if theirs[1] != draft.picture_stamp else [])]
        names = ", ".join(tr(f"characters.{name}") for name in fields)
        st.markdown(f":orange[:material/warning:] {tr('characters.conflict')}")
        st.caption(f"{tr('characters.conflict_fields')} {names}")
        with st.container(horizontal=True):
            st.button(tr("characters.keep_mine"), key=f"character_keep_mine_{draft.number}", on_click=save,
                      args=(draft.number, theirs))  # fmt: skip
            st.button(tr("characters.take_theirs"), key=f"character_take_theirs_{draft.number}", on_click=take_theirs,
                      args=(draft.number,))  # fmt: skip
    return False


def _text(draft: Draft, name: str, *, is_long: bool = True, placeholder: str = "") -> None:
    """One field of the character."""
    key = draft.field_key(name)
    begin_with(key, getattr(draft.now, name))
    label, help_text = tr(f"characters.{name}"), tr(f"characters.{name}_help")
    if is_long:
        st.text_area(label, key=key, help=help_text, height=HEIGHTS.get(name, DEFAULT_HEIGHT),
                     placeholder=placeholder, on_change=note_typed, args=(draft.number,))  # fmt: skip
    else:
        st.text_input(label, key=key, help=help_text, placeholder=placeholder, live=True,
                      on_change=note_typed, args=(draft.number,))  # fmt: skip


def _draw_who(draft: Draft) -> None:
    _text(draft, "name", is_long=False, placeholder=tr("characters.name_example"))
    draw_picture_choice(
        draft.picture, "character_field_picture", draft.number, _own_picture(draft), draft.key or draft.now.name
    )
    _draw_tags(draft)
    _draw_shape(draft)
    for name in ("context",) if draft.is_one_text else PARTS:
        _text(draft, name)
    if draft.is_one_text and any(getattr(draft.now, part) for part in PARTS):
        st.caption(tr("characters.parts_too"))
    _text(draft, "your_name", is_long=False)


def _own_picture(draft: Draft) -> bytes | None:
    """The stored picture, made small, if there is one."""
    entry = characters().get(draft.key) if draft.key is not None else None
    if entry is None or entry.picture_path is None:
        return None
    return thumbnails().get(characters(), entry).result()


def _draw_tags(draft: Draft) -> None:
    try:
        known = {tag for entry in characters().entries() if entry.character for tag in entry.character.tags}
    except DeckError as error:
        show_error(error)
        known = set()
    own = list(dict.fromkeys(draft.now.tags))
    key = draft.field_key("tags")
    begin_with(key, own)
    options = sorted(known.union(own, st.session_state[key]), key=same_name)
    st.multiselect(tr("characters.tags"), options, key=key, accept_new_options=True,
                   placeholder=tr("characters.tags_hint"), format_func=escape, on_change=note_typed,
                   args=(draft.number,))  # fmt: skip


def _draw_shape(draft: Draft) -> None:
    shapes = {name: tr(f"characters.shape_{name}") for name in (ONE_TEXT, "parts")}
    shape_key = draft.field_key("shape")
    begin_with(shape_key, ONE_TEXT if draft.is_one_text else "parts")
    st.segmented_control(tr("characters.shape"), list(shapes), key=shape_key, format_func=shapes.__getitem__,
                         required=True, on_change=_take_shape, args=(draft.number, shape_key))  # fmt: skip


def _take_shape(number: int, key: str) -> None:
    if shape := st.session_state.get(key):
        set_shape(number, shape == ONE_TEXT)


def _draw_talk(draft: Draft) -> None:
    _text(draft, "greeting")
    for place, greeting in enumerate(draft.now.alternate_greetings):
        key = draft.field_key(f"greeting_{place}")
        begin_with(key, greeting)
        with st.container(gap="xsmall"):
            st.text_area(tr("characters.other_greeting", number=place + 2), key=key, on_change=note_typed,
                         args=(draft.number,), height=DEFAULT_HEIGHT)  # fmt: skip
            st.button(tr("characters.remove_greeting"), key=f"character_remove_greeting_{place}_{draft.places}",
                      type="tertiary", icon=":material/delete:", on_click=_remove_greeting,
                      args=(draft.number, draft.places, place))  # fmt: skip
    st.button(tr("characters.add_greeting"), key=f"character_add_greeting_{draft.number}", icon=":material/add:",
              on_click=_add_greeting, args=(draft.number,))  # fmt: skip
    _text(draft, "example_dialogue", placeholder=tr("characters.example_example"))


def _add_greeting(number: int) -> None:
    draft = collect(number)
    if draft is not None:
        draft.now = replace(draft.now, alternate_greetings=(*draft.now.alternate_greetings, ""))


def _remove_greeting(number: int, places: int, place: int) -> None:
    """The places of those below it are others then: a second click that was meant for one of them finds nothing."""
    draft = collect(number)
    if draft is None or draft.places != places:
        return
    others = draft.now.alternate_greetings
    draft.now = replace(draft.now, alternate_greetings=others[:place] + others[place + 1 :])
    draft.renew()


def _draw_rules(draft: Draft) -> None:
    st.caption(tr("characters.rules_help"))
    _text(draft, "system_prompt")
    _text(draft, "post_history_instructions")
    _draw_note(draft)


def _draw_note(draft: Draft) -> None:
    """The character's note, which stands within the chat."""
    note = read_note(draft.now.extensions)
    for name, value in (("text", note.text), ("depth", note.depth), ("role", note.role)):
        begin_with(draft.field_key(f"note_{name}"), value)
    st.text_area(tr("characters.note"), key=draft.field_key("note_text"), help=tr("characters.note_help"),
                 height=DEFAULT_HEIGHT, on_change=note_typed, args=(draft.number,))  # fmt: skip
    with st.container(horizontal=True):
        st.number_input(tr("characters.note_depth"), min_value=0, max_value=MAX_NUMBER, step=1,
                        key=draft.field_key("note_depth"), help=tr("characters.note_depth_help"),
                        on_change=note_typed, args=(draft.number,))  # fmt: skip
        roles = {role: tr(f"characters.role_{role}") for role in ROLES}
        st.selectbox(tr("characters.note_role"), list(roles), key=draft.field_key("note_role"),
                     format_func=roles.__getitem__, on_change=note_typed, args=(draft.number,))  # fmt: skip


def _draw_lore(draft: Draft) -> None:
    st.caption(tr("characters.lore_help"))
    draw_lorebook(draft)
    draw_attached_choice(draft)


def _draw_card(draft: Draft) -> None:
    _text(draft, "nickname", is_long=False)
    _text(draft, "creator", is_long=False)
    _text(draft, "version", is_long=False)
    _text(draft, "creator_notes")
    draw_foreign(foreign_names(draft.now))


def foreign_names(character: Character) -> list[str]:
    """What the file holds beyond this form, by the names of the keys; all of it stays."""
    names = {str(key) for part in character.extra.values() for key in part} | {str(key) for key in character.extensions}
    if isinstance(character.extensions.get(NOTE_KEY), dict):
        names.discard(NOTE_KEY)
    if with_attached(character.extensions, ()).get(OWN) is None:
        names.discard(OWN)
    return sorted(names.union(foreign_keys(character.lorebook)))


DRAW = {"who": _draw_who, "talk": _draw_talk, "rules": _draw_rules, "lore": _draw_lore, "card": _draw_card}
