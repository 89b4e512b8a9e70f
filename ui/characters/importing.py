"""Files become characters: each says whether it did, and why not."""

from __future__ import annotations

from dataclasses import dataclass, replace

import streamlit as st

from core.common.errors import DeckError
from core.personas.cards import Card, read_card
from core.personas.charx import MAX_CHARX_BYTES
from core.personas.fields import visible
from ui.characters.view import show
from ui.shared.errors import sentence
from ui.shared.i18n import tr
from ui.shared.resources import characters

RESULTS_KEY, COUNT_KEY = "characters_results", "characters_num_uploads"
UPLOAD = "characters_upload_"


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one file: a character by its key, or an error; a card that only its name keeps out waits here."""

    file: str
    name: str = ""
    key: str = ""
    notices: tuple[DeckError, ...] = ()
    error: DeckError | None = None
    card: Card | None = None


def import_file(file: str, content: bytes) -> Result:
    """Add the character in `content`; nothing else fails with it."""
    try:
        card = read_card(file, content)
    except DeckError as error:
        return Result(visible(file), error=error)
    return _add(visible(file), card)


def _add(file: str, card: Card) -> Result:
    try:
        key = characters().add(card.character, card.picture)
    except DeckError as error:
        waits = error.key == "character_name_taken"
        return Result(file, card.character.name, error=error, card=card if waits else None)
    return Result(file, card.character.name, key, card.notices)


def draw_import() -> None:
    number = st.session_state.setdefault(COUNT_KEY, 0)
    key = f"{UPLOAD}{number}"
    st.file_uploader(tr("characters.import_label"), key=key, accept_multiple_files=True,
                     max_upload_size=MAX_CHARX_BYTES // 2**20, on_change=_import, args=(number, key))  # fmt: skip
    st.caption(tr("characters.import_help"))


def _import(number: int, key: str) -> None:
    """Read every file and empty the field, so that no file is read twice."""
    uploads = st.session_state.get(key) or []
    st.session_state[RESULTS_KEY] = [import_file(upload.name, upload.getvalue()) for upload in uploads]
    st.session_state[COUNT_KEY] = number + 1


def draw_results() -> None:
    results: list[Result] = st.session_state.get(RESULTS_KEY, [])
    if not results:
        return
    with st.container(border=True, key="characters_results_box"):
        for number in range(len(results)):
            with st.container(gap="xsmall"):
                _draw_result(results, number)
        st.button(tr("characters.dismiss"), key="characters_results_close", type="tertiary", icon=":material/close:",
                  on_click=st.session_state.pop, args=(RESULTS_KEY, None))  # fmt: skip


def _draw_result(results: list[Result], number: int) -> None:
    result, batch = results[number], st.session_state[COUNT_KEY]
    if result.error is None:
        with st.container(horizontal=True, vertical_alignment="center"):
            words = tr("characters.imported", name=result.name, file=result.file)
            st.markdown(f":green[:material/check_circle:] {words}", width="stretch")
            st.button(tr("characters.look"), key=f"characters_result_{number}_{batch}", on_click=show,
                      args=("detail", result.key))  # fmt: skip
    else:
        st.markdown(f":red[:material/error:] {sentence(result.error)}")
    for notice in result.notices:
        st.caption(f":material/info: {sentence(notice)}")
    if result.card is not None:
        st.button(tr("characters.import_both"), key=f"characters_both_{number}_{batch}", icon=":material/content_copy:",
                  on_click=_import_both, args=(results, number))  # fmt: skip


def _import_both(results: list[Result], number: int) -> None:
    """Add a card under the next free name beside the one that has its name."""
    if (card := results[number].card) is None:
        return
    try:
        name = characters().free_name(card.character.name)
        results[number] = _add(results[number].file, replace(card, character=replace(card.character, name=name)))
    except DeckError as error:
        results[number] = replace(results[number], error=error)
