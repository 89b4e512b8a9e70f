"""Which card a page reckons with: a GPU of this machine as it is now, or one of the usual cards; knows no model."""

from __future__ import annotations

import streamlit as st

from core.engine.kernels import has_compiler
from core.fit import Card, card_from_gpu, card_from_table
from core.gpu import Gpu, GpuSnapshot
from core.gpu_table import known_gpus, lookup
from ui.i18n import tr
from ui.resources import monitor, runner

KEY = "plan_card"
HERE = "here"
FIRST_READING_S = 2.0


def reading() -> GpuSnapshot | None:
    """The newest reading of the GPUs; the very first one is waited for."""
    return monitor().latest(FIRST_READING_S)


def usable_gpus() -> list[Gpu]:
    """The GPUs that a model can be loaded on, in NVML's order: the engine takes the first."""
    latest = reading()
    gpus = latest.gpus if latest else ()
    return [gpu for gpu in gpus if gpu.error is None and gpu.total_mib and gpu.free_mib is not None]


def own_pids() -> frozenset[int]:
    """The engine's process, whose memory comes back before another model is loaded."""
    pid = runner().worker_pid
    return frozenset() if pid is None else frozenset({pid})


def card_here() -> Card | None:
    """The GPU that a load takes, as it is now; None where models run on the CPU."""
    gpus = usable_gpus()
    return card_from_gpu(gpus[0], own_pids(), has_compiler()) if gpus else None


def choose_card() -> Card | None:
    """The choice of a card to plan for. None: the CPU of this machine, where it has no GPU."""
    here = card_here()
    names = dict.fromkeys(card.name for card in known_gpus() if not card.is_rare)
    labels = {name: _card_label(name, here) for name in [HERE, *names]}
    chosen = st.selectbox(tr("gauge.card"), list(labels), key=KEY, persist_state="session",
                          format_func=labels.__getitem__, help=tr("gauge.card_help"))  # fmt: skip
    if chosen == HERE and here is None:
        st.caption(tr("gauge.cpu"))
    return here if chosen == HERE else card_from_table(lookup(chosen))


def _card_label(name: str, here: Card | None) -> str:
    if name == HERE:
        return tr("gauge.this_cpu") if here is None else tr("gauge.this_gpu", name=here.name)
    return tr("gauge.other_card", name=name, gib=f"{lookup(name).total_mib / 1024:.0f}")
