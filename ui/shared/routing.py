"""Home.py as the router from the first visit on, and which page a tab came from.

The project's layout names this folder pages/. Streamlit sets `uses_pages_directory` from the mere existence of that
folder, so the first visit to /Chat after a start would show the page without its frame. Renaming the folder to
app_pages/ would make this file's first two functions needless.
"""

from __future__ import annotations

import streamlit as st
from streamlit.runtime.pages_manager import PagesManager

from core.common.paths import ROOT

DOWNLOAD_PAGE, LOAD_PAGE, CHAT_PAGE = "pages/1_Download.py", "pages/2_Load_Model.py", "pages/3_Chat.py"
# The addresses of Home.py and the pages; "" is also "/".
PATHS = frozenset({"", "/home", *(f"/{path.stem.partition('_')[2]}" for path in (ROOT / "pages").glob("*.py"))})
# What the page Download shows: a part of it, and there a folder to be quantized.
SECTION_KEY, OWN_TARGET_KEY = "download_section", "own_target"
PAGE_KEY, ARRIVED_KEY, NEXT_KEY = "page", "page_has_changed", "page_to_go_to"


def use_router() -> None:
    """What st.navigation does as well, but only once Home.py runs."""
    PagesManager.uses_pages_directory = False


def require_router() -> None:
    """At the top of a page: where it was run without Home.py, begin again with it."""
    if PagesManager.uses_pages_directory:
        use_router()
        st.rerun()


def go_to(page: str) -> None:
    """For a button's on_click: show `page` instead of the one the button is on."""
    st.session_state[NEXT_KEY] = page


def go_quantize(folder: str) -> None:
    """For a button's on_click: show Download's part for a model of one's own, with this folder of models/ chosen."""
    show_section("own")
    st.session_state[OWN_TARGET_KEY] = folder
    go_to(DOWNLOAD_PAGE)


def show_section(name: str) -> None:
    """Show another part of the page Download: now if it is the one shown, else when it is opened."""
    st.session_state[SECTION_KEY] = name


def follow() -> None:
    """In Home.py, before anything of a page is drawn: go where the person asked to go."""
    if page := st.session_state.pop(NEXT_KEY, None):
        st.switch_page(page)


def note_page(name: str) -> None:
    """Remember which page this run is for."""
    st.session_state[ARRIVED_KEY] = st.session_state.get(PAGE_KEY) != name
    st.session_state[PAGE_KEY] = name


def has_arrived() -> bool:
    """Whether the tab's run before this one was for another page."""
    return bool(st.session_state.get(ARRIVED_KEY, True))
