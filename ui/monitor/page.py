"""What the GPUs do, by the background readings, for the pages GPU Monitor and Home."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from core.engine.memory_truth import MemoryTruth, memory_truth
from core.gpu.snapshot import Gpu, GpuProcess, GpuSnapshot
from core.memory.sizes import MIB
from ui.load.bar import PRIMARY, SLATE, Part, draw_bar, draw_name, table_html
from ui.load.gpu_choice import devices_here, draw_why_cpu, own_pids
from ui.monitor.charts import draw_charts, gpu_label
from ui.shared.errors import sentence, show_error
from ui.shared.gpus import gpu_error, gpus_here, reading
from ui.shared.i18n import text, tr
from ui.shared.markdown import escape
from ui.shared.resources import engine, monitor, token_rate

POLL_S = 1.0
WINDOWS_S = (60, 300, 900, 3600)
NO_VALUE = "–"


def choose_window() -> int:
    """The stretch of time that the charts show, in seconds; without a GPU there is nothing to choose."""
    if not gpus_here():
        return WINDOWS_S[1]
    labels = {seconds: tr(f"monitor.window_{seconds}") for seconds in WINDOWS_S}
    window_s = st.segmented_control(tr("monitor.window"), WINDOWS_S, default=WINDOWS_S[1], key="monitor_window",
                                    required=True, persist_state="session", label_visibility="collapsed",
                                    format_func=labels.__getitem__)  # fmt: skip
    return window_s or WINDOWS_S[1]


def draw_monitor(window_s: int) -> None:
    latest = reading()
    if latest is None:
        st.caption(tr("monitor.no_reading"))
        return
    if latest.error is not None:
        st.info(sentence(latest.error), icon=":material/info:")
    error = gpu_error()
    if error is not None and latest.gpus:
        show_error(error)
    for place, gpu in enumerate(latest.gpus):
        _draw_gpu(gpu, place)
    if latest.gpus:
        draw_charts(monitor().history(window_s), window_s)
    _draw_engine(latest)
    if latest.gpus:
        _draw_processes(latest.gpus)
        st.caption(tr("monitor.driver", driver=latest.driver_version or NO_VALUE, cuda=latest.cuda_version or NO_VALUE))


def draw_gpu_bars() -> None:
    """For Home: each GPU and what it holds."""
    for gpu in gpus_here():
        st.caption(escape(gpu_label(gpu)))
        _draw_memory(gpu)
    server = engine().state.server
    if server is not None:
        st.caption(tr("monitor.elsewhere", server=server))
    elif not devices_here():
        draw_why_cpu()


def _draw_gpu(gpu: Gpu, place: int) -> None:
    """One GPU: its name in its colour, its memory, what it tells about itself; or what is wrong with it."""
    with st.container(border=True, gap="xsmall"):
        draw_name(gpu_label(gpu), place)
        if gpu.error is not None:
            st.error(sentence(gpu.error), icon=":material/error:")
            return
        _draw_memory(gpu)
        st.caption(" · ".join(_sensors(gpu)))


def _draw_memory(gpu: Gpu) -> None:
    """Who holds the GPU's memory; nothing where the driver does not tell."""
    if gpu.total_mib is None or gpu.free_mib is None:
        return
    taken = gpu.total_mib - gpu.free_mib
    own = min(taken, _own_mib(gpu))
    parts = [
        Part(tr("gauge.part_others"), taken - own, SLATE),
        Part(tr("monitor.own_model"), own, PRIMARY),
        Part(tr("gauge.part_left"), gpu.free_mib, None),
    ]
    draw_bar(parts, gpu.total_mib, gpu_label(gpu))


def _own_mib(gpu: Gpu) -> int:
    return sum(process.used_mib or 0 for process in gpu.processes if process.pid in own_pids())


def _sensors(gpu: Gpu) -> list[str]:
    """The readings that the GPU gives, as words."""
    power = None if gpu.power_w is None else f"{gpu.power_w:.0f} W"
    if power and gpu.power_limit_w:
        power = f"{gpu.power_w:.0f} / {gpu.power_limit_w:.0f} W"
    found = {
        "utilization": gpu.utilization_percent,
        "temperature": gpu.temperature_c,
        "power": power,
        "clock": gpu.sm_clock_mhz,
        "memory_clock": gpu.memory_clock_mhz,
        "fan": gpu.fan_percent,
        "pcie": None if gpu.pcie_width is None else f"{gpu.pcie_generation or NO_VALUE} × {gpu.pcie_width}",
        "ecc": None if gpu.ecc_enabled is None else tr("monitor.on" if gpu.ecc_enabled else "monitor.off"),
        "capability": gpu.compute_capability and ".".join(map(str, gpu.compute_capability)),
    }
    return [tr(f"monitor.sensor_{name}", value=value) for name, value in found.items() if value is not None]


def _draw_engine(latest: GpuSnapshot) -> None:
    """The loaded model: how fast it writes, and what it was to take beside what it has."""
    st.subheader(tr("monitor.engine"))
    facts, running = engine().state.facts, engine().running_answers
    rate = token_rate().tokens_per_s(running)
    if facts is None:
        st.caption(tr("engine.nothing_loaded"))
        return
    if running:
        st.markdown(tr("monitor.rate", name=facts.name, rate=f"{rate:.1f}", answers=len(running)))
    else:
        st.markdown(tr("monitor.idle", name=facts.name))
    if facts.remote is not None:
        st.caption(tr("monitor.elsewhere", server=facts.remote.server))
        return
    if facts.memory is None:
        st.caption(tr("monitor.not_on_gpu", device=facts.device))
        return
    _draw_truth(memory_truth(facts.memory, facts.cache_bytes))
    if held_mib := sum(_own_mib(gpu) for gpu in latest.gpus):
        st.caption(tr("monitor.held", held=f"{held_mib:,}"))


def _draw_truth(truth: MemoryTruth) -> None:
    """What the load planned beside what it took, and in words whether the plan was true."""
    rows = [_truth_row(f"monitor.part_{part.name}", part.planned, part.measured) for part in truth.parts]
    rows.append(_truth_row("monitor.part_all", truth.planned, truth.measured))
    st.html(table_html(["MiB", text("monitor.planned"), text("monitor.measured")], rows))
    if any(part.measured is None for part in truth.parts):
        st.caption(tr("monitor.part_untold"))
    words = tr(f"monitor.plan_{truth.judgement}", off=f"{truth.off_mib:,}")
    if truth.judgement == "too_small":
        st.warning(words, icon=":material/warning:")
    else:
        st.markdown(words)


def _truth_row(key: str, planned: int, measured: int | None) -> list[str]:
    return [text(key), *(NO_VALUE if size is None else f"{size / MIB:,.0f}" for size in (planned, measured))]


def _draw_processes(gpus: Sequence[Gpu]) -> None:
    st.subheader(tr("monitor.processes"))
    rows = [_process_row(gpu, process) for gpu in gpus for process in gpu.processes]
    if not rows:
        st.caption(tr("monitor.no_processes"))
        return
    heads = [text(f"monitor.column_{name}") for name in ("gpu", "pid", "name", "memory", "kind")]
    st.html(table_html(heads, rows))


def _process_row(gpu: Gpu, process: GpuProcess) -> list[str]:
    mark = f" ◀ {text('monitor.own_model')}" if process.pid in own_pids() else ""
    return [
        gpu.label,
        str(process.pid),
        (process.name or NO_VALUE) + mark,
        NO_VALUE if process.used_mib is None else f"{process.used_mib:,} MiB",
        text(f"monitor.kind_{process.kind}"),
    ]
