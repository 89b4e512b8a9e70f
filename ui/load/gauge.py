"""The verdict on a page: the GPU as a bar, the sentence with its reason, the sliders for context and chats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import streamlit as st

from core.checkpoint.checkpoint import Checkpoint
from core.checkpoint.notes import Note
from core.checkpoint.rope import ContextLimits
from core.common.errors import DeckError, InputError
from core.library.last_model import last_load
from core.memory.adapter_room import NO_ROOM, AdapterRoom
from core.memory.cache_choice import EVERY_CHAT_FULL, CacheChoice
from core.memory.cpu_fit import CpuReport, check_cpu_fit
from core.memory.device_memory import DeviceMemory
from core.memory.fit import DEFAULT_CONTEXT_TOKENS, MAX_CHATS, check_fit
from core.memory.fit_report import SIZES, FitReport
from core.memory.load_plan import LoadPlan
from core.memory.plan import MemoryPlan, state_bytes
from core.memory.rental import cards_that_fit
from core.memory.sizes import MIB
from ui.load.bar import GREEN, INDIGO, ORANGE, PRIMARY, SLATE, Part, draw_bar, memory_size
from ui.load.gpu_choice import Devices
from ui.shared.errors import show_error
from ui.shared.i18n import text, tr

CHATS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, MAX_CHATS)
CONTEXT_STEPS, EXTENDED_STEPS = 32, 8
Verdict = FitReport | CpuReport | DeckError
SMALLEST_STEP = 32
# Where the slider's steps are as large as these, one below the default may be quick where that is not.
SHORT_CONTEXTS = (1024, 2048, 3072)
FITS_MARK, SLOW_MARK = ":green[:material/check_circle:]", ":orange[:material/hourglass_bottom:]"


def context_choices(limits: ContextLimits) -> list[int]:
    """About 32 contexts up to the model's own limit, with the default and the limits among them. A few of them are
    beyond what the model's usual rope serves."""
    usual, limit = limits.usual_tokens, limits.longest_tokens
    beyond = max(SMALLEST_STEP, limit // EXTENDED_STEPS)
    extended = [tokens for tokens in range(beyond, limit, beyond) if tokens > usual]
    step = max(SMALLEST_STEP, usual // CONTEXT_STEPS)
    short = SHORT_CONTEXTS if step >= SHORT_CONTEXTS[1] else ()
    return sorted({*range(step, usual, step), *short, min(usual, DEFAULT_CONTEXT_TOKENS), usual, *extended, limit})


def sliders(checkpoint: Checkpoint, key: str, before: tuple[int, int]) -> tuple[int, int]:
    """The context in tokens and the chats at once that a person chose for this model; `before`: see chosen_before()."""
    choices, (default, chats) = context_choices(checkpoint.context_limits), before
    left, right = st.columns(2)
    context_tokens = default
    with left:
        if len(choices) > 1:
            context_tokens = st.select_slider(tr("gauge.context"), choices, default, format_func=_with_commas,
                                              key=f"gauge_context_{key}", persist_state="session")  # fmt: skip
    with right:
        num_chats = st.select_slider(tr("gauge.chats"), CHATS, chats, key=f"gauge_chats_{key}",
                                     help=tr("gauge.chats_help"), persist_state="session")  # fmt: skip
    return context_tokens, num_chats


def cannot_run(report: Verdict) -> bool:
    """Whether it is said of the model, whatever the sliders say: then they are not shown."""
    return isinstance(report, DeckError) and not isinstance(report, InputError)


def usual(
    checkpoint: Checkpoint, name: str, devices: Devices, default_tokens: int = DEFAULT_CONTEXT_TOKENS
) -> tuple[int, int]:
    """The context and the chats at once to begin with: those of the last load of this name, as far as the sliders have
    them, else `default_tokens` or as many as the model has, fewer where that makes it quick on `devices`, and one
    chat."""
    limits = checkpoint.context_limits
    default, last = min(limits.usual_tokens, default_tokens), last_load(name)
    if last is None:
        report = verdict(checkpoint, devices, default, CHATS[0]) if devices else None
        if isinstance(report, FitReport) and report.fits and report.proposed_context < default:
            quick = [tokens for tokens in context_choices(limits) if tokens <= report.proposed_context]
            default = max(quick, default=default)
        return default, CHATS[0]
    context_tokens = [tokens for tokens in context_choices(limits) if tokens <= last.context_tokens]
    num_chats = [chats for chats in CHATS if chats <= last.num_chats]
    return max(context_tokens, default=default), max(num_chats, default=CHATS[0])


def chosen_before(checkpoint: Checkpoint, key: str, devices: Devices) -> tuple[int, int]:
    """What sliders() is about to say."""
    return chosen_now(key, usual(checkpoint, key, devices))


def chosen_now(key: str, drawn: tuple[int, int]) -> tuple[int, int]:
    """What the sliders of `key` say now, in a callback; `drawn` is what they said when the page was drawn."""
    names = (f"gauge_context_{key}", f"gauge_chats_{key}")
    context_tokens, num_chats = (st.session_state.get(name, old) for name, old in zip(names, drawn, strict=True))
    return context_tokens, num_chats


def _with_commas(number: int) -> str:
    return f"{number:,}"


def verdict(
    checkpoint: Checkpoint,
    devices: Devices,
    context_tokens: int,
    num_chats: int,
    adapters: AdapterRoom = NO_ROOM,
    cache: CacheChoice = EVERY_CHAT_FULL,
) -> Verdict:
    """Whether it fits `devices`, or why that cannot be said: no kernel takes it, its configuration is broken.

    Without a GPU, whether it fits into this machine's own memory.
    """
    try:
        if devices:
            return check_fit(checkpoint, devices, context_tokens, num_chats, adapters=adapters, cache=cache)
        return check_cpu_fit(checkpoint, context_tokens, num_chats, adapters=adapters, cache_bits=cache.bits)
    except DeckError as error:
        return error


def draw_verdict(report: Verdict) -> None:
    """The bar, the sentence and what would make it fit; on a CPU the sentence with the speed."""
    if isinstance(report, DeckError):
        show_error(report)
        return
    if isinstance(report, CpuReport):
        st.markdown(f"{_mark(report)} {tr(f'fit.{report.reason}', **_readable(report.params))}")
        draw_notes(report.notes)
        return
    spoken = text(f"fit.{report.reason}", **_readable(report.params))
    draw_bar(parts(report), sum(device.total_mib for device in report.devices), spoken)
    st.markdown(f"{_mark(report)} {sentence(report)}")
    speed = speed_words(report)
    if speed and report.is_slow:
        st.markdown(speed)
    for name, params in report.remedies:
        st.markdown(f"- {tr(f'fit.{name}', **_readable(params))}")
    if not report.fits:
        _draw_cards(report)
    draw_notes(report.notes)
    if report.load.cache.bits == 8:
        # The verdict's sentence is rounded: of short contexts it would not show.
        taken, whole = (f"{math.ceil(cache_bytes(report.load, bits) / MIB):,}" for bits in (8, 16))
        st.caption(tr("gauge.cache_saved", taken=taken, whole=whole))
    if report.reason != "too_large":
        longest = "gauge.longest" if report.load.pool_tokens is None else "gauge.longest_shared"
        st.caption(tr(longest, longest=f"{report.max_context:,}"))
    if speed and not report.is_slow:
        st.caption(speed)
    _draw_working(report)


def cache_bytes(load: LoadPlan, bits: int) -> int:
    """What the keys and values of the load's chats would take in `bits`, with the states of recurrent layers."""
    return state_bytes(replace(load.shape, cache_bits=bits), load.context_tokens, load.num_slots, load.num_pages)


def _mark(report: FitReport | CpuReport) -> str:
    if not report.fits:
        return ":red[:material/error:]"
    return SLOW_MARK if report.is_slow else FITS_MARK


def speed_words(report: FitReport) -> str | None:
    """How quick a load that fits is, where more or less context makes it otherwise."""
    if (note := report.speed_note) is None:
        return None
    name, params = note
    return tr(f"fit.{name}", **_readable(params))


def _draw_working(report: FitReport) -> None:
    """What the verdict rests on, to the MiB, for those who compare kernels and cards."""
    with st.expander(tr("gauge.worked_out")):
        needed, available = math.ceil(report.needed_mib), report.available_mib
        st.markdown(tr("gauge.exact", needed=f"{needed:,}", available=f"{available:,}"))
        if report.fits:
            st.markdown(tr("gauge.assumes", kernel=report.load.kernel.name))
        if len(report.devices) > 1:
            lines = [_share(*place) for place in zip(report.devices, report.plans, strict=True)]
            split = "gauge.split" if report.load.is_captured else "gauge.split_plain"
            st.markdown("  \n".join([tr(split), *lines]))


def _share(device: DeviceMemory, plan: MemoryPlan) -> str:
    needed, available = f"{math.ceil(plan.total / MIB):,}", f"{device.available_mib:,}"
    return tr("gauge.share", card=device.name, layers=plan.num_layers, needed=needed, available=available)


def draw_notes(found: Sequence[Note]) -> None:
    """What else to know of a model: what is left out, what differs."""
    for key, params in found:
        st.caption(f":material/info: {tr(f'note.{key}', **_readable(params))}")


def _draw_cards(report: FitReport) -> None:
    """The cards that would do, one alone and two of one kind."""
    for key, count in (("cards", 1), ("two_cards", 2)):
        if offers := cards_that_fit(report, count):
            st.markdown(f"- {tr(f'fit.{key}', cards=', '.join(offer.label for offer in offers))}")


def sentence(report: FitReport) -> str:
    return tr(f"fit.{report.reason}", **_readable(report.params))


def _readable(params: dict[str, str | int | float]) -> dict[str, str | int | float]:
    """As pages show them: memory in GiB, other numbers with commas."""
    return {name: value if isinstance(value, str) else _shown(name, value) for name, value in params.items()}


def _shown(name: str, value: int | float) -> str:
    return memory_size(value) if name in SIZES else f"{value:,}"


def parts(report: FitReport) -> list[Part]:
    """The GPU, or several as one, from left to right: what is taken, what the model takes, what is left."""
    plan, total_mib = report.plan, sum(device.total_mib for device in report.devices)
    weights, cache, context = plan.weights / MIB, plan.kv_cache / MIB, plan.context / MIB
    return [
        Part(tr("gauge.part_others"), total_mib - report.available_mib, SLATE),
        Part(tr("gauge.part_weights"), weights, PRIMARY),
        Part(tr("gauge.part_cache"), cache, INDIGO),
        Part(tr("gauge.part_scratch"), report.needed_mib - weights - cache - context, ORANGE),
        Part(tr("gauge.part_context"), context, GREEN),
        Part(tr("gauge.part_left"), max(0, math.floor(report.margin_mib)), None),
    ]


def draw_choice(checkpoint: Checkpoint, devices: Devices, key: str) -> None:
    """The sliders and the verdict under them, for a model that is not on disk."""
    before = chosen_before(checkpoint, key, devices)
    report = verdict(checkpoint, devices, *before)
    if not cannot_run(report) and (chosen := sliders(checkpoint, key, before)) != before:
        report = verdict(checkpoint, devices, *chosen)
    draw_verdict(report)
