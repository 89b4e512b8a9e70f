"""What the engine is doing, as every page shows it: the line in the sidebar and a load's progress."""

from __future__ import annotations

import streamlit as st

from core.common.paths import model_name
from core.engine.answer import Answer
from core.engine.protocol import EngineState
from core.library.last_model import LastModel, last_model, note_last_model
from core.library.scan import locate
from core.memory.adapter_room import NO_ROOM, AdapterRoom
from core.memory.cache_choice import EVERY_CHAT_FULL, CacheChoice
from ui.shared.errors import show_error
from ui.shared.fragment import redraw_every
from ui.shared.gpus import gpu_error
from ui.shared.i18n import tr
from ui.shared.markdown import escape, shortened
from ui.shared.resources import engine
from ui.shared.routing import LOAD_PAGE, go_to

LOADING_POLL_S = 0.3
ANSWERING_POLL_S = 1.0
# Another tab may load or unload, and the engine's process may die, while this page is at rest.
REST_POLL_S = 4.0
NAME_CHARS = 44

Shown = tuple[str, str | None, frozenset[int], bool]
SILENT_ICON = ":orange[:material/hourglass_disabled:] "
SERVER_PHASES = {"loading": "connecting", "failed": "lost"}


def shown_now() -> Shown:
    """The part of the engine's state that decides how a page looks; progress and text have fragments of their own.

    Answers for clients of the API are left out: they come and go without a change of the pages.
    """
    state = engine().state
    shown = frozenset(answer.request for answer in engine().running_answers if answer.is_for_page)
    return state.phase, state.model, shown, engine().silent_s > 0


def sidebar_status() -> None:
    """The engine's state in a few words. A change of that state draws the whole page again."""
    phase, _, running, is_silent = shown = shown_now()
    is_lost = phase == "failed" and engine().state.server is not None
    is_moving = bool(running) or is_lost or is_silent
    poll_s = LOADING_POLL_S if phase == "loading" else ANSWERING_POLL_S if is_moving else REST_POLL_S
    redraw_every(poll_s, _status, shown)


def _status(shown: Shown) -> None:
    if shown_now() != shown:
        st.rerun()
    state, num_running, silent_s = engine().state, len(engine().running_answers), engine().silent_s
    if state.phase == "ready" and state.server is None and state.facts is not None:
        facts = state.facts
        cache = CacheChoice(facts.pool_tokens, facts.cache_bits)
        note_last_model(LastModel(state.model or "", facts.context_tokens, facts.num_slots, facts.adapters, cache))
    with st.container(border=True, gap="xsmall"):
        st.markdown(SILENT_ICON + tr("engine.silent") if silent_s else _status_line(state, num_running))
        if state.asleep is not None:
            _draw_name(model_name(state.asleep.folder))
        elif state.model is not None:
            _draw_name(state.model)
        if state.server is not None:
            st.caption(tr("engine.on_server", server=shortened(state.server, NAME_CHARS)))
        if state.phase == "loading" and state.server is None:
            st.progress(state.fraction)
        if silent_s:
            st.caption(tr("engine.silent_short", seconds=round(silent_s)))
            _unload_button("sidebar")


def _unload_button(place: str) -> None:
    st.button(tr("load.unload"), key=f"engine_unload_{place}", icon=":material/eject:", on_click=engine().unload)


def _draw_name(name: str) -> None:
    short = shortened(name, NAME_CHARS)
    st.caption(escape(short), help=None if short == name else escape(name))


def _status_line(state: EngineState, num_running: int) -> str:
    if state.phase == "ready" and num_running:
        return f":primary[:material/edit_note:] {tr('engine.answering')}"
    icon = {
        "empty": ":gray[:material/radio_button_unchecked:]",
        "loading": ":primary[:material/hourglass_top:]",
        "ready": ":green[:material/check_circle:]",
        "failed": ":red[:material/error:]",
    }[state.phase]
    name = SERVER_PHASES.get(state.phase, state.phase) if state.server is not None else state.phase
    name = "sleeping" if state.asleep is not None and state.phase != "failed" else name
    return f"{icon} {tr(f'engine.{name}')}"


def loading_progress() -> None:
    """The bar of the load that is going on, with the name of its stage. The sidebar sees its end."""
    redraw_every(LOADING_POLL_S, _progress)


def _progress() -> None:
    state = engine().state
    if state.server is not None:
        st.markdown(f":shimmer[{tr('engine.connecting_to', server=state.server)}]")
        return
    stage = state.stage if state.phase == "loading" else "warm_up"
    percent = int(state.fraction * 100)
    st.progress(state.fraction, text=tr(f"engine.stage_{stage}") + f" · {percent} %")


def silence_notice() -> None:
    """Where the engine is silent: that it hangs, and the button that ends it. Else nothing."""
    if engine().silent_s:
        redraw_every(ANSWERING_POLL_S, _silence)


def _silence() -> None:
    # Once it goes on, the sidebar brings the page up to date.
    if silent_s := engine().silent_s:
        st.warning(tr("engine.silent_for", seconds=round(silent_s)), icon=":material/hourglass_disabled:")
        _unload_button("page")


def not_ready_notice(last: Answer | None = None) -> None:
    """Where a model is needed: what the engine is doing instead, and the way to a model.

    The engine's error is left out where the `last` answer above has shown it.
    """
    state = engine().state
    with st.container(border=True):
        if state.phase == "loading":
            if state.server is None:
                st.markdown(tr("engine.loading_model", name=state.model or ""))
            loading_progress()
            return
        if state.asleep is not None and state.error is None:
            st.markdown(tr("engine.asleep", name=model_name(state.asleep.folder)))
        elif state.error is None:
            st.markdown(tr("engine.nothing_loaded"))
            if (unused := gpu_error()) is not None:
                show_error(unused)
        elif last is None or last.error is not state.error:
            show_error(state.error)
        way_to_model()


def way_to_model() -> None:
    """The buttons that bring a model: the one that was there, by a click, or the page that loads any."""
    state = engine().state
    if state.asleep is not None:
        name = model_name(state.asleep.folder)
        st.button(tr("engine.load_again", name=name), key="engine_wake", icon=":material/refresh:", type="primary",
                  on_click=engine().wake)  # fmt: skip
        return
    is_lost = state.server is not None
    last = last_model() if state.phase == "failed" and not is_lost else None
    is_here = last is not None and locate(last.name).exists()
    with st.container(horizontal=True):
        if is_lost:
            reconnect_button()
        elif last is not None and is_here:
            st.button(tr("engine.load_again", name=last.name), icon=":material/refresh:", key="engine_load_again",
                      type="primary", on_click=load, args=(last.name, last.context_tokens, last.num_chats),
                      kwargs={"adapters": last.adapters, "cache": last.cache})  # fmt: skip
        st.button(tr("engine.go_load"), icon=":material/deployed_code:", key="go_load", on_click=go_to,
                  type="secondary" if is_lost or is_here else "primary", args=(LOAD_PAGE,))  # fmt: skip


def reconnect_button() -> None:
    st.button(tr("engine.reconnect"), key="engine_reconnect", icon=":material/refresh:", type="primary",
              on_click=engine().remote.reconnect)  # fmt: skip


def load(
    name: str,
    context_tokens: int = 0,
    num_slots: int = 1,
    force: bool = False,
    on_cpu: bool = False,
    adapters: AdapterRoom = NO_ROOM,
    cache: CacheChoice = EVERY_CHAT_FULL,
) -> None:
    """Begin to load a model of the library, in place of whatever is loaded; Runner.load says what the values are."""
    engine().load(locate(name), context_tokens, num_slots, force=force, on_cpu=on_cpu, adapters=adapters, cache=cache)
