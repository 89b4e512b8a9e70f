"""The model in the chat's head: which one answers, and another one in its place, with what the chat loses by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import streamlit as st

from core.checkpoint.checkpoint import Checkpoint
from core.common.errors import DeckError
from core.engine.protocol import EngineState
from core.memory.cache_choice import EVERY_CHAT_FULL, CacheChoice
from core.memory.cpu_fit import CpuReport, speed_text
from core.memory.fit import DEFAULT_CONTEXT_TOKENS
from core.memory.fit_report import FitReport
from ui.chat.feedback import show_errors
from ui.load.cache_choice import promise_before
from ui.load.entries import unload
from ui.load.entries_cache import models
from ui.load.gauge import FITS_MARK, SLOW_MARK, Verdict, chosen_now, speed_words, usual, verdict
from ui.load.gpu_choice import Devices, devices_here
from ui.shared.engine_status import Shown, load, loading_progress, reconnect_button, shown_now
from ui.shared.errors import show_error
from ui.shared.fragment import redraw_alone
from ui.shared.gpus import gpu_error
from ui.shared.i18n import tr
from ui.shared.markdown import escape, shortened
from ui.shared.resources import engine
from ui.shared.routing import LOAD_PAGE

KEY = "chat_model"
NAME_CHARS = 40
# More models than these scroll in a window of their own.
MANY_MODELS, MANY_PX = 5, 380
# A chat has no use for less.
SMALLEST_CONTEXT = 256
MIB_IN_GIB = 1024
ICONS = {"ready": ":material/deployed_code:", "loading": "spinner", "failed": ":material/error:"}


@dataclass(frozen=True, slots=True)
class Offer:
    """A model to load: with how many tokens and chats at once, and whether that is what was wanted or the most."""

    kind: Literal["fits", "shorter", "too_large", "refused"]
    context_tokens: int
    num_chats: int
    report: Verdict
    cache: CacheChoice = EVERY_CHAT_FULL


def offer_of(
    checkpoint: Checkpoint,
    devices: Devices,
    context_tokens: int,
    num_chats: int,
    cache: CacheChoice = EVERY_CHAT_FULL,
) -> Offer:
    """What can be loaded of a model. Where the wanted context does not fit, the one to propose that does."""
    if cache.pool_tokens is not None and cache.pool_tokens < context_tokens:
        cache = CacheChoice(bits=cache.bits)
    report = verdict(checkpoint, devices, context_tokens, num_chats, cache=cache)
    if isinstance(report, DeckError):
        return Offer("refused", 0, num_chats, report)
    if report.fits:
        return Offer("fits", context_tokens, num_chats, report, cache)
    if (shorter := _shorter(report)) >= SMALLEST_CONTEXT:
        return Offer(
            "shorter", shorter, num_chats, verdict(checkpoint, devices, shorter, num_chats, cache=cache), cache
        )
    return Offer("too_large", 0, num_chats, report)


def _shorter(report: FitReport | CpuReport) -> int:
    return report.proposed_context if isinstance(report, FitReport) else report.max_context


def draw_model(used_tokens: int) -> None:
    """The popover, which looks through the library only while it is open. `used_tokens` are those of the chat."""
    redraw_alone(_draw_menu, shown_now(), used_tokens, width="content")


def _draw_menu(shown: Shown, used_tokens: int) -> None:
    if shown_now() != shown:
        st.rerun()
    state = engine().state
    name = state.model if state.phase == "ready" else None
    label = escape(shortened(name, NAME_CHARS)) if name else tr(f"engine.{state.phase}")
    menu = st.popover(label, key=KEY, icon=ICONS.get(state.phase, ICONS["ready"]), on_change="rerun", wrap=False,
                      help=escape(name) if name and len(name) > NAME_CHARS else None)  # fmt: skip
    if menu.open:
        with menu:
            _draw_library(state, used_tokens)


def _draw_library(state: EngineState, used_tokens: int) -> None:
    if state.phase == "loading":
        _draw_loading(state)
        return
    if state.error is not None:
        show_error(state.error)
        if state.server is not None:
            reconnect_button()
    if state.model and state.server is not None:
        st.caption(tr("load.is_elsewhere", name=state.model, server=state.server))
    if engine().running_answers:
        st.caption(f":orange[:material/warning:] {tr('load.ends_answers')}")
    if (unused := gpu_error()) is not None:
        show_error(unused)
    else:
        _draw_offers(state, used_tokens)
    st.page_link(LOAD_PAGE, label=tr("chat.model_all"), icon=":material/deployed_code:")


def _draw_loading(state: EngineState) -> None:
    if state.server is None:
        st.markdown(tr("engine.loading_model", name=state.model or ""))
    loading_progress()
    st.button(tr("load.cancel"), key=f"chat_model_cancel_{state.model}", icon=":material/close:", on_click=unload,
              args=(state,))  # fmt: skip


def _draw_offers(state: EngineState, used_tokens: int) -> None:
    try:
        found = [(entry.name, entry.checkpoint) for entry in models() if entry.checkpoint is not None]
    except DeckError as error:
        show_error(error)
        return
    here = state.model if state.server is None and state.phase == "ready" else None
    devices = devices_here()
    offers = [
        (name, offer_of(one, devices, *_wanted(name, one, devices, state), promise_before(name)))
        for name, one in found
        if name != here
    ]
    # What can be loaded comes first.
    offers.sort(key=lambda pair: pair[1].context_tokens == 0)
    if not offers:
        st.caption(tr("chat.model_no_other" if here else "load.none"))
        return
    with st.container(height=MANY_PX if len(offers) > MANY_MODELS else "content", border=False, gap="small"):
        for name, offer in offers:
            _draw_offer(name, offer, state, used_tokens)


def _wanted(name: str, checkpoint: Checkpoint, devices: Devices, state: EngineState) -> tuple[int, int]:
    """The context and the chats at once: as chosen on Load model, else those of the model's last load, else no shorter
    than now where the model can."""
    now = state.facts.context_tokens if state.facts is not None else 0
    return chosen_now(name, usual(checkpoint, name, devices, max(DEFAULT_CONTEXT_TOKENS, now)))


def _draw_offer(name: str, offer: Offer, state: EngineState, used_tokens: int) -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        with st.container(gap=None, width="stretch"):
            st.markdown(f"**{escape(shortened(name, NAME_CHARS))}**",
                        help=escape(name) if len(name) > NAME_CHARS else None)  # fmt: skip
            st.caption(_words(offer))
            if isinstance(offer.report, FitReport) and offer.report.is_slow and (slow := speed_words(offer.report)):
                st.caption(slow)
            for loss in _losses(offer, state, used_tokens):
                st.caption(f":orange[:material/warning:] {loss}")
        if offer.context_tokens:
            st.button(tr("load.load"), key=f"chat_model_load_{name}", icon=":material/play_arrow:", on_click=_load,
                      args=(name, offer.context_tokens, offer.num_chats, offer.cache))  # fmt: skip


def _words(offer: Offer) -> str:
    """The verdict in a few words; Load model has the whole of it."""
    if isinstance(offer.report, DeckError):
        return f":red[:material/error:] {tr('chat.model_refused')}"
    if offer.kind == "too_large":
        needed, available = (f"{mib / MIB_IN_GIB:.1f}" for mib in (offer.report.needed_mib, offer.report.available_mib))
        return f":red[:material/error:] {tr('chat.model_too_large', needed=needed, available=available)}"
    mark = SLOW_MARK if offer.report.is_slow else FITS_MARK
    words = f"{mark} {tr('chat.model_fits', context=f'{offer.context_tokens:,}')}"
    if isinstance(offer.report, CpuReport):
        words = f"{words} · {tr('chat.model_speed', speed=speed_text(offer.report.tokens_per_s))}"
    return words


def _losses(offer: Offer, state: EngineState, used_tokens: int) -> list[str]:
    """What the chat has now and has no longer with this model."""
    now = state.facts.context_tokens if state.facts is not None and state.phase == "ready" else 0
    if not offer.context_tokens:
        return []
    if used_tokens > offer.context_tokens:
        return [tr("chat.model_forgets", used=f"{used_tokens:,}", context=f"{offer.context_tokens:,}")]
    return [tr("chat.model_shorter", now=f"{now:,}")] if offer.context_tokens < now else []


@show_errors
def _load(name: str, context_tokens: int, num_chats: int, cache: CacheChoice) -> None:
    state = engine().state
    # A second click, or another tab, has begun it.
    if (state.phase, state.model) != ("loading", name):
        load(name, context_tokens, num_chats, cache=cache)
