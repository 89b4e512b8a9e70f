"""The branches of one repository as a table, with the verdict beside each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
import streamlit as st

from core.checkpoint.checkpoint import Checkpoint
from core.checkpoint.judgement import short_reason
from core.common.errors import DeckError
from core.hub.address import DEFAULT_REVISION, Address
from core.hub.branches import Branch
from core.hub.source import Source
from core.library import catalogue
from core.library.ranking import best_candidate
from core.library.recommended import recommended_models, sized_checkpoint
from core.memory.cpu_fit import CpuReport
from core.memory.fit_report import FitReport
from ui.load.disk import size_words
from ui.load.gauge import Verdict, verdict
from ui.load.gpu_choice import Devices, names_of
from ui.load.quantization import bits_of
from ui.shared.i18n import tr

CHATS = 1
VERDICT_WIDTH = 175
# What somebody who may not see a repository is told; the Hub says of a private one that it is not there.
NEEDS_TOKEN = ("hub_gated", "hub_token", "hub_unknown_repo")
Report = Verdict | None


def known_branches(address: Address) -> tuple[Branch, ...]:
    """The repository's branches as they are known without a network; nothing for others and for a branch unknown."""
    repo = address.repo.casefold()
    entries = [entry for entry in catalogue.entries() if entry.repo.casefold() == repo]
    if address.revision not in [entry.branch for entry in entries]:
        return ()
    return tuple(Branch(entry.branch, checkpoint=catalogue.checkpoint(entry)) for entry in entries)


def listed_branches(address: Address) -> tuple[Branch, ...]:
    """The main branch of a recommended model, by its published sizes; nothing for others."""
    found = next((model for model in recommended_models() if model.repo == address.repo), None)
    return () if found is None else (Branch(DEFAULT_REVISION, checkpoint=sized_checkpoint(found)),)


def choose_branch(source: Source, branches: Sequence[Branch], devices: Devices) -> Branch:
    """The table. The branch that the address names is chosen at first, else the one to recommend, else the first."""
    address = source.address
    reports = [_report(branch, devices) for branch in branches]
    best = recommended(branches, reports)
    rows = [_row(branch, report, index == best)
            for index, (branch, report) in enumerate(zip(branches, reports, strict=True))]  # fmt: skip
    named = [index for index, branch in enumerate(branches) if branch.name == address.revision != "main"]
    first = named[0] if named else best or 0
    # A row is chosen by its index: where the branches are others, or in another order, the table is another one.
    names = hash(tuple(branch.name for branch in branches))
    event = st.dataframe(
        pd.DataFrame(rows).fillna(""),
        hide_index=True,
        key=f"branches_{address}_{names_of(devices) or 'cpu'}_{source.kind}_{source.endpoint}_{names}",
        on_select="rerun",
        selection_mode="single-row-required",
        selection_default={"selection": {"rows": [first]}},
        # The table makes a column as wide as most of its cells are: the longest word here is in one of them only.
        column_config={tr("download.column_fits"): st.column_config.TextColumn(width=VERDICT_WIDTH)},
    )
    chosen = event["selection"]["rows"]
    return branches[chosen[0] if chosen and chosen[0] < len(branches) else first]


def recommended(branches: Sequence[Branch], reports: Sequence[Report]) -> int | None:
    """The index of the branch to recommend, by core.library.ranking's rule; None where none fits."""
    judged = [
        (index, (branch.checkpoint, report))
        for index, (branch, report) in enumerate(zip(branches, reports, strict=True))
        if branch.checkpoint is not None and isinstance(report, FitReport)
    ]
    best = best_candidate([choice for _, choice in judged])
    return None if best is None else judged[best][0]


def _report(branch: Branch, devices: Devices) -> Report:
    return verdict(branch.checkpoint, devices, 0, CHATS) if branch.checkpoint else None


def _row(branch: Branch, report: Report, is_best: bool) -> dict[str, str]:
    row = {tr("download.column_branch"): branch.name}
    if report is not None or branch.error is not None or branch.adapter is not None:
        row[tr("download.column_fits")] = _verdict_words(branch, report, is_best)
    if branch.checkpoint is not None:
        row |= _quantization_cells(branch.checkpoint)
    if branch.adapter is not None:
        row[tr("download.column_file")] = size_words(branch.adapter.num_bytes)
    if report is not None and not isinstance(report, DeckError):
        row |= {
            tr("download.column_longest"): f"{report.max_context:,}" if report.max_context else "-",
            tr("download.column_needed"): f"{math.ceil(report.needed_mib):,} MiB",
            tr("download.column_kernel"): report.kernel.name if report.fits else "-",
        }
    return row


def _quantization_cells(checkpoint: Checkpoint) -> dict[str, str]:
    quantization = checkpoint.quantization
    return {
        tr("download.column_file"): size_words(checkpoint.size_bytes),
        tr("download.column_bits"): bits_of(checkpoint),
        tr("download.column_group"): "-" if quantization.group_size < 0 else str(quantization.group_size),
        tr("download.column_act_order"): tr("download.yes" if quantization.is_permuted else "download.no"),
    }


def _verdict_words(branch: Branch, report: Report, is_best: bool) -> str:
    if is_best:
        return f"✅ {tr('download.recommended')}"
    if branch.adapter is not None:
        return f"🧩 {tr('adapter.label')}"
    if branch.error is not None and branch.error.key in NEEDS_TOKEN:
        return f"🔒 {tr('download.locked')}"
    if report is None or isinstance(report, DeckError):
        return refusal_words(branch.error or report)
    return fitting_words(report)


def fitting_words(report: FitReport | CpuReport, is_best: bool = False) -> str:
    """Whether it fits, as short as a table has it, and whether it is slow: on a CPU slower than people read, on a GPU
    by plain steps."""
    memory = "_cpu" if isinstance(report, CpuReport) else ""
    if not report.fits:
        return f"❌ {tr(f'download.fits{memory}_not')}"
    if report.is_slow:
        return f"🐢 {tr('download.fits_slow')}"
    if is_best:
        return f"✅ {tr('download.best_here' if isinstance(report, CpuReport) else 'download.best')}"
    return f"✅ {tr(f'download.fits{memory}')}"


def refusal_words(error: DeckError | None) -> str:
    """Why a model cannot run here, as short as a table has it."""
    return f"⚠️ {tr(f'refusal.{short_reason(error)}' if error else 'refusal.other')}"
