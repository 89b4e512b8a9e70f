"""The four charts of the GPUs' readings over time, one colour a GPU.

When its specification changes, Streamlit draws a chart anew, with a flash. When only its data change, the lines move.
So everything that moves is data: time counts back from the newest reading, and the scales are the GPUs' own limits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from core.gpu.snapshot import Gpu, GpuSnapshot
from ui.shared.i18n import text, tr

POINTS = 200
HEIGHT_PX = 150
MIN_WIDTH_PX = 300
MINUTE_S = 60
# Where the driver tells no limit: about what a desktop card draws.
UNKNOWN_LIMIT_W = 400.0

Value = Callable[[Gpu], float | None]
VALUES: dict[str, Value] = {
    "memory": lambda gpu: None if gpu.used_mib is None else gpu.used_mib / 1024,
    "utilization": lambda gpu: gpu.utilization_percent,
    "temperature": lambda gpu: gpu.temperature_c,
    "power": lambda gpu: gpu.power_w,
}


def gpu_label(gpu: Gpu) -> str:
    """What a GPU is called on pages, as plain text."""
    name = gpu.name or text("monitor.no_name")
    return text("monitor.gpu", label=gpu.label, name=name)


def draw_charts(samples: Sequence[GpuSnapshot], window_s: int) -> None:
    gpus = samples[-1].gpus if samples else ()
    samples = thinned(samples, window_s)
    with st.grid("auto", min_column_width=MIN_WIDTH_PX):
        for name, value in VALUES.items():
            with st.container(gap="xsmall"):
                st.caption(tr(f"monitor.chart_{name}"))
                spec = chart_spec([gpu_label(gpu) for gpu in gpus], top(name, gpus), window_s)
                st.vega_lite_chart(rows(samples, value), spec, width="stretch", key=f"monitor_{name}")


def thinned(samples: Sequence[GpuSnapshot], window_s: int) -> list[GpuSnapshot]:
    """About POINTS of the samples at most. As time goes on the same ones are kept, so that a line does not tremble."""
    step_s = max(1, window_s // POINTS)
    kept = [sample for sample in samples[:-1] if int(sample.time_s) % step_s == 0]
    return [*kept, *samples[-1:]]


def rows(samples: Sequence[GpuSnapshot], value: Value) -> pd.DataFrame:
    """A line a reading and GPU: seconds before the newest reading, the value or nothing, the GPU."""
    now_s = samples[-1].time_s if samples else 0.0
    found = [(round(sample.time_s - now_s, 1), value(gpu), gpu_label(gpu)) for sample in samples for gpu in sample.gpus]
    return pd.DataFrame(found, columns=["t", "value", "gpu"]).astype({"t": float, "value": float})


def top(name: str, gpus: Sequence[Gpu]) -> float:
    """The upper end of a chart's scale."""
    if name == "memory":
        return max((gpu.total_mib or 0 for gpu in gpus), default=0) / 1024 or 1.0
    if name == "power":
        ends = [gpu.power_limit_w or max(UNKNOWN_LIMIT_W, gpu.power_w or 0) for gpu in gpus]
        return max(ends, default=UNKNOWN_LIMIT_W)
    return 100.0


def chart_spec(gpus: Sequence[str], top_value: float, window_s: int) -> dict[str, Any]:
    per_label = window_s / 5 if window_s > MINUTE_S else MINUTE_S / 4
    ticks = [-round(per_label * count) for count in range(int(window_s / per_label) + 1)]
    unit, seconds = ("monitor.axis_minutes", MINUTE_S) if window_s > MINUTE_S else ("monitor.axis_seconds", 1)
    # The unit stands at the first tick alone: at all of them, on a narrow chart, the labels run into each other.
    name = f"datum.value == {ticks[-1]} ? ' {tr(unit)}' : ''"
    label = f"datum.value == 0 ? '{tr('monitor.axis_now')}' : format(datum.value / {seconds}, 'd') + ({name})"
    axis = {
        "title": None,
        "values": ticks,
        "labelExpr": label,
        "grid": False,
        "labelFlush": True,
        "labelOverlap": False,
    }
    return {
        "height": HEIGHT_PX,
        "mark": {"type": "line", "strokeWidth": 2, "clip": True},
        "encoding": {
            "x": {"field": "t", "type": "quantitative", "scale": {"domain": [-window_s, 0]}, "axis": axis},
            "y": {
                "field": "value",
                "type": "quantitative",
                "scale": {"domain": [0, top_value], "nice": False},
                # To the very end: what lies above the last tick could be anything.
                "axis": {"title": None, "values": [top_value * quarter / 4 for quarter in range(5)], "format": ",.0f"},
            },
            "color": {"field": "gpu", "type": "nominal", "scale": {"domain": list(gpus)}, "legend": None},
        },
    }
