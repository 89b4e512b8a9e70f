"""From which server models come: the choice on the page and the token for it."""

from __future__ import annotations

import os

import streamlit as st

from core.common.errors import DeckError
from core.common.urls import host_name
from core.hub.endpoints import HUGGINGFACE, MIRROR, MODELSCOPE, checked_endpoint, default_endpoint
from core.hub.source import Kind
from core.hub.tokens import forget_token, store_token, token_keeper
from ui.shared.errors import show_error
from ui.shared.i18n import tr
from ui.shared.identity import show_words
from ui.shared.resources import preferences, tasks

ENDPOINTS = {"huggingface": HUGGINGFACE, "mirror": MIRROR, "modelscope": MODELSCOPE}
OWN = "own"
KEY, OWN_KEY, TOKEN, ERROR_KEY = "download_source", "download_own", "download_token", "download_token_error"
GROUP = "download"


def choose_source() -> tuple[Kind, str] | None:
    """The kind of server and its address; None where a person's own address is none, which is said then."""
    labels = {name: tr(f"find.source_{name}") for name in (*ENDPOINTS, OWN)}
    show_words(KEY, labels)
    chosen = _chosen()
    st.selectbox(tr("find.source"), list(labels), key=KEY, format_func=labels.__getitem__, persist_state="session",
                 on_change=_remember)  # fmt: skip
    if chosen != OWN:
        return ("modelscope" if chosen == "modelscope" else "huggingface"), ENDPOINTS[chosen]
    # What the environment names comes before what was typed here once.
    named = os.environ.get("HF_ENDPOINT") or preferences().get(GROUP, "own")
    st.session_state.setdefault(OWN_KEY, named or default_endpoint())
    text = st.text_input(tr("find.own"), key=OWN_KEY, placeholder=MIRROR, persist_state="session",
                         on_change=_remember_own)  # fmt: skip
    try:
        return "huggingface", checked_endpoint(text)
    except DeckError as error:
        show_error(error)
        return None


def _chosen() -> str:
    """This tab's choice; at first what was chosen before, or where $HF_ENDPOINT points."""
    if st.session_state.get(KEY) not in (*ENDPOINTS, OWN):
        default = {HUGGINGFACE: "huggingface", MIRROR: "mirror"}.get(default_endpoint().rstrip("/"), OWN)
        remembered = preferences().get(GROUP, "source")
        st.session_state[KEY] = remembered if remembered in (*ENDPOINTS, OWN) and default != OWN else default
    return str(st.session_state[KEY])


def _remember() -> None:
    # A step that was late tells the words of another language.
    if (chosen := st.session_state[KEY]) in (*ENDPOINTS, OWN):
        preferences().set(GROUP, "source", chosen)


def _remember_own() -> None:
    if own := st.session_state[OWN_KEY]:
        preferences().set(GROUP, "own", own)


def draw_token(endpoint: str, is_open: bool = False) -> None:
    """Where a token for `endpoint` is given, and how one is forgotten; the token itself is never shown."""
    host, key, keeper = host_name(endpoint), f"{TOKEN}_{endpoint}", token_keeper(endpoint)
    with st.expander(tr("find.token"), key=f"download_token_for_{endpoint}", expanded=is_open, icon=":material/key:"):
        st.markdown(tr(f"find.token_is_{keeper}" if keeper else "find.token_none", host=host))
        if keeper == "environment":
            return
        with st.form(key=f"download_token_form_{endpoint}", border=False, clear_on_submit=True):
            st.text_input(tr("find.token_field", host=host), type="password", key=key)
            with st.container(horizontal=True):
                st.form_submit_button(tr("find.token_keep"), key=f"token_keep_{endpoint}", on_click=_keep,
                                      args=(endpoint, key))  # fmt: skip
                if keeper == "stored":
                    st.form_submit_button(tr("find.token_forget"), key=f"token_forget_{endpoint}", on_click=_forget,
                                          args=(endpoint,))  # fmt: skip
        if error := st.session_state.pop(f"{ERROR_KEY}_{endpoint}", None):
            show_error(error)


def _keep(endpoint: str, key: str) -> None:
    try:
        store_token(endpoint, st.session_state[key])
        tasks().forget_errors()
    except DeckError as error:
        st.session_state[f"{ERROR_KEY}_{endpoint}"] = error


def _forget(endpoint: str) -> None:
    try:
        forget_token(endpoint)
    except DeckError as error:
        st.session_state[f"{ERROR_KEY}_{endpoint}"] = error
