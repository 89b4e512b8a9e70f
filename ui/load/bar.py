"""A bar of memory in coloured parts, its legend, a table: HTML in the theme's colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import streamlit as st
from streamlit import get_option

TRACK = "color-mix(in srgb, currentColor 9%, transparent)"
TABLE = "border-collapse:collapse;width:100%"
CELL = "padding:.3rem .6rem .3rem 0;text-align:left;white-space:nowrap;border-bottom:1px solid {line}"
FREE = "color-mix(in srgb, currentColor 18%, transparent)"
BAR = "position:relative;display:flex;height:1.1rem;border-radius:.35rem;overflow:hidden;background:{track}"
HATCH = "position:absolute;top:0;bottom:0;right:0;left:{left:.3f}%;border-left:2px solid currentColor;background:{fill}"
DOT = "display:inline-block;width:.6rem;height:.6rem;border-radius:50%;background:{color};margin-right:.35rem"
LEGEND = "display:flex;flex-wrap:wrap;gap:.15rem 1rem;margin-top:.4rem;font-size:.8rem;line-height:1.35"
# Indexes into the theme's chartCategoricalColors.
PRIMARY, ORANGE, INDIGO, RED, GREEN, SLATE = range(6)


@dataclass(frozen=True, slots=True)
class Part:
    """One stretch of a bar. `color` is an index into the theme's list, None the empty track."""

    label: str
    mib: float
    color: int | None


def memory_size(mib: float) -> str:
    """As people compare it: in one unit, which GPUs count by (powers of 1024)."""
    gib = mib / 1024
    return f"{gib:,.1f} GiB" if gib >= 0.05 else "< 0.1 GiB"


def theme_color(index: int) -> str:
    """A chart colour of the theme, as CSS that follows a change from light to dark by itself."""
    light = get_option("theme.light.chartCategoricalColors")
    dark = get_option("theme.dark.chartCategoricalColors")
    return f"light-dark({light[index % len(light)]}, {dark[index % len(dark)]})"


def draw_bar(parts: Sequence[Part], end_mib: float, spoken: str) -> None:
    """The parts from left to right. What lies beyond `end_mib`, the memory of the GPUs, is hatched."""
    shown = [part for part in parts if part.mib >= 0.5]
    st.html(bar_html(shown, end_mib, spoken))


def bar_html(parts: Sequence[Part], end_mib: float, spoken: str) -> str:
    return f'<div role="img" aria-label="{escape(spoken)}">{_bar(parts, end_mib)}{_legend(parts)}</div>'


def _bar(parts: Sequence[Part], end_mib: float) -> str:
    whole = max(end_mib, sum(part.mib for part in parts), 1.0)
    stretches = "".join(
        f'<div style="width:{100 * part.mib / whole:.3f}%;background:{_fill(part, "transparent")}"></div>'
        for part in parts
    )
    beyond = ""
    if whole > end_mib + 0.5:
        red = theme_color(RED)
        fill = f"repeating-linear-gradient(45deg, {red} 0 5px, transparent 5px 9px)"
        beyond = f'<div style="{HATCH.format(left=100 * end_mib / whole, fill=fill)}"></div>'
    return f'<div style="{BAR.format(track=TRACK)}">{stretches}{beyond}</div>'


def _legend(parts: Sequence[Part]) -> str:
    entries = "".join(
        f'<span><span style="{DOT.format(color=_fill(part, FREE))}"></span>{escape(part.label)} '
        f"<b>{memory_size(part.mib)}</b></span>"
        for part in parts
    )
    return f'<div style="{LEGEND}">{entries}</div>'


def _fill(part: Part, free: str) -> str:
    return free if part.color is None else theme_color(part.color)


def draw_name(text: str, color: int) -> None:
    """A name with the dot of its colour in the charts."""
    st.html(name_html(text, color))


def name_html(text: str, color: int) -> str:
    return f'<span style="{DOT.format(color=theme_color(color))}"></span><b>{escape(text)}</b>'


def table_html(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain table that scrolls by itself where the page is narrow."""
    lines = [_table_line("th", heads), *(_table_line("td", row) for row in rows)]
    return f'<div style="overflow-x:auto;font-size:.8rem"><table style="{TABLE}">{"".join(lines)}</table></div>'


def _table_line(tag: str, cells: Sequence[str]) -> str:
    style = CELL.format(line=FREE)
    return "<tr>" + "".join(f'<{tag} style="{style}">{escape(cell)}</{tag}>' for cell in cells) + "</tr>"
