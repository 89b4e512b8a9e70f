"""The disk with the models as a bar: how much they take and how much is free."""

from __future__ import annotations

from html import escape

import streamlit as st

from core.library.scan import DiskUsage
from ui.load.bar import BAR, DOT, FREE, INDIGO, LEGEND, PRIMARY, SLATE, TRACK, theme_color
from ui.shared.i18n import text

KB, MB, GB = 10**3, 10**6, 10**9


def file_size(num_bytes: int) -> str:
    """As the Hub and disks count: powers of 1000."""
    return f"{num_bytes / GB:.2f} GB" if num_bytes >= GB else f"{num_bytes / MB:.0f} MB"


def size_words(num_bytes: int) -> str:
    """As the Hub and disks count, down to the small files beside the weights."""
    return file_size(num_bytes) if num_bytes >= MB or num_bytes == 0 else f"{max(1, num_bytes // KB)} kB"


def draw_disk(usage: DiskUsage) -> None:
    st.html(disk_html(usage))


def disk_html(usage: DiskUsage) -> str:
    """The disk from left to right: the models, the adapters where there are any, everything else, what is free."""
    others = max(0, usage.total_bytes - usage.free_bytes - usage.models_bytes - usage.adapters_bytes)
    adapters = [(text("library.disk_adapters"), usage.adapters_bytes, theme_color(INDIGO))]
    parts = [
        (text("library.disk_models"), usage.models_bytes, theme_color(PRIMARY)),
        *(adapters if usage.adapters_bytes else []),
        (text("library.disk_others"), others, theme_color(SLATE)),
        (text("library.disk_free"), usage.free_bytes, None),
    ]
    whole = max(1, sum(size for _, size, _ in parts))
    stretches = "".join(
        f'<div style="width:{100 * size / whole:.3f}%;background:{color or "transparent"}"></div>'
        for _, size, color in parts
    )
    legend = "".join(
        f'<span><span style="{DOT.format(color=color or FREE)}"></span>{escape(label)} <b>{size_words(size)}</b></span>'
        for label, size, color in parts
    )
    spoken = ", ".join(f"{label} {size_words(size)}" for label, size, _ in parts)
    bar = f'<div style="{BAR.format(track=TRACK)}">{stretches}</div><div style="{LEGEND}">{legend}</div>'
    return f'<div role="img" aria-label="{escape(spoken)}">{bar}</div>'
