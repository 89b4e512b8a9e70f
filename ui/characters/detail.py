"""One character to read: what it is, the way to chat with it, edit, copy, export, delete. Edits nothing itself."""

from __future__ import annotations

import streamlit as st

from core.common.errors import DeckError
from core.personas.cards import FORMATS, SUFFIXES, Format, write
from core.personas.character import Character
from core.personas.fields import visible
from core.personas.listing import Entry
from core.personas.lore_editing import entry_indexes
from core.personas.names import file_stem
from core.personas.note import read_note
from core.personas.portrait import draw_portrait
from core.personas.user import read_personas, remember_persona
from ui.characters.attached import draw_attached, with_book_names
from ui.characters.draft import drafts, has_changes
from ui.characters.preview import draw_preview, fence
from ui.characters.readable import readable
from ui.characters.view import attempt, back_button, draw_messages, new_chat_with, offer_undo, say, show
from ui.shared.choices import told_apart
from ui.shared.errors import show_error
from ui.shared.i18n import language, text, tr
from ui.shared.identity import key_of
from ui.shared.markdown import answer_markdown, escape
from ui.shared.people import person
from ui.shared.personas import persona_label, persona_names
from ui.shared.resources import characters, thumbnails
from ui.shared.routing import CHAT_PAGE

MIME = {"yaml": "application/yaml", "json": "application/json", "v2": "application/json", "png": "image/png"}
SECTIONS = ("context", "description", "personality", "scenario", "example_dialogue", "system_prompt",
            "post_history_instructions")  # fmt: skip


def draw_detail(key: str) -> None:
    back_button()
    draw_messages()
    try:
        entry = characters().need(key)
    except DeckError as error:
        show_error(error)
        return
    if entry.character is None:
        _draw_broken(entry)
        return
    _draw_head(entry, entry.character)
    _choose_persona(entry)
    _draw_texts(entry, entry.character)
    draw_preview(entry.character, entry.key)


def _draw_broken(entry: Entry) -> None:
    st.header(escape(visible(entry.text_path.name)))
    if entry.error is not None:
        show_error(entry.error)
    st.caption(tr("characters.broken_help", path=visible(str(entry.text_path))))
    _delete_button(entry)


def _draw_head(entry: Entry, character: Character) -> None:
    left, right = st.columns([1, 2])
    with left:
        st.image(_picture(entry), width=220, alt=character.name)
    with right:
        with st.container(gap="xsmall"):
            st.header(escape(visible(character.name)))
            if badges := [f":gray-badge[{escape(visible(tag))}]" for tag in character.tags]:
                st.markdown(" ".join(badges))
            if words := _origin_words(character):
                st.caption(" · ".join(words))
        if notes := character.creator_notes_in(language()):
            st.markdown(fence(readable(notes, character, entry.key)))
        _draw_buttons(entry, character)
    try:
        characters().picture(entry.key)
    except DeckError as error:
        show_error(error)


def _picture(entry: Entry) -> bytes:
    return thumbnails().get(characters(), entry).result()


def _origin_words(character: Character) -> list[str]:
    words = []
    if character.nickname:
        words.append(tr("characters.is_called", name=character.called))
    if character.creator:
        words.append(tr("characters.by", name=visible(character.creator)))
    if character.version:
        words.append(tr("characters.version_is", version=visible(character.version)))
    return words


def _draw_buttons(entry: Entry, character: Character) -> None:
    with st.container(horizontal=True):
        if st.button(tr("characters.chat_with", name=character.called[:40]), key=f"character_chat_{entry.key}",
                     type="primary", icon=":material/chat:"):  # fmt: skip
            st.switch_page(CHAT_PAGE, query_params=new_chat_with(entry.key))
        words = "characters.go_on_editing" if has_changes(entry.key) else "characters.edit"
        st.button(tr(words), key=f"character_edit_{entry.key}", icon=":material/edit:", on_click=show,
                  args=("form", entry.key))  # fmt: skip
        st.button(tr("characters.duplicate"), key=f"character_duplicate_{entry.key}", icon=":material/content_copy:",
                  on_click=_duplicate, args=(entry.key,))  # fmt: skip
        with st.popover(tr("characters.export"), icon=":material/download:", key=f"character_export_{entry.key}"):
            for kind in FORMATS:
                _draw_export(entry, character, kind)
        _delete_button(entry)


def _choose_persona(entry: Entry) -> None:
    """The persona that the character remembers, where its reader has several."""
    personas = read_personas(person())
    if len(personas.by_key) < 2:
        return
    chosen = personas.of_characters.get(entry.key, "")
    usual = text("characters.persona_usual", name=persona_label(personas.by_key[personas.default]))
    names = told_apart({"": usual, **persona_names(personas)})
    key = key_of("character_persona", entry.key, chosen, words=names.values())
    st.selectbox(tr("characters.persona_with"), list(names), key=key, width=320,
                 format_func=lambda one: names.get(one, one),
                 help=tr("characters.persona_with_help"), on_change=_remember, args=(entry.key, key))  # fmt: skip


def _remember(character: str, key: str) -> None:
    attempt(lambda: remember_persona(character, st.session_state[key], person()))


def _draw_export(entry: Entry, character: Character, kind: Format) -> None:
    name = file_stem(character.name) + (".v2.json" if kind == "v2" else SUFFIXES[kind])

    def content() -> bytes:
        """Made when it is asked for: a picture takes a while. A card goes out whatever has become of its picture."""
        try:
            picture = characters().picture(entry.key) if kind == "png" else b""
        except DeckError:
            picture = draw_portrait(entry.key)
        return write(with_book_names(character), picture, kind)

    st.download_button(tr(f"characters.as_{kind}"), content, file_name=name, mime=MIME[kind], width="stretch",
                       key=f"character_export_{kind}_{entry.key}", on_click="ignore",
                       icon=":material/download:")  # fmt: skip


def _duplicate(key: str) -> None:
    new = attempt(lambda: characters().duplicate(key))
    if new is not None:
        say("duplicated", name=new)
        show("detail", new)


def _delete_button(entry: Entry) -> None:
    st.button(tr("characters.delete"), key=f"character_delete_{entry.key}", icon=":material/delete:",
              on_click=_delete, args=(entry.key, entry.name, entry.character))  # fmt: skip


def _delete(key: str, name: str, seen: Character | None) -> None:
    trashed = attempt(lambda: characters().delete(key, seen))
    if trashed is None:
        return
    draft = drafts().pop(key, None)
    show("gallery")

    def bring_back() -> None:
        restored = characters().restore(trashed)
        if draft is not None and restored == key:
            drafts()[key] = draft
        show("detail", restored)

    offer_undo("deleted", name, bring_back)


def _draw_texts(entry: Entry, character: Character) -> None:
    if character.greetings != ("",):
        st.subheader(tr("characters.greeting"))
        with st.chat_message("assistant", avatar=_picture(entry)):
            st.markdown(answer_markdown(readable(character.greeting, character, entry.key)) or tr("characters.empty"))
        for number, greeting in enumerate(character.alternate_greetings):
            with st.expander(tr("characters.other_greeting", number=number + 2)):
                st.markdown(answer_markdown(readable(greeting, character, entry.key)))
    for name in SECTIONS:
        if words := str(getattr(character, name)).strip():
            with st.expander(tr(f"characters.{name}"), expanded=name in ("context", "description")):
                st.markdown(fence(readable(words, character, entry.key)))
    if words := read_note(character.extensions).text.strip():
        with st.expander(tr("characters.note")):
            st.markdown(fence(readable(words, character, entry.key)))
    if count := len(entry_indexes(character.lorebook)):
        st.caption(
            f":material/menu_book: {tr('characters.lore_one' if count == 1 else 'characters.lore_count', count=count)}"
        )
    draw_attached(character)
