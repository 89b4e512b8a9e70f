"""What a page plans for: the memory of this machine's GPUs as it is now, or of one of the usual GPUs."""

from __future__ import annotations

from collections import Counter

import streamlit as st

from core.gpu.known_gpus import known_gpus, lookup
from core.gpu.torch_support import has_nvidia_gpu, installed_torch, is_cpu_chosen, usable_gpus
from core.gpu.torch_support import names_of as names_of_gpus
from core.memory.device_memory import DeviceMemory
from core.memory.kernels.registry import has_c_compiler
from ui.shared.errors import sentence, show_error
from ui.shared.gpus import gpu_error, gpus_here, reading
from ui.shared.i18n import tr
from ui.shared.identity import show_words
from ui.shared.resources import engine

KEY, COUNT_KEY = "plan_gpu", "plan_gpu_count"
COUNTS = (1, 2, 4)
HERE = "here"
Devices = tuple[DeviceMemory, ...]


def own_pids() -> frozenset[int]:
    """The engine's process, whose GPU memory comes back before another model is loaded."""
    pid = engine().local.worker_pid
    return frozenset() if pid is None else frozenset({pid})


def devices_here() -> Devices:
    """The GPUs that a load can take, as they are now; none where models run on the CPU."""
    latest, report, pids = reading(), engine().local.gpu_report, own_pids()
    compiler = has_c_compiler()
    if latest is None or is_cpu_chosen() or gpu_error() is not None:
        return ()
    usable = usable_gpus(latest.gpus, report.torch if report else installed_torch())
    return tuple(DeviceMemory.measured(gpu, pids, compiler) for gpu in usable)


def draw_why_cpu() -> None:
    """Where there is no GPU to use: why, and that models run on the CPU. An error that the engine shows is left out."""
    latest, error, shown = reading(), gpu_error(), engine().state.error
    if error is not None:
        if shown is None or (shown.key, shown.params) != (error.key, error.params):
            show_error(error)
    elif is_cpu_chosen():
        st.caption(tr("gauge.cpu_chosen"))
    elif latest is not None and latest.error is not None and has_nvidia_gpu():
        st.warning(sentence(latest.error), icon=":material/warning:")
    else:
        st.caption(tr("gauge.cpu"))


def choose_devices() -> Devices:
    """The choice of what to plan for. None: the CPU of this machine, where it has no GPU."""
    here = devices_here()
    newest = sorted(known_gpus(), key=lambda gpu: (gpu.compute_capability, gpu.total_mib), reverse=True)
    names = dict.fromkeys(gpu.name for gpu in newest if not gpu.is_rare)
    labels = {name: _label(name, here) for name in [HERE, *names]}
    show_words(KEY, labels)
    chosen = st.selectbox(tr("gauge.card"), list(labels), key=KEY, persist_state="session",
                          format_func=labels.__getitem__, help=tr("gauge.card_help"))  # fmt: skip
    if not here and (chosen == HERE or gpu_error() is not None):
        draw_why_cpu()
    if chosen == HERE:
        return here
    count = st.segmented_control(tr("gauge.how_many"), COUNTS, key=COUNT_KEY, default=COUNTS[0], required=True,
                                 persist_state="session")  # fmt: skip
    return (DeviceMemory.planned(lookup(chosen)),) * count


def names_of(devices: Devices) -> str:
    """What to call the GPUs together, as in "2 × NVIDIA A40"; "" for none."""
    counts = Counter(device.name for device in devices)
    return " + ".join(f"{count} × {one}" if count > 1 else one for one, count in counts.items())


def _label(name: str, here: Devices) -> str:
    if name == HERE:
        if here:
            return tr("gauge.this_gpu", name=names_of(here))
        gpus = gpus_here() if gpu_error() else []
        return tr("gauge.this_gpu_unused", name=names_of_gpus(gpus)) if gpus else tr("gauge.this_cpu")
    return tr("gauge.other_card", name=name, gib=f"{lookup(name).total_mib / 1024:.0f}")
