"""Which cards a page reckons with: this machine's GPUs as they are now, or one of the usual cards; knows no model."""

from __future__ import annotations

from collections import Counter

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
Cards = tuple[Card, ...]


def reading() -> GpuSnapshot | None:
    """The newest reading of the GPUs; the very first one is waited for."""
    return monitor().latest(FIRST_READING_S)


def usable_gpus() -> list[Gpu]:
    """The GPUs that a model can be loaded on, in NVML's order."""
    latest = reading()
    gpus = latest.gpus if latest else ()
    return [gpu for gpu in gpus if gpu.error is None and gpu.total_mib and gpu.free_mib is not None]


def own_pids() -> frozenset[int]:
    """The engine's process, whose memory comes back before another model is loaded."""
    pid = runner().worker_pid
    return frozenset() if pid is None else frozenset({pid})


def cards_here() -> Cards:
    """The GPUs that a load can take, as they are now; none where models run on the CPU."""
    pids, compiler = own_pids(), has_compiler()
    return tuple(card_from_gpu(gpu, pids, compiler) for gpu in usable_gpus())


def choose_cards() -> Cards:
    """The choice of what to plan for. None: the CPU of this machine, where it has no GPU."""
    here = cards_here()
    names = dict.fromkeys(card.name for card in known_gpus() if not card.is_rare)
    labels = {name: _card_label(name, here) for name in [HERE, *names]}
    chosen = st.selectbox(tr("gauge.card"), list(labels), key=KEY, persist_state="session",
                          format_func=labels.__getitem__, help=tr("gauge.card_help"))  # fmt: skip
    if chosen == HERE and not here:
        st.caption(tr("gauge.cpu"))
    return here if chosen == HERE else (card_from_table(lookup(chosen)),)


def names_of(cards: Cards) -> str:
    """What to call the cards together, as in "2 × NVIDIA A40"; "" for none."""
    counts = Counter(card.name for card in cards)
    return " + ".join(f"{count} × {one}" if count > 1 else one for one, count in counts.items())


def _card_label(name: str, here: Cards) -> str:
    if name == HERE:
        return tr("gauge.this_gpu", name=names_of(here)) if here else tr("gauge.this_cpu")
    return tr("gauge.other_card", name=name, gib=f"{lookup(name).total_mib / 1024:.0f}")
