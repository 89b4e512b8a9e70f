"""How models on disk and the loaded one are drawn on Load Model."""

from __future__ import annotations

import re

import streamlit as st

from core.checkpoint.checkpoint import Checkpoint
from core.common.errors import CheckpointError, DeckError
from core.engine.protocol import EngineState, MemoryFacts, ModelFacts
from core.library.scan import LibraryEntry
from core.memory.adapter_room import NO_ROOM, AdapterRoom
from core.memory.cache_choice import EVERY_CHAT_FULL, CacheChoice
from core.memory.fit_report import FitReport
from core.memory.sizes import MIB
from ui.load.adapters import draw_found, draw_room, room_now
from ui.load.bar import memory_size
from ui.load.cache_choice import cache_now, draw_cache, has_choice
from ui.load.disk import file_size
from ui.load.entries_cache import adapters_of
from ui.load.gauge import cannot_run, chosen_before, chosen_now, draw_verdict, sentence, sliders, verdict
from ui.load.gpu_choice import Devices, devices_here, names_of
from ui.load.quantization import quantization_words
from ui.load.upkeep import draw_upkeep, is_looked_at
from ui.shared.chat_format import draw_chat_format
from ui.shared.engine_status import Shown, load, loading_progress, shown_now
from ui.shared.errors import show_error
from ui.shared.fragment import redraw_alone
from ui.shared.gpus import gpu_error
from ui.shared.i18n import tr
from ui.shared.markdown import escape
from ui.shared.resources import engine
from ui.shared.routing import CHAT_PAGE, go_quantize, go_to
from ui.shared.starter import starter_notice

# The ends of architectures' names that say what the class does, not what the model is.
FAMILY = re.compile(r"(LMHeadModel|For[A-Z]\w*)$")


def draw_entry(entry: LibraryEntry, state: EngineState, devices: Devices) -> None:
    """One folder on disk: a model, whether it fits, its button, what the engine does; or why it is none."""
    with st.container(border=True, key=f"load_entry_{entry.name}"):
        if entry.checkpoint is None:
            st.markdown(f":material/folder_off: **{escape(entry.name)}**")
            if entry.error is not None:
                show_error(entry.error)
                if entry.error.key == "not_quantized":
                    st.button(tr("load.quantize"), key=f"load_quantize_{entry.name}", icon=":material/compress:",
                              on_click=go_quantize, args=(entry.name,))  # fmt: skip
            draw_upkeep(entry)
            return
        with st.container(gap="xsmall"):
            st.markdown(f"**{escape(entry.name)}**")
            st.caption(_about(entry, entry.checkpoint))
            starter_notice(entry.name, "load")
            _draw_format(entry)
        is_it = state.server is None and state.model == entry.name
        if is_it:
            draw_state(state)
        if not is_it or state.phase == "failed":
            redraw_alone(_draw_choice, entry, entry.checkpoint, devices, shown_now())
        with st.expander(tr("load.details"), key=f"load_details_{entry.name}", expanded=is_looked_at(entry)):
            st.markdown(" ".join(f":gray-badge[{word}]" for word in quantization_words(entry.checkpoint)))
            if is_it and state.facts is not None:
                _draw_technical(state.facts)
            draw_found(entry, adapters_of(entry.checkpoint))
            draw_upkeep(entry)


def _draw_format(entry: LibraryEntry) -> None:
    """How a model without a chat template is asked: it is as good as that choice is right."""
    try:
        draw_chat_format(entry.folder, "load")
    except DeckError as error:
        show_error(error)


def _draw_choice(entry: LibraryEntry, checkpoint: Checkpoint, devices: Devices, shown: Shown) -> None:
    """The sliders, the verdict for `devices`, and the button, which goes by the GPUs of this machine."""
    if shown_now() != shown:
        st.rerun()
    here = devices_here()
    is_planned = bool(devices) and names_of(devices) != names_of(here)
    context_tokens, num_chats = before = chosen_before(checkpoint, entry.name, here)
    room, cache, report = NO_ROOM, EVERY_CHAT_FULL, verdict(checkpoint, here, context_tokens, num_chats)
    if not cannot_run(report) or (is_planned and not isinstance(report, CheckpointError)):
        context_tokens, num_chats = chosen = sliders(checkpoint, entry.name, before)
        room = draw_room(entry.name, checkpoint, adapters_of(checkpoint), is_on_cpu=not here)
        if chosen != before or room.count:
            report = verdict(checkpoint, here, context_tokens, num_chats, room)
        planned = verdict(checkpoint, devices, context_tokens, num_chats, room) if is_planned else report
        has_pool = has_choice(planned, num_chats) or has_choice(report, num_chats)
        cache = draw_cache(entry.name, context_tokens, num_chats, has_pool)
        if cache != EVERY_CHAT_FULL:
            report = verdict(checkpoint, here, context_tokens, num_chats, room, cache)
    draw_verdict(verdict(checkpoint, devices, context_tokens, num_chats, room, cache) if is_planned else report)
    if cannot_run(report):  # No slider makes it run here.
        return
    if isinstance(report, FitReport) and not report.fits:
        with st.popover(tr("load.anyway"), icon=":material/warning:", key=f"load_ask_{entry.name}"):
            st.markdown(sentence(report))
            st.markdown(tr("load.anyway_text"))
            st.button(tr("load.anyway_yes"), key=f"force_load_{entry.name}", icon=":material/play_arrow:",
                      on_click=_load, args=(entry.name, (context_tokens, num_chats), room, cache, True))  # fmt: skip
    elif gpu_error() is not None:
        with st.container(horizontal=True):
            _load_button(entry.name, (context_tokens, num_chats), room, cache)
            with st.popover(tr("load.on_cpu"), icon=":material/memory:", key=f"load_cpu_ask_{entry.name}"):
                st.markdown(tr("load.on_cpu_text"))
                st.button(tr("load.on_cpu_yes"), key=f"load_on_cpu_{entry.name}", icon=":material/play_arrow:",
                          on_click=_load,
                          args=(entry.name, (context_tokens, num_chats), room, cache, False, True))  # fmt: skip
    else:
        _load_button(entry.name, (context_tokens, num_chats), room, cache)


def _load_button(name: str, drawn: tuple[int, int], room: AdapterRoom, cache: CacheChoice) -> None:
    # Folders have any name: the keys of what else there is on the page begin otherwise, whatever "name" is.
    st.button(tr("load.load"), key=f"load_model_{name}", icon=":material/play_arrow:", type="primary",
              on_click=_load, args=(name, drawn, room, cache))  # fmt: skip


def _load(
    name: str,
    drawn: tuple[int, int],
    room: AdapterRoom,
    cache: CacheChoice,
    force: bool = False,
    on_cpu: bool = False,
) -> None:
    """Load with what the sliders say by now. `force` counts only for the values that were `drawn` as too large."""
    context_tokens, num_chats = now = chosen_now(name, drawn)
    adapters, promise = room_now(name, room), cache_now(name, *now, cache)
    is_forced = force and (now, adapters, promise) == (drawn, room, cache)
    load(name, context_tokens, num_chats, is_forced, on_cpu, adapters, promise)


def unload(seen: EngineState) -> None:
    """Unload the model that was shown, unless another tab has loaded another one since."""
    state = engine().state
    if (state.model, state.server) == (seen.model, seen.server):
        engine().unload()


def draw_state(state: EngineState) -> None:
    """What the engine does with its model: loads it, has it, or failed to."""
    if state.phase == "loading":
        loading_progress()
        st.button(tr("load.cancel"), key=f"load_cancel_{state.model}", icon=":material/close:", on_click=unload,
                  args=(state,))  # fmt: skip
    elif state.phase == "ready" and state.facts is not None:
        _draw_loaded(state, state.facts)
    elif state.error is not None:
        show_error(state.error)


def _draw_loaded(state: EngineState, facts: ModelFacts) -> None:
    context = tr("load.context_value", tokens=f"{facts.context_tokens:,}")
    serves = tr("load.serves", context=context, chats=facts.num_slots)
    if facts.pool_tokens is not None:
        serves = tr("load.serves_shared", context=context, chats=facts.num_slots, pool=f"{facts.pool_tokens:,}")
    st.success(serves, title=tr("load.success"), icon=":material/check_circle:")
    with st.grid("auto", min_column_width=110):
        for name, value in _facts(facts):
            st.markdown(f":small[:gray[{tr(f'load.fact_{name}')}]]  \n**{value}**")
    with st.container(horizontal=True):
        st.button(tr("load.chat"), key="load_chat", icon=":material/chat:", type="primary",
                  on_click=go_to, args=(CHAT_PAGE,))  # fmt: skip
        st.button(tr("load.unload"), key=f"load_unload_{state.model}", icon=":material/eject:", on_click=unload,
                  args=(state,))  # fmt: skip


def _facts(facts: ModelFacts) -> list[tuple[str, str]]:
    taken = facts.weights_bytes + facts.cache_bytes if facts.memory is None else _taken_bytes(facts.memory)
    return [
        ("device", escape(facts.device)),
        ("taken", memory_size(taken / MIB)),
        ("load_s", tr("load.seconds_value", seconds=f"{engine().state.ready_after_s:.1f}")),
    ]


def _draw_technical(facts: ModelFacts) -> None:
    """What those want to know who compare kernels and plans."""
    st.markdown(tr("load.kernel_line", kernel=facts.kernel, reason=tr(f"kernel.{facts.kernel_reason}")))
    for note in facts.notes:
        st.caption(tr(f"load.note_{note}"))
    cache = f"{_mib(facts.cache_bytes)} · {tr('model.bits', bits=facts.cache_bits)}"
    rows = [("weights", _mib(facts.weights_bytes)), ("cache", cache)]
    if facts.memory is not None:
        rows.append(("memory", f"{_mib(_taken_bytes(facts.memory))} / {_mib(facts.memory.plan.total)}"))
    with st.grid("auto", min_column_width=110):
        for name, value in rows:
            st.markdown(f":small[:gray[{tr(f'load.fact_{name}')}]]  \n{value}")


def _taken_bytes(memory: MemoryFacts) -> int:
    """The memory that was taken; the CUDA context as planned where NVML does not tell it."""
    context = memory.context_bytes
    return memory.peak_bytes + (memory.plan.context if context is None else context)


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / MIB:,.0f} MiB"


def _about(entry: LibraryEntry, checkpoint: Checkpoint) -> str:
    """What it is, how large, and how much it reads at once."""
    words = [
        FAMILY.sub("", checkpoint.architecture) or checkpoint.architecture,
        file_size(checkpoint.size_bytes),
        tr("model.context", tokens=f"{checkpoint.max_context_tokens:,}"),
    ]
    return " · ".join([*map(escape, words), *([tr("library.cached")] if entry.is_cached else [])])
