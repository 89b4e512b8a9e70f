"""The part "Find" of the page Download: the search, its results, and the lists to begin with."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
import streamlit as st

from core.common.errors import DeckError
from core.hub.address import Address, check_address, parse_address, parse_modelscope
from core.hub.search import FoundModel, search_models
from core.hub.source import Kind, Source, read_source
from core.hub.tokens import token_for
from core.library import catalogue
from core.library.recommended import RecommendedModel, Verdict, best_of, sized_checkpoint, verdicts_for
from core.memory.cpu_fit import CpuReport, speed_text
from ui.download.branches import VERDICT_WIDTH, fitting_words, refusal_words
from ui.download.repository import draw_repository
from ui.download.source import choose_source
from ui.load.disk import size_words
from ui.load.gpu_choice import Devices, choose_devices, names_of
from ui.shared.errors import show_error
from ui.shared.i18n import tr
from ui.shared.pending import answer

TEXT_KEY = "find_text"
LIST_KEY = "find_list"
NEWER, LLAMA2 = "newer", "llama2"


def draw_find() -> None:
    query = _search_box()
    left, right = st.columns(2)
    with left:
        place = choose_source()
    with right:
        devices = choose_devices()
    if place is None:
        return
    try:
        source = _wanted(query, *place, devices)
        if source is not None:
            check_address(source.address)
    except DeckError as error:
        show_error(error)
        return
    if source is not None:
        draw_repository(source, devices, is_listed=not query)


def _search_box() -> str:
    """What is searched for: what was typed when Enter or the button was pressed last."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        query = st.text_input(tr("find.search"), key=TEXT_KEY, type="search", icon=":material/search:",
                             placeholder=tr("find.placeholder"), persist_state="session")  # fmt: skip
        # Leaving the field is what takes the query over; the button is where people look for that.
        st.button(tr("find.go"), key="find_go")
    return str(query or "").strip()


def _wanted(query: str, kind: Kind, endpoint: str, devices: Devices) -> Source | None:
    """The repository that the page is to show: the one that was named, chosen from the results, or from the lists."""
    if parse_modelscope(query):
        return read_source(query, kind, endpoint)
    address = named_address(query)
    if address is None:
        address = _suggested(kind, devices) if not query else _found(query, kind, endpoint)
    return None if address is None else Source(address, endpoint, kind)


def named_address(query: str) -> Address | None:
    """The repository that `query` names by itself: owner/name, name:branch, an address; None for words to search."""
    if "/" not in query and ":" not in query:
        return None
    address = parse_address(query)
    if "/" in address.repo:
        return address
    short = f"/{address.repo.casefold()}"
    known = [entry.repo for entry in catalogue.entries() if entry.repo.casefold().endswith(short)]
    return Address(known[0], address.revision) if known else address


def _found(query: str, kind: Kind, endpoint: str) -> Address | None:
    """The chosen one of the results, which come from the network."""
    if kind == "modelscope":
        st.info(tr("find.modelscope_by_name"), icon=":material/info:")
        return None
    key = ("search", endpoint, query.casefold())
    models = answer(key, lambda _: search_models(query, endpoint, token_for(endpoint)), tr("find.searching"))
    if models is None:
        return None
    if not models:
        st.info(tr("find.nothing", text=query), icon=":material/search_off:")
        return None
    return Address(_choose_model(models, f"found_{endpoint}_{query}").repo, "main")


def _choose_model(models: Sequence[FoundModel], key: str) -> FoundModel:
    # A row is chosen by its place among these models; at first the most downloaded one that may run.
    first = next((index for index, model in enumerate(models) if model.refusal is None), 0)
    event = st.dataframe(
        pd.DataFrame(_rows(models)),
        hide_index=True,
        key=f"{key}_{hash(tuple(model.repo for model in models))}",
        on_select="rerun",
        selection_mode="single-row-required",
        selection_default={"selection": {"rows": [first]}},
        height=min(38 + 35 * len(models), 260),
        # The table makes a column as wide as most of its cells are, and most models have no mark.
        column_config={tr("find.column_runs"): st.column_config.TextColumn(width=VERDICT_WIDTH)},
    )
    rows = event["selection"]["rows"]
    return models[rows[0] if rows and rows[0] < len(models) else first]


def _rows(models: Sequence[FoundModel]) -> list[dict[str, object]]:
    """The lines of the table. Why a model cannot run comes first, where a long name cannot push it out of sight."""
    refusals = [
        {} if model.refusal is None else {tr("find.column_runs"): refusal_words(model.refusal)} for model in models
    ]
    none = {tr("find.column_runs"): ""} if any(refusals) else {}
    return [none | refusal | _row(model) for refusal, model in zip(refusals, models, strict=True)]


def _row(model: FoundModel) -> dict[str, object]:
    return {
        tr("find.column_repo"): f"🔒 {model.repo}" if model.is_gated else model.repo,
        tr("find.column_downloads"): model.downloads,
        tr("find.column_size"): "-" if model.size_bytes is None else size_words(model.size_bytes),
        tr("find.column_license"): model.license_name or "-",
        tr("find.column_modified"): model.modified or "-",
    }


def _suggested(kind: Kind, devices: Devices) -> Address | None:
    """What to begin with: newer models with their verdicts, or Llama-2; ModelScope has the newer ones that it has."""
    if kind == "huggingface":
        names = {name: tr(f"find.list_{name}") for name in (NEWER, LLAMA2)}
        chosen = st.segmented_control(tr("find.list"), list(names), key=LIST_KEY, format_func=names.__getitem__,
                                      default=NEWER, required=True, persist_state="session")  # fmt: skip
        if chosen == LLAMA2:
            repos = list(dict.fromkeys(entry.repo for entry in catalogue.entries()))
            repo = st.selectbox(tr("download.repository"), repos, key="catalogue_repo", persist_state="session",
                                help=tr("find.lists_help"))  # fmt: skip
            return Address(repo, "main")
    listed = [one for one in verdicts_for(devices) if kind == "huggingface" or one[0].on_modelscope]
    # The best and what fits come first: it would lie below all that are too large, or too slow on a CPU.
    best = best_of(listed)
    verdicts = sorted(listed, key=lambda one: (one[0] is not best, isinstance(one[1], DeckError) or not one[1].fits))
    return Address(_choose_newer(verdicts, kind, devices).repo, "main")


def _choose_newer(
    verdicts: Sequence[tuple[RecommendedModel, Verdict]], kind: Kind, devices: Devices
) -> RecommendedModel:
    best = best_of(verdicts)
    first = next((index for index, (model, _) in enumerate(verdicts) if model is best), len(verdicts) - 1)
    st.caption(tr("find.newer_text"))
    event = st.dataframe(
        pd.DataFrame([_newer_row(model, report, model is best) for model, report in verdicts]).fillna(""),
        hide_index=True,
        # A row is chosen by its place among these models.
        key=f"newer_{kind}_{names_of(devices) or 'cpu'}_{hash(tuple(model.repo for model, _ in verdicts))}",
        on_select="rerun",
        selection_mode="single-row-required",
        selection_default={"selection": {"rows": [first]}},
        height=38 + 35 * min(len(verdicts), 8),
        column_config={tr("download.column_fits"): st.column_config.TextColumn(width=VERDICT_WIDTH)},
    )
    rows = event["selection"]["rows"]
    return verdicts[rows[0] if rows and rows[0] < len(verdicts) else first][0]


def _newer_row(model: RecommendedModel, report: Verdict, is_best: bool) -> dict[str, object]:
    row: dict[str, object] = {}
    if not isinstance(report, DeckError):
        row[tr("download.column_fits")] = fitting_words(report, is_best)
    row[tr("find.column_repo")] = model.repo
    if not isinstance(report, DeckError):
        row[tr("download.column_longest")] = f"{report.max_context:,}" if report.fits else "-"
        row[tr("download.column_needed")] = f"{math.ceil(report.needed_mib):,} MiB"
    if isinstance(report, CpuReport):
        row[tr("download.column_speed")] = f"≈ {speed_text(report.tokens_per_s)}"
    row[tr("find.column_size_main")] = size_words(sized_checkpoint(model).size_bytes)
    row[tr("find.column_license")] = model.license_name
    return row
