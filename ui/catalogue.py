"""The well-known repositories and their branches as a table, with the verdict beside each; downloads nothing."""

from __future__ import annotations

import math

import pandas as pd
import streamlit as st

from core.catalogue import CatalogueEntry, checkpoint, entries
from core.errors import DeckError
from core.fit import Card, FitReport
from ui.fragment import redraw_alone
from ui.gauge import draw_choice, verdict
from ui.i18n import tr
from ui.models import quantization_words

CHATS = 1


def draw_catalogue(card: Card | None) -> None:
    """All branches of one repository; the one that is chosen in the table has its gauge below."""
    repos = list(dict.fromkeys(entry.repo for entry in entries()))
    repo = st.selectbox(tr("download.repository"), repos, key="catalogue_repo", persist_state="session")
    found = [entry for entry in entries() if entry.repo == repo]
    reports = [verdict(checkpoint(entry), card, 0, CHATS) if card else None for entry in found]
    event = st.dataframe(
        pd.DataFrame([_row(entry, report) for entry, report in zip(found, reports, strict=True)]),
        hide_index=True,
        key=f"catalogue_{repo}",
        on_select="rerun",
        selection_mode="single-row-required",
    )
    st.caption(tr("download.assumes"))
    if card is not None:
        rows = event["selection"]["rows"]
        chosen = found[rows[0] if rows and rows[0] < len(found) else 0]
        st.markdown(f"**{chosen.name}**")
        redraw_alone(draw_choice, checkpoint(chosen), card, f"catalogue_{chosen.name}")


def _row(entry: CatalogueEntry, report: FitReport | DeckError | None) -> dict[str, str]:
    fits = isinstance(report, FitReport) and report.fits
    row = {tr("download.column_branch"): entry.branch}
    if report is not None:
        sign, word = ("✅", tr("download.fits")) if fits else ("❌", tr("download.fits_not"))
        row[tr("download.column_fits")] = f"{sign} {word}"
    if isinstance(report, FitReport):
        row[tr("download.column_needed")] = f"{math.ceil(report.needed_mib):,} MiB"
    row[tr("download.column_file")] = entry.published
    row[tr("download.column_quantization")] = ", ".join(quantization_words(entry.quantization))
    if isinstance(report, FitReport):
        row[tr("download.column_longest")] = f"{report.max_context:,}"
        row[tr("download.column_kernel")] = report.kernel
    return row
