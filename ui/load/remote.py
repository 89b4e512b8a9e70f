"""A model on another server, as Load Model draws it: its address, the choice among its models, how it stands."""

from __future__ import annotations

import streamlit as st

from core.common.background import Task
from core.common.errors import DeckError
from core.common.urls import host_name, is_private_way
from core.engine.protocol import EngineState, ModelFacts, RemoteFacts
from core.remote.address import checked_address, keep_key, key_of
from core.remote.connection import ASSUMED_CONTEXT_TOKENS, list_models
from core.remote.dialect import RemoteModel
from core.remote.selection import RemoteSelection
from ui.load.entries import unload
from ui.shared.engine_status import loading_progress, reconnect_button
from ui.shared.errors import show_error
from ui.shared.fragment import redraw_every
from ui.shared.i18n import text, tr
from ui.shared.markdown import escape
from ui.shared.resources import engine, preferences, tasks
from ui.shared.routing import CHAT_PAGE, go_to

PLACES = ("here", "server")
PLACE_KEY, ADDRESS_KEY, KEY_KEY, NUM_KEPT_KEY = "load_place", "remote_address", "remote_key", "remote_num_kept"
MODEL, CONTEXT = "remote_model", "remote_context"
# What this tab looks at: a checked address, or the error of what was typed.
ASKED_KEY, ERROR_KEY = "remote_asked", "remote_error"
GROUP = "engine"
EXAMPLE = "http://127.0.0.1:8000"
POLL_S = 0.3
SMALLEST_CONTEXT, LARGEST_CONTEXT = 256, 1_000_000


def choose_place() -> str:
    """Where the model is to run, "here" or on a "server"; at first where it runs now."""
    if st.session_state.get(PLACE_KEY) not in PLACES:
        st.session_state[PLACE_KEY] = "here" if engine().selection is None else "server"
    labels = {place: tr(f"remote.place_{place}") for place in PLACES}
    place = st.segmented_control(tr("remote.place"), PLACES, key=PLACE_KEY, required=True, width="stretch",
                                 format_func=labels.__getitem__, label_visibility="collapsed",
                                 persist_state="session")  # fmt: skip
    return place or "here"


def draw_remote() -> None:
    """The model in use, the form for an address, and the models that were found there."""
    if engine().selection is not None:
        with st.container(border=True):
            _draw_state(engine().state)
    st.markdown(tr("remote.about"))
    _draw_form()
    if error := st.session_state.get(ERROR_KEY):
        show_error(error)
    address: str | None = st.session_state.get(ASKED_KEY)
    if address and (task := tasks().known(_task_key(address))) is not None:
        _draw_found(address, task)


# The model in use ---------------------------------------------------------------------------------------------------


def _draw_state(state: EngineState) -> None:
    st.markdown(f"**{escape(state.model or '')}**")
    if state.phase == "loading":
        loading_progress()
        _disconnect_button("remote.cancel", state)
    elif state.phase == "ready" and state.facts is not None and state.facts.remote is not None:
        _draw_connected(state, state.facts, state.facts.remote)
    elif state.error is not None:
        show_error(state.error)
        st.caption(tr("remote.looks_again"))
        with st.container(horizontal=True):
            reconnect_button()
            _disconnect_button("remote.disconnect", state)


def _draw_connected(state: EngineState, facts: ModelFacts, remote: RemoteFacts) -> None:
    st.success(tr("remote.memory_there", server=remote.server), title=tr("remote.connected"),
               icon=":material/check_circle:")  # fmt: skip
    rows = {
        "server": escape(remote.server),
        "software": escape(remote.software) or tr("remote.software_unknown"),
        "context": tr("load.context_value", tokens=f"{facts.context_tokens:,}"),
    }
    with st.grid("auto", min_column_width=160):
        for name, value in rows.items():
            st.markdown(f":small[:gray[{tr(f'remote.fact_{name}')}]]  \n**{value}**")
    for note in _notes(remote):
        st.caption(note)
    with st.container(horizontal=True):
        st.button(tr("load.chat"), key="load_chat", icon=":material/chat:", type="primary",
                  on_click=go_to, args=(CHAT_PAGE,))  # fmt: skip
        _disconnect_button("remote.disconnect", state)


def _notes(remote: RemoteFacts) -> list[str]:
    """What works differently over this server."""
    notes = []
    if not remote.is_context_told:
        notes.append(tr("remote.context_chosen" if remote.is_context_chosen else "remote.context_assumed"))
    if not remote.counts_tokens:
        notes.append(tr("remote.counts_about"))
    if not remote.can_continue:
        notes.append(tr("remote.cannot_continue"))
    if remote.ignored:
        names = ", ".join(text(f"sampling.{name}") for name in remote.ignored)
        notes.append(tr("remote.ignored", names=names))
    return notes


def _disconnect_button(words: str, state: EngineState) -> None:
    st.button(tr(words), key=f"remote_disconnect_{state.server}_{state.model}", icon=":material/link_off:",
              on_click=unload, args=(state,))  # fmt: skip


# Another one --------------------------------------------------------------------------------------------------------


def _draw_form() -> None:
    selection = engine().selection
    if ADDRESS_KEY not in st.session_state:
        st.session_state[ADDRESS_KEY] = selection.address if selection else preferences().get(GROUP, "address") or ""
    with_key = _typed_address_with_key()
    # After each key that was kept the field is another one, and so is empty again: the next address is another server.
    key = f"{KEY_KEY}_{st.session_state.setdefault(NUM_KEPT_KEY, 0)}"
    with st.form(key="remote_form", border=False):
        st.text_input(tr("remote.address"), key=ADDRESS_KEY, placeholder=EXAMPLE, help=tr("remote.address_help"),
                      persist_state="session")  # fmt: skip
        st.text_input(tr("remote.key"), key=key, type="password", help=tr("remote.key_help"),
                      placeholder=text("remote.key_kept") if with_key else "")  # fmt: skip
        with st.container(horizontal=True):
            st.form_submit_button(tr("remote.find"), key="remote_find", icon=":material/lan:", on_click=_find,
                                  args=(key,), type="primary" if selection is None else "secondary")  # fmt: skip
            if with_key:
                st.form_submit_button(tr("remote.forget_key", server=host_name(with_key)), type="tertiary",
                                      key=f"remote_forget_{with_key}", on_click=_forget, args=(with_key,))  # fmt: skip


def _typed_address_with_key() -> str | None:
    """The address that stands in the form, where a key is kept for it."""
    try:
        address = checked_address(st.session_state.get(ADDRESS_KEY) or "")
    except DeckError:
        return None
    return None if key_of(address) is None else address


def _find(key: str) -> None:
    """Ask the server for its models. A typed key is kept for this address; an empty field leaves the old key."""
    st.session_state.pop(ERROR_KEY, None)
    st.session_state.pop(ASKED_KEY, None)
    try:
        address = checked_address(st.session_state[ADDRESS_KEY] or "")
        if typed := st.session_state[key]:
            keep_key(address, typed)
            st.session_state[NUM_KEPT_KEY] += 1
    except DeckError as error:
        st.session_state[ERROR_KEY] = error
        return
    preferences().set(GROUP, "address", address)
    st.session_state[ASKED_KEY] = address
    tasks().forget(_task_key(address))
    tasks().get(_task_key(address), lambda report: list_models(address, key_of(address)))


def _forget(address: str) -> None:
    """Forget the key of the address that the button named, whatever was typed since."""
    try:
        keep_key(address, None)
    except DeckError as error:
        st.session_state[ERROR_KEY] = error


def _task_key(address: str) -> tuple[str, str]:
    return "remote", address


def _draw_found(address: str, task: Task) -> None:
    if not task.is_done:
        redraw_every(POLL_S, _draw_waiting, address, task)
        return
    if key_of(address) and not is_private_way(address):
        st.warning(tr("remote.key_open", server=host_name(address)), icon=":material/lock_open:")
    if task.error is not None:
        show_error(task.error)
    elif not task.result:
        st.info(tr("remote.no_models", server=host_name(address)), icon=":material/info:")
    else:
        _draw_models(address, task.result)


def _draw_waiting(address: str, task: Task) -> None:
    if task.is_done:
        st.rerun()
    st.markdown(f":shimmer[{tr('remote.asking', server=host_name(address))}]")


def _draw_models(address: str, models: tuple[RemoteModel, ...]) -> None:
    """The choice among the models, and what their server does not tell."""
    by_name = {model.name: model for model in models}
    with st.container(border=True):
        name = st.selectbox(tr("remote.model", server=host_name(address)), list(by_name), key=f"{MODEL}_{address}")
        model = by_name.get(name, models[0])
        if model.context_tokens is None:
            st.number_input(tr("remote.context"), SMALLEST_CONTEXT, LARGEST_CONTEXT, ASSUMED_CONTEXT_TOKENS,
                            key=_context_key(address, model), help=tr("remote.context_help"))  # fmt: skip
        else:
            st.caption(tr("model.context", tokens=f"{model.context_tokens:,}"))
        if engine().running_answers:
            st.caption(tr("load.ends_answers"))
        st.button(tr("remote.use"), key=f"remote_use_{address}", type="primary", icon=":material/link:",
                  on_click=_use, args=(address, by_name))  # fmt: skip


def _context_key(address: str, model: RemoteModel) -> str:
    return f"{CONTEXT}_{address}_{model.name}"


def _use(address: str, models: dict[str, RemoteModel]) -> None:
    """Connect to the model that is chosen by now, with the chosen context where the server tells none."""
    model = models[st.session_state[f"{MODEL}_{address}"]]
    context = st.session_state.get(_context_key(address, model)) if model.context_tokens is None else None
    engine().connect(RemoteSelection(address, model.name, context))
    st.session_state.pop(ASKED_KEY, None)
