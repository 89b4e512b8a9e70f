"""All characters as pictures: search, tags, pages; what is no character says why. Opens them."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, wait

import streamlit as st

from core.common.errors import DeckError
from core.common.i18n import LANGUAGES
from core.personas.fields import visible
from core.personas.listing import Entry
from core.personas.names import same_name
from ui.characters.draft import has_changes
from ui.characters.importing import CHARACTERS, draw_import, draw_results
from ui.characters.personas import open_user
from ui.characters.readable import readable
from ui.characters.view import draw_messages, new_chat_with, show
from ui.shared.errors import sentence, show_error
from ui.shared.fragment import redraw_every
from ui.shared.i18n import language, tr
from ui.shared.identity import key_of
from ui.shared.markdown import escape, shortened
from ui.shared.people import person
from ui.shared.resources import characters, chat_store, thumbnails
from ui.shared.routing import CHAT_PAGE

SEARCH_KEY, TAGS_KEY, PAGE_KEY = "characters_search", "characters_tags", "characters_page"
SORT_KEY, ORDERS = "characters_sort", ("name", "used", "new")
PER_PAGE = 48
NUM_TAGS = 10
CARD_WIDTH = 164
ABOUT_CHARS, NAME_CHARS, TAG_CHARS = 56, 40, 24
# A click on a portrait is one on the name below it.
FACE_STYLE = """<style>
[class*="st-key-character_card_"] [class*="st-key-character_open_"] button { position: relative; }
[class*="st-key-character_card_"]:has(img) [class*="st-key-character_open_"] button::before {
  content: ""; position: absolute; inset: auto 0 100% 0; aspect-ratio: 1; margin-bottom: 0.25rem;
}
</style>"""
# Nothing flashes where pictures are made in this time; longer ones come when they are ready.
INLINE_WAIT_S, POLL_S = 0.25, 0.4
NUM_AT_ONCE = 12
# One grey point, as large as a picture is.
WAITING = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNoaGioBwAEhAIAJTM0+wAAAABJRU5ErkJggg=="
)
# By the entry's id: the entry, its tags, its text. Each language has entries of its own for the same files.
_known: dict[int, tuple[Entry, frozenset[str], str]] = {}


def draw_gallery() -> None:
    _draw_head()
    draw_messages()
    draw_results(CHARACTERS)
    try:
        entries = characters().entries()
    except DeckError as error:
        show_error(error)
        return
    if not entries:
        _draw_empty()
        return
    found = _search(entries)
    if not found:
        st.info(tr("characters.nothing"), icon=":material/search_off:")
        st.button(tr("characters.show_all"), key="characters_show_all", on_click=_show_all)
        return
    _draw_cards(_page(found))


def _draw_head() -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(tr("characters.new"), key="characters_new", icon=":material/add:", type="primary",
                  on_click=show, args=("form",))  # fmt: skip
        with st.popover(tr("characters.import"), icon=":material/upload:", key="characters_import"):
            draw_import(CHARACTERS)
        st.button(tr("characters.user"), key="characters_user", icon=":material/person:",
                  on_click=open_user)  # fmt: skip
        st.button(tr("lorebooks.title"), key="characters_lorebooks", icon=":material/menu_book:",
                  on_click=show, args=("books",))  # fmt: skip
    if person():
        st.caption(tr("characters.shared"))
    if has_changes(None):
        st.caption(f":orange[:material/edit:] {tr('characters.new_unsaved')}")


def _draw_empty() -> None:
    with st.container(border=True):
        st.markdown(tr("characters.none"))
        st.caption(tr("characters.where"))


def _search(entries: Sequence[Entry]) -> list[Entry]:
    """What the words and the tags leave of them."""
    query = st.session_state.get(SEARCH_KEY, "")
    key = key_of("characters_search_field", "", query)
    st.text_input(tr("characters.search"), key=key, type="search", icon=":material/search:", live=True,
                  placeholder=tr("characters.search_hint"), label_visibility="collapsed",
                  on_change=_take, args=(SEARCH_KEY, key))  # fmt: skip
    words = same_name(query).split()
    if len(_known) > 2 * len(LANGUAGES) * len(entries):
        _known.clear()
    found = [entry for entry in entries if all(word in _searched(entry) for word in words)]
    chosen = _choose_tags(entries)
    return [entry for entry in found if chosen <= _tags(entry)]


def _choose_tags(entries: Sequence[Entry]) -> set[str]:
    counted = Counter(tag for entry in entries for tag in _tags(entry))
    chosen = [tag for tag in st.session_state.get(TAGS_KEY) or [] if tag in counted]
    key = key_of("characters_tags_choice", "", chosen)
    common = sorted(counted, key=lambda tag: (-counted[tag], tag))[:NUM_TAGS]
    options = [*common, *(tag for tag in chosen if tag not in common)]
    if options:
        st.pills(tr("characters.tags"), options, selection_mode="multi", key=key,
                 format_func=lambda tag: escape(shortened(visible(tag), TAG_CHARS)), label_visibility="collapsed",
                 on_change=_take, args=(TAGS_KEY, key))  # fmt: skip
    return set(chosen)


def _tags(entry: Entry) -> frozenset[str]:
    return _searchable(entry)[1]


def _searched(entry: Entry) -> str:
    """The texts that a search looks through."""
    return _searchable(entry)[2]


def _searchable(entry: Entry) -> tuple[Entry, frozenset[str], str]:
    """An entry with its tags and its text, made once: of thousands at each run of the page they would take seconds."""
    known = _known.get(id(entry))
    if known is None:
        one = entry.character
        texts = [] if one is None else [*one.tags, one.nickname, one.creator, one.creator_notes, one.about]
        tags = frozenset(same_name(tag) for tag in one.tags) if one is not None else frozenset()
        known = _known[id(entry)] = entry, tags, same_name("\n".join([entry.name, entry.key, *texts]))
    return known


def _sorted(found: list[Entry]) -> list[Entry]:
    """In the order that was chosen; entries come by name."""
    orders = {name: tr(f"characters.sort_{name}") for name in ORDERS}
    order = st.segmented_control(tr("characters.sort"), list(orders), key=SORT_KEY, format_func=orders.__getitem__,
                                 default="name", required=True, persist_state="session", on_change=_first_page,
                                 label_visibility="collapsed")  # fmt: skip
    if order == "new":
        return sorted(found, key=lambda entry: -entry.changed_ns)
    if order == "used":
        used = _last_used()
        return sorted(found, key=lambda entry: -max(used.get(entry.key, 0.0), used.get(entry.name, 0.0)))
    return found


def _last_used() -> dict[str, float]:
    """When a character spoke last, by what its chats call it; nothing where the history cannot be read."""
    try:
        return chat_store().last_used()
    except DeckError:
        return {}


def _show_all() -> None:
    st.session_state[SEARCH_KEY], st.session_state[TAGS_KEY] = "", []


def _take(name: str, key: str) -> None:
    st.session_state[name] = st.session_state[key]
    _first_page()


def _first_page() -> None:
    st.session_state[PAGE_KEY] = 1


def _page(found: list[Entry]) -> Sequence[Entry]:
    num_pages = -(-len(found) // PER_PAGE)
    number = min(int(st.session_state.get(PAGE_KEY) or 1), num_pages)
    st.session_state[PAGE_KEY] = number
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        if len(found) > 1:
            found = _sorted(found)
        if num_pages > 1:
            st.caption(tr("characters.count", count=f"{len(found):,}"), width="content")
            number = st.pagination(num_pages, key=PAGE_KEY, persist_state="session", max_visible_pages=5)
    return found[(number - 1) * PER_PAGE : number * PER_PAGE]


def _draw_cards(entries: Sequence[Entry]) -> None:
    pictures = [thumbnails().get(characters(), entry) for entry in entries]
    wait(pictures, INLINE_WAIT_S)
    st.html(FACE_STYLE)
    with st.container(horizontal=True, key="characters_cards"):
        for entry, picture in zip(entries, pictures, strict=True):
            _draw_card(entry, picture)
    if (num_done := _num_done(pictures)) < len(pictures):
        redraw_every(POLL_S, _watch, pictures, num_done)


def _watch(pictures: Sequence[Future[bytes]], num_drawn: int) -> None:
    """Draw the cards again once some more pictures are there, a few rows at a time."""
    if _num_done(pictures) >= min(len(pictures), num_drawn + NUM_AT_ONCE):
        st.rerun()


def _num_done(pictures: Sequence[Future[bytes]]) -> int:
    return sum(picture.done() for picture in pictures)


def _draw_card(entry: Entry, picture: Future[bytes]) -> None:
    with st.container(border=True, width=CARD_WIDTH, height="stretch", gap="xsmall", key=f"character_card_{entry.key}"):
        if entry.character is None:
            _draw_broken(entry)
            return
        st.image(picture.result() if picture.done() else WAITING, width="stretch", alt=entry.name)
        name = escape(shortened(visible(entry.name), NAME_CHARS))
        st.button(name, key=f"character_open_{entry.key}", width="stretch", wrap=False,
                  help=escape(entry.name) if len(entry.name) > NAME_CHARS // 2 else None,
                  on_click=show, args=("detail", entry.key))  # fmt: skip
        st.page_link(CHAT_PAGE, label=tr("characters.chat"), icon=":material/chat:", width="stretch",
                     query_params=new_chat_with(entry.key))  # fmt: skip
        st.caption(escape(shortened(about_words(entry), ABOUT_CHARS)))
        if has_changes(entry.key):
            st.markdown(f":orange-badge[:material/edit: {tr('characters.unsaved')}]")


def about_words(entry: Entry) -> str:
    """What a character is, in its maker's words for people, else the beginning of those for the model."""
    one = entry.character
    if one is None:
        return ""
    words = one.creator_notes_in(language()) or one.about
    return readable(words, one, entry.key)


def _draw_broken(entry: Entry) -> None:
    st.markdown(f":red[:material/error:] **{escape(shortened(visible(entry.text_path.name), NAME_CHARS))}**")
    if entry.error is not None:
        st.caption(sentence(entry.error))
    st.button(tr("characters.look"), key=f"character_open_{entry.key}", width="stretch",
              on_click=show, args=("detail", entry.key))  # fmt: skip
