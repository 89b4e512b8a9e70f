"""One lorebook of its own: the form that changes it, what a sentence sets off, export, delete."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from core.chat.character_prompt import LORE_SHARE
from core.common.errors import DeckError
from core.personas.fields import visible
from core.personas.lore_editing import foreign_keys
from core.personas.lore_trial import try_sentence
from core.personas.lorebook import LoreBudget
from core.personas.lorebook_writing import write_v3, write_world_info
from core.personas.lorebooks import Book, BookEntry
from core.personas.names import file_stem
from core.personas.parse import write_json
from core.personas.user import read_persona
from ui.characters import view as page
from ui.characters.book_draft import (
    IN_ALL_CHATS,
    NAME,
    BookDraft,
    book_draft_of,
    book_drafts,
)
from ui.characters.lore_draft import collect, find, note_typed
from ui.characters.lorebook import draw_foreign, draw_lorebook
from ui.characters.preview import context_tokens, fence, loaded_model
from ui.shared.errors import show_error
from ui.shared.i18n import language, tr
from ui.shared.identity import begin_with
from ui.shared.lore import left_out_words
from ui.shared.markdown import escape, shortened
from ui.shared.people import person
from ui.shared.resources import lorebooks

SAID_KEY, JSON = "lorebooks_said", "application/json"
TITLE_CHARS, TEXT_CHARS, MAX_SHOWN = 60, 300, 20
WRITERS = {"world": (write_world_info, ".json"), "v3": (write_v3, ".v3.json")}


def draw_book(key: str) -> None:
    page.back_button("books")
    page.draw_messages()
    try:
        entry = lorebooks().get(key)
        draft = book_drafts().get(key) if entry is None else None
        if entry is None and draft is None:
            lorebooks().need(key)
        if entry is not None and entry.book is None:
            _draw_broken(entry)
            return
        draft = draft or book_draft_of(key)
    except DeckError as error:
        show_error(error)
        return
    if _draw_conflict(draft, entry):
        draft = book_draft_of(key)
    st.header(escape(visible(draft.base.name)))
    if entry is not None and entry.book is not None:
        with st.container(horizontal=True):
            with st.popover(tr("characters.export"), icon=":material/download:", key=f"lorebook_export_{key}"):
                for form in WRITERS:
                    _draw_export(entry.book, key, form)
            _delete_button(entry)
    draft.renew_in(language())
    _draw_fields(draft)
    draw_lorebook(draft)
    draw_foreign(foreign_keys(draft.book))
    _draw_trial(draft)
    _draw_bottom(draft)


def _draw_broken(entry: BookEntry) -> None:
    st.header(escape(entry.name))
    if entry.error is not None:
        show_error(entry.error)
    st.caption(tr("characters.broken_help", path=visible(str(entry.path))))
    _delete_button(entry)


def _draw_export(book: Book, key: str, form: str) -> None:
    write, ending = WRITERS[form]
    st.download_button(tr(f"lorebooks.as_{form}"), lambda: write_json(write(book.values)),
                       file_name=file_stem(book.name) + ending, mime=JSON, width="stretch",
                       key=f"lorebook_export_{form}_{key}", on_click="ignore", help=tr(f"lorebooks.as_{form}_help"),
                       icon=":material/download:")  # fmt: skip


def _draw_fields(draft: BookDraft) -> None:
    name_key, everywhere_key = draft.field_key(NAME), draft.field_key(IN_ALL_CHATS)
    begin_with(name_key, draft.now.name)
    begin_with(everywhere_key, draft.now.in_all_chats)
    st.text_input(tr("characters.name"), key=name_key, live=True, on_change=note_typed, args=(draft.number,),
                  help=tr("lorebooks.name_help"))  # fmt: skip
    st.toggle(tr("lorebooks.in_all_chats"), key=everywhere_key, on_change=note_typed, args=(draft.number,),
              help=tr("lorebooks.in_all_chats_help"))  # fmt: skip


def _draw_trial(draft: BookDraft) -> None:
    """The entries that one sentence calls up, with those that there is no place for."""
    with st.expander(tr("lorebooks.trial"), icon=":material/visibility:", key="lorebook_trial"):
        said = st.text_input(tr("lorebooks.trial_label"), key=SAID_KEY, placeholder=tr("lorebooks.trial_example"),
                             live=True, persist_state="session")  # fmt: skip
        try:
            model = loaded_model()
        except DeckError as error:
            show_error(error)
            return
        tokens = context_tokens()
        budget = LoreBudget(None if tokens is None else int(tokens * LORE_SHARE))
        found = try_sentence(draft.book, str(said or ""), read_persona(person()), model.counter.count, budget)
        if found.lore:
            kind = "exact" if model.counter.is_exact else "about"
            st.caption(tr(f"characters.tokens_{kind}", count=f"{found.num_tokens:,}"))
        elif not found.left_out:
            st.caption(tr("lorebooks.trial_nothing" if said else "lorebooks.trial_empty"))
        for one in found.lore[:MAX_SHOWN]:
            with st.container(gap="xsmall"):
                st.markdown(f"**{escape(shortened(one.title, TITLE_CHARS))}**")
                st.caption(fence(shortened(one.text, TEXT_CHARS)))
        if len(found.lore) > MAX_SHOWN:
            st.caption(f"… (+{len(found.lore) - MAX_SHOWN})")
        if found.left_out:
            left_out = [replace(one, book="") for one in found.left_out]
            st.caption(f":material/menu_book: {left_out_words(left_out)}")


def _draw_bottom(draft: BookDraft) -> None:
    with st.bottom.container(horizontal=True, vertical_alignment="center"):
        st.button(tr("characters.save"), key=f"lorebook_save_{draft.number}", type="primary", icon=":material/save:",
                  on_click=_save, args=(draft.number,))  # fmt: skip
        st.button(tr("characters.discard"), key=f"lorebook_discard_{draft.number}", icon=":material/close:",
                  on_click=_discard, args=(draft.number,))  # fmt: skip
        if draft.is_changed:
            st.caption(f":orange[:material/edit:] {tr('characters.unsaved')}")


def _draw_conflict(draft: BookDraft, entry: BookEntry | None) -> bool:
    """Show what became of the file meanwhile. True where the unchanged draft is to be begun anew."""
    if entry is None:
        show_error(DeckError("lorebook_gone", name=visible(draft.base.name)))
        st.button(tr("lorebooks.save_as_new"), key=f"lorebook_save_as_new_{draft.number}", icon=":material/save:",
                  on_click=_save_as_new, args=(draft.number,))  # fmt: skip
        return False
    if entry.book is None or entry.book == draft.base:
        return False
    if not draft.is_changed:
        del book_drafts()[draft.key]
        return True
    with st.container(border=True, key="lorebook_conflict"):
        st.markdown(f":orange[:material/warning:] {tr('lorebooks.conflict')}")
        with st.container(horizontal=True):
            st.button(tr("characters.keep_mine"), key=f"lorebook_keep_mine_{draft.number}", on_click=_save,
                      args=(draft.number, entry.book))  # fmt: skip
            st.button(tr("characters.take_theirs"), key=f"lorebook_take_theirs_{draft.number}", on_click=_take_theirs,
                      args=(draft.number,))  # fmt: skip
    return False


def _collected(number: int) -> BookDraft | None:
    draft = collect(number)
    return draft if isinstance(draft, BookDraft) else None


def _save(number: int, over: Book | None = None) -> None:
    """Write the draft. `over` is what another tab saved meanwhile, and may be overwritten."""
    draft = _collected(number)
    if draft is None:
        return
    try:
        lorebooks().save(draft.key, draft.now, over or draft.base)
    except DeckError as error:
        # The form itself says that another tab has saved.
        if error.key not in ("lorebook_changed", "lorebook_gone"):
            st.session_state[page.ERROR_KEY] = error
        return
    del book_drafts()[draft.key]
    page.say("saved", name=draft.now.name)
    page.show("book", draft.key)


def _save_as_new(number: int) -> None:
    """The file is gone: write the draft as a new lorebook."""
    draft = _collected(number)
    if draft is None:
        return
    new = page.attempt(lambda: lorebooks().add(draft.now))
    if new is not None:
        del book_drafts()[draft.key]
        page.say("saved", name=draft.now.name)
        page.show("book", new)


def _take_theirs(number: int) -> None:
    draft = find(number)
    if isinstance(draft, BookDraft):
        del book_drafts()[draft.key]


def _discard(number: int) -> None:
    """Leave the form without saving; what was typed can be had back."""
    draft = _collected(number)
    if draft is None:
        return
    del book_drafts()[draft.key]
    page.show("books")
    if draft.is_changed:
        page.offer_undo("discarded", draft.now.name, lambda: _bring_back(draft))


def _bring_back(draft: BookDraft) -> None:
    draft.renew()
    book_drafts()[draft.key] = draft
    page.show("book", draft.key)


def _delete_button(entry: BookEntry) -> None:
    st.button(tr("characters.delete"), key=f"lorebook_delete_{entry.key}", icon=":material/delete:",
              on_click=_delete, args=(entry.key, entry.name, entry.book))  # fmt: skip


def _delete(key: str, name: str, seen: Book | None) -> None:
    trashed = page.attempt(lambda: lorebooks().delete(key, seen))
    if trashed is None:
        return
    draft = book_drafts().pop(key, None)
    page.show("books")

    def bring_back() -> None:
        restored = lorebooks().restore(trashed)
        if draft is not None and restored == key:
            draft.renew()
            book_drafts()[key] = draft
        page.show("book", restored)

    page.offer_undo("deleted", name, bring_back)
