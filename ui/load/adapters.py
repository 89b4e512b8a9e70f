"""LoRA adapters beside a model on Load model: how many it is to have room for, and which there are."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from core.library.adapters import FoundAdapter, usual_room
from core.library.last_model import last_load
from core.memory.adapter_room import MAX_ADAPTERS, NO_ROOM, AdapterRoom
from ui.load.disk import size_words
from ui.shared.errors import sentence
from ui.shared.i18n import tr
from ui.shared.markdown import escape

# Errors of adapters that are for another model, and nothing else is wrong with them.
OF_OTHER_MODELS = ("adapter_base_matrix", "adapter_base_shape")


def draw_room(name: str, found: list[FoundAdapter]) -> AdapterRoom:
    """How many adapters at once; nothing is asked where the model can have none."""
    usual = usual_room(found)
    if not usual.count:
        return NO_ROOM
    last = last_load(name)
    begin = usual.count if last is None or not last.adapters.is_chosen else min(last.adapters.count, MAX_ADAPTERS)
    count = st.select_slider(tr("load.adapters"), range(MAX_ADAPTERS + 1), begin, key=_key(name),
                             help=tr("load.adapters_help", rank=usual.rank), persist_state="session")  # fmt: skip
    return AdapterRoom(count, usual.rank)


def room_now(name: str, drawn: AdapterRoom) -> AdapterRoom:
    """What the slider says now, in a callback; `drawn` is what it said when the page was drawn."""
    return replace(drawn, count=st.session_state.get(_key(name), drawn.count))


def draw_found(found: list[FoundAdapter]) -> None:
    """The adapters in adapters/ and in the model's folder, each with its rank and size, or why it is of no use.

    Those of other models are left out.
    """
    told = [one for one in found if one.error is None or one.error.key not in OF_OTHER_MODELS]
    if not told:
        return
    st.markdown(f"**{tr('load.adapters_found')}**")
    for one in told:
        if one.shape is None:
            assert one.error is not None
            st.markdown(f":material/block: **{escape(one.name)}**  \n:small[:gray[{sentence(one.error)}]]")
            continue
        about = tr("load.adapter_line", rank=one.shape.rank, size=size_words(one.shape.num_bytes),
                   base=escape(one.shape.base_name or "-"))  # fmt: skip
        hint = f"  \n:small[:orange[{tr('load.adapter_other_base')}]]" if one.is_of_other_base else ""
        st.markdown(f":material/tune: **{escape(one.name)}**  \n:small[:gray[{about}]]{hint}")


def _key(name: str) -> str:
    return f"gauge_adapters_{name}"
