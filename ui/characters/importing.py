"""Files become characters or lorebooks: each says whether it did, and why not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import streamlit as st

from core.common.errors import DeckError
from core.personas.cards import Card, read_card
from core.personas.charx import MAX_CHARX_BYTES
from core.personas.fields import visible
from core.personas.lorebook_file import Lorebook, read_lorebook
from core.personas.lorebooks import Book, named
from core.personas.png import MAX_PNG_BYTES
from ui.characters.view import Part, show
from ui.shared.errors import sentence
from ui.shared.i18n import tr
from ui.shared.resources import characters, lorebooks


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one file: a character or a lorebook by its key, or an error.

    Where only its name keeps it out, `add_beside` adds it under the next free one.
    """

    file: str
    name: str = ""
    key: str = ""
    notices: tuple[DeckError, ...] = ()
    error: DeckError | None = None
    add_beside: Callable[[], Result] | None = None


@dataclass(frozen=True, slots=True)
class Importer:
    """What files become: `kind` begins the keys of widgets and names the texts, `part` of the page shows one."""

    kind: str
    part: Part
    import_file: Callable[[str, bytes], Result]
    max_bytes: int

    @property
    def results_key(self) -> str:
        return f"{self.kind}_results"

    @property
    def count_key(self) -> str:
        return f"{self.kind}_num_uploads"


def import_file(file: str, content: bytes) -> Result:
    """Add the character in `content`; nothing else fails with it."""
    try:
        card = read_card(file, content)
    except DeckError as error:
        return Result(visible(file), error=error)
    return _add(visible(file), card)


def _add(file: str, card: Card) -> Result:
    def add_beside() -> Result:
        name = characters().free_name(card.character.name)
        return _add(file, replace(card, character=replace(card.character, name=name)))

    try:
        key = characters().add(card.character, card.picture)
    except DeckError as error:
        is_taken = error.key == "character_name_taken"
        return Result(file, card.character.name, error=error, add_beside=add_beside if is_taken else None)
    return Result(file, card.character.name, key, card.notices)


def import_book(file: str, content: bytes) -> Result:
    """Add the lorebook in `content`; nothing else fails with it."""
    try:
        found = read_lorebook(file, content)
    except DeckError as error:
        return Result(visible(file), error=error)
    return _add_book(visible(file), found)


def _add_book(file: str, found: Lorebook) -> Result:
    def add_beside() -> Result:
        return _add_book(file, replace(found, name=lorebooks().free_name(found.name)))

    try:
        key = lorebooks().add(Book(named(found.book, found.name)))
    except DeckError as error:
        is_taken = error.key == "lorebook_name_taken"
        return Result(file, found.name, error=error, add_beside=add_beside if is_taken else None)
    return Result(file, found.name, key, found.notices)


CHARACTERS = Importer("characters", "detail", import_file, MAX_CHARX_BYTES)
LOREBOOKS = Importer("lorebooks", "book", import_book, MAX_PNG_BYTES)


def draw_import(importer: Importer) -> None:
    number = st.session_state.setdefault(importer.count_key, 0)
    key = f"{importer.kind}_upload_{number}"
    st.file_uploader(tr(f"{importer.kind}.import_label"), key=key, accept_multiple_files=True, on_change=_import,
                     max_upload_size=importer.max_bytes // 2**20, args=(importer, number, key))  # fmt: skip
    st.caption(tr(f"{importer.kind}.import_help"))


def _import(importer: Importer, number: int, key: str) -> None:
    """Read every file and empty the field, so that no file is read twice."""
    uploads = st.session_state.get(key) or []
    results = [importer.import_file(upload.name, upload.getvalue()) for upload in uploads]
    st.session_state[importer.results_key], st.session_state[importer.count_key] = results, number + 1


def draw_results(importer: Importer) -> None:
    results: list[Result] = st.session_state.get(importer.results_key, [])
    if not results:
        return
    with st.container(border=True, key=f"{importer.kind}_results_box"):
        for number in range(len(results)):
            with st.container(gap="xsmall"):
                _draw_result(importer, results, number)
        st.button(tr("characters.dismiss"), key=f"{importer.kind}_results_close", type="tertiary",
                  icon=":material/close:", on_click=st.session_state.pop,
                  args=(importer.results_key, None))  # fmt: skip


def _draw_result(importer: Importer, results: list[Result], number: int) -> None:
    result, batch = results[number], st.session_state[importer.count_key]
    if result.error is None:
        with st.container(horizontal=True, vertical_alignment="center"):
            words = tr("characters.imported", name=result.name, file=result.file)
            st.markdown(f":green[:material/check_circle:] {words}", width="stretch")
            st.button(tr("characters.look"), key=f"{importer.kind}_result_{number}_{batch}", on_click=show,
                      args=(importer.part, result.key))  # fmt: skip
    else:
        st.markdown(f":red[:material/error:] {sentence(result.error)}")
    for notice in result.notices:
        st.caption(f":material/info: {sentence(notice)}")
    if result.add_beside is not None:
        st.button(tr("characters.import_both"), key=f"{importer.kind}_both_{number}_{batch}",
                  icon=":material/content_copy:", on_click=_import_both, args=(results, number))  # fmt: skip


def _import_both(results: list[Result], number: int) -> None:
    """Add what a file holds under the next free name beside the one that has its name."""
    if (add_beside := results[number].add_beside) is None:
        return
    try:
        results[number] = add_beside()
    except DeckError as error:
        results[number] = replace(results[number], error=error)
