"""LoRA adapters on Load model: how many a model is to have room for, and whether of experts; which there are, and how
each is deleted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import streamlit as st

from core.checkpoint.adapters import AdapterShape
from core.checkpoint.checkpoint import Checkpoint
from core.common.errors import DeckError, InputError
from core.common.values import printable
from core.library.adapters import FoundAdapter, usual_room
from core.library.fingerprint import Fingerprint, fingerprint
from core.library.last_model import last_load
from core.library.scan import LibraryEntry
from core.memory.adapter_room import MAX_ADAPTERS, NO_ROOM, AdapterRoom, adaptable_stacks, room_bytes
from core.memory.cpu_fit import ADAPTER_COPIES
from core.memory.sizes import MIB
from ui.load.bar import memory_size
from ui.load.disk import size_words
from ui.shared.deleting import Refusals, adapter_refusals, delete_adapter
from ui.shared.errors import sentence, show_error
from ui.shared.i18n import text, tr
from ui.shared.icon_buttons import icons
from ui.shared.markdown import escape
from ui.shared.resources import engine


def draw_room(name: str, checkpoint: Checkpoint, found: list[FoundAdapter], is_on_cpu: bool) -> AdapterRoom:
    """How many adapters at once, and of a mixture whether they may change experts; nothing is asked where the model can
    have none."""
    usual = usual_room(found)
    if not usual.count:
        return NO_ROOM
    last = last_load(name)
    begin = usual.count if last is None or not last.adapters.is_chosen else min(last.adapters.count, MAX_ADAPTERS)
    count = st.select_slider(tr("load.adapters"), range(MAX_ADAPTERS + 1), begin, key=_key(name),
                             help=tr("load.adapters_help", rank=usual.rank), persist_state="session")  # fmt: skip
    has_experts = last is not None and last.adapters.has_experts
    if count and adaptable_stacks(checkpoint):
        has_experts = st.toggle(tr("load.adapters_experts"), has_experts, key=_experts_key(name),
                                help=tr("load.adapters_experts_help"), persist_state="session")  # fmt: skip
        with_experts, without = (room_bytes(checkpoint, AdapterRoom(count, usual.rank, one)) for one in (True, False))
        taken_mib = (with_experts - without) * (ADAPTER_COPIES if is_on_cpu else 1) / MIB
        st.caption(tr("load.adapters_experts_take", size=memory_size(taken_mib)))
    return AdapterRoom(count, usual.rank, has_experts)


def room_now(name: str, drawn: AdapterRoom) -> AdapterRoom:
    """What slider and toggle say now, in a callback; `drawn` is what they said when the page was drawn."""
    count = st.session_state.get(_key(name), drawn.count)
    return replace(drawn, count=count, has_experts=st.session_state.get(_experts_key(name), drawn.has_experts))


def draw_found(entry: LibraryEntry, found: list[FoundAdapter]) -> None:
    """The adapters of the model, each with its rank and size, or why it is of no use: those in adapters/ that were
    trained on it, and all in its own folder."""
    told = [one for one in found if one.is_of_model or one.folder.parent == entry.folder]
    if not told:
        return
    st.markdown(f"**{tr('load.adapters_found')}**")
    refusals = adapter_refusals()
    for one in told:
        _draw_one(one, entry.name, refusals)


def draw_unused(found: list[FoundAdapter]) -> None:
    """The adapters that no model here can have."""
    if not found:
        return
    is_refused = any(_error_key("", one.folder) in st.session_state for one in found)
    with st.expander(tr("adapter.unused", count=len(found)), key="adapters_unused", expanded=is_refused,
                     icon=":material/tune:"):  # fmt: skip
        if any(one.shape is not None for one in found):
            st.caption(tr("adapter.unused_help"))
        refusals = adapter_refusals()
        for one in found:
            _draw_one(one, "", refusals)


def about_words(adapter: AdapterShape) -> str:
    base = adapter.base_name or text("adapter.base_unnamed")
    return tr("load.adapter_line", rank=adapter.rank, size=size_words(adapter.num_bytes), base=base)


def _draw_one(one: FoundAdapter, model: str, refusals: Refusals) -> None:
    """One adapter as it is shown with `model`, "" for none, and how it is deleted, or why it is not."""
    if one.shape is None:
        assert one.error is not None
        icon, about = ":material/block:", sentence(one.error)
    else:
        icon, about = ":material/tune:", about_words(one.shape)
    hint = f"  \n:small[:orange[{tr('load.adapter_other_base')}]]" if one.is_of_other_base else ""
    if model and one.shape is not None and one.shape.changes_experts and not _has_expert_room(model):
        hint += f"  \n:small[:gray[{tr('load.adapter_experts')}]]"
    thing = _thing(model, one.folder)
    with st.container(horizontal=True, vertical_alignment="center", wrap=False):
        st.markdown(f"{icon} **{escape(one.name)}**  \n:small[:gray[{about}]]{hint}", width="stretch")
        with icons(f"adapter_{thing}"):
            with st.popover(tr("library.delete"), icon=":material/delete:", key=f"adapter_ask_{thing}",
                            help=tr("library.delete")):  # fmt: skip
                _draw_question(one, thing, model, refusals)
    if refused := st.session_state.pop(_error_key(model, one.folder), None):
        show_error(refused)


def _has_expert_room(model: str) -> bool:
    """Whether the model is loaded with room for adapters of experts."""
    state = engine().state
    return state.model == model and state.facts is not None and state.facts.adapters.reaches_experts


def _draw_question(one: FoundAdapter, thing: str, model: str, refusals: Refusals) -> None:
    if is_in_use(one.folder):
        st.markdown(tr("adapter.delete_used", name=one.name))
        return
    if (refusal := refusals(one.folder)) is not None:
        st.markdown(sentence(refusal))
        return
    st.markdown(delete_question(one.folder))
    st.button(tr("library.delete_yes"), key=f"adapter_delete_{thing}", type="primary", on_click=_delete,
              args=(one.folder, fingerprint(one.folder), model))  # fmt: skip


def delete_question(folder: Path) -> str:
    """What goes where a model's or an adapter's folder is deleted: of a linked one the link alone."""
    key = "library.delete_link" if folder.is_symlink() else "library.delete_question"
    return tr(key, folder=printable(str(folder)))


def is_in_use(folder: Path) -> bool:
    """Whether an answer is being written, or waits, with the adapter in `folder`."""
    return any(answer.adapter == folder for answer in engine().running_answers)


def _delete(folder: Path, seen: Fingerprint, model: str) -> None:
    """The page may be old: whether it is in use, and is still the one that was shown, is asked again."""
    now = fingerprint(folder)
    if not now or is_in_use(folder):
        return
    try:
        if now != seen:
            raise InputError("library_other", name=folder.name)
        delete_adapter(folder)
    except DeckError as error:
        st.session_state[_error_key(model, folder)] = error


def _thing(model: str, folder: Path) -> str:
    """What a widget's key says of the adapter in `folder`, which stands with each model that can have it."""
    return f"{model}_{printable(str(folder))}"


def _error_key(model: str, folder: Path) -> str:
    return f"adapter_error_{_thing(model, folder)}"


def _key(name: str) -> str:
    return f"gauge_adapters_{name}"


def _experts_key(name: str) -> str:
    return f"gauge_adapters_of_experts_{name}"
