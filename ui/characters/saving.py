"""How a character's draft ends: saved, given up, or put aside for what another tab has saved."""

from __future__ import annotations

from dataclasses import fields

import streamlit as st

from core.common.errors import DeckError
from core.personas.character import Character, CharacterError
from core.personas.listing import Stamp
from ui.characters import view as page
from ui.characters.draft import Draft, collect, drafts, find
from ui.shared.resources import characters

# A character and its picture, as the files held them at one time.
Theirs = tuple[Character, Stamp]


def their_version(draft: Draft) -> Theirs | None:
    """What the files hold where that is no longer what the draft was begun with. Raises DeckError where it is gone."""
    if draft.key is None:
        return None
    theirs = characters().character(draft.key), characters().need(draft.key).picture_stamp
    # Another tab's picture matters only where the draft has one too.
    is_same = theirs == (draft.base, draft.picture_stamp) if draft.picture.is_changed else theirs[0] == draft.base
    return None if is_same else theirs


def changed_fields(old: Character, new: Character) -> list[str]:
    return [one.name for one in fields(Character) if getattr(old, one.name) != getattr(new, one.name)]


def save(number: int, over: Theirs | None = None) -> None:
    """Write the draft and show the character. `over` is what another tab saved meanwhile, and may be overwritten."""
    draft = collect(number)
    if draft is None:
        return
    try:
        if over is not None:
            draft.base, draft.picture_stamp = over
        saved_key = _write(draft)
    except DeckError as error:
        # The form itself says that another tab has saved.
        if not (isinstance(error, CharacterError) and error.key == "character_changed"):
            st.session_state[page.ERROR_KEY] = error
        return
    del drafts()[draft.key]
    page.say("saved", name=draft.now.name)
    page.show("detail", saved_key)


def _write(draft: Draft) -> str:
    """Raises DeckError; the draft keeps what is not on disk yet."""
    store, picture = characters(), draft.picture
    if draft.key is None:
        return store.add(draft.now, picture.new)
    if draft.now != draft.base:
        store.save(draft.key, draft.now, expected=draft.base)
        draft.base = draft.now = store.character(draft.key)
    if picture.is_changed:
        store.set_picture(draft.key, picture.new, expected=(draft.base, draft.picture_stamp))
    return draft.key


def save_as_new(number: int) -> None:
    """The file is gone: write the draft as a new character."""
    draft = collect(number)
    if draft is None:
        return
    new_key = page.attempt(lambda: characters().add(draft.now, draft.picture.new))
    if new_key is not None:
        del drafts()[draft.key]
        page.say("saved", name=draft.now.name)
        page.show("detail", new_key)


def take_theirs(number: int) -> None:
    if (draft := find(number)) is not None:
        del drafts()[draft.key]


def discard(number: int) -> None:
    """Leave the form without saving; what was typed can be had back."""
    draft = collect(number)
    if draft is None:
        return
    del drafts()[draft.key]
    page.show("detail" if draft.key is not None else "gallery", draft.key)
    if draft.is_changed:
        page.offer_undo("discarded", draft.now.name, lambda: _bring_back(draft))


def _bring_back(draft: Draft) -> None:
    draft.renew()
    drafts()[draft.key] = draft
    page.show("form", draft.key)
