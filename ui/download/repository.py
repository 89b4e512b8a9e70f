"""One repository on the page Download: its branches, the verdict, and the button that begins to fetch one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from urllib.parse import quote

import streamlit as st

from core.checkpoint.checkpoint import Checkpoint
from core.common.errors import CheckpointError, DeckError
from core.common.paths import models_dir
from core.common.urls import host_name
from core.hub.address import Address
from core.hub.branches import Branch
from core.hub.download_job import id_of
from core.hub.source import Source, folder_name
from core.hub.tokens import token_for
from core.library.hf_cache import is_snapshot_of
from core.library.scan import LibraryEntry, free_bytes
from ui.download.adapter import draw_adapter
from ui.download.begin import draw_button, draw_running, is_on_its_way, show_refused, warn_of_room
from ui.download.branches import CHATS, NEEDS_TOKEN, choose_branch, known_branches, listed_branches
from ui.download.source import draw_token
from ui.load.disk import size_words
from ui.load.entries_cache import models
from ui.load.gauge import draw_choice, verdict
from ui.load.gpu_choice import Devices, names_of
from ui.shared.errors import show_error
from ui.shared.fragment import redraw_alone
from ui.shared.i18n import tr
from ui.shared.markdown import escape
from ui.shared.pending import answer, failed
from ui.shared.resources import branch_reader
from ui.shared.routing import LOAD_PAGE, go_to


def draw_repository(source: Source, devices: Devices, is_listed: bool = False) -> None:
    """Everything about `source`: its page, its branches, the chosen one's verdict, what a download would fetch.

    A branch with a LoRA adapter is told and fetched as one.

    `is_listed`: it comes from the list of recommended models, so that its main branch is known without a network.
    """
    st.markdown(f"**{escape(source.address.repo)}** · [{escape(host_name(source.endpoint))}]({page_url(source)})")
    key = ("branches", source.kind, source.endpoint, str(source.address))
    listed = listed_branches(source.address) if is_listed else ()
    if (branches := listed or _read_branches(source, key)) is None:
        if (error := failed(key)) is not None:
            _draw_help(source, error)
        return
    chosen = choose_branch(source, branches, devices)
    named = replace(source, address=Address(source.address.repo, chosen.name))
    if chosen.checkpoint is not None:
        st.caption(tr("download.assumes"))
        _draw_chosen(named, chosen.checkpoint, devices)
    elif chosen.adapter is not None:
        draw_adapter(named, chosen.adapter)
    elif chosen.error is not None:
        show_error(chosen.error)
        _draw_help(source, chosen.error.key)
    if _needs_token(branches) and chosen.checkpoint is not None:
        draw_token(source.endpoint)


def _read_branches(source: Source, key: tuple[str, ...]) -> tuple[Branch, ...] | None:
    """All branches, without the network where they are known; None while the hub is asked, and where that failed."""
    if source.kind == "huggingface" and (known := known_branches(source.address)):
        return known
    waiting = tr("find.reading", host=host_name(source.endpoint))
    read: tuple[Branch, ...] | None = answer(
        key, lambda _: branch_reader().read(source, token_for(source.endpoint)), waiting
    )
    return read


def page_url(source: Source) -> str:
    """Without a letter that would end a link in Markdown: an endpoint is what somebody typed."""
    base = source.endpoint + ("/models" if source.kind == "modelscope" else "")
    return quote(f"{base}/{source.address.repo}", safe=":/@%[]~")


def _needs_token(branches: Sequence[Branch]) -> bool:
    return any(branch.error is not None and branch.error.key in NEEDS_TOKEN for branch in branches)


def _draw_help(source: Source, error: str) -> None:
    """What to do about a server that could not be asked or that refuses."""
    if error in NEEDS_TOKEN:
        if error == "hub_gated":
            st.link_button(
                tr("find.accept", host=host_name(source.endpoint)), page_url(source), icon=":material/open_in_new:"
            )
        draw_token(source.endpoint, is_open=error != "hub_unknown_repo")
    elif error == "hub_unreachable":
        st.caption(tr("find.other_source"))


def _draw_chosen(source: Source, checkpoint: Checkpoint, devices: Devices) -> None:
    st.markdown(f"**{escape(source.name)}**")
    redraw_alone(draw_choice, checkpoint, devices, f"catalogue_{source.name}")
    try:
        folder = folder_name(source)
        here = _on_disk(source, folder)
        free = free_bytes(models_dir())
    except DeckError as error:
        show_error(error)
        return
    with st.container(border=True):
        if here is not None:
            _draw_here(here)
        elif is_on_its_way(id_of(folder, is_adapter=False)):
            draw_running()
        else:
            _draw_plan(source, folder, free, checkpoint, devices)


def _on_disk(source: Source, folder: str) -> LibraryEntry | None:
    """The model where it is on disk already: in models/, or else in Hugging Face's cache."""
    entries = models()
    cached = (entry for entry in entries if entry.is_cached and is_snapshot_of(entry.folder, source))
    return next((entry for entry in entries if entry.name == folder), next(cached, None))


def _draw_here(entry: LibraryEntry) -> None:
    words = tr("find.is_cached", name=entry.name) if entry.is_cached else tr("find.is_here", folder=entry.name)
    st.markdown(f":green[:material/check_circle:] {words}")
    st.button(tr("find.load"), key="find_load", icon=":material/deployed_code:", type="primary",
              on_click=go_to, args=(LOAD_PAGE,))  # fmt: skip


def _draw_plan(source: Source, folder: str, free: int, checkpoint: Checkpoint, devices: Devices) -> None:
    """What will be fetched, and whether there is room for it."""
    size = checkpoint.size_bytes
    report = verdict(checkpoint, devices, 0, CHATS)
    if isinstance(report, CheckpointError):
        # The engine refuses it on every card: nobody should fetch it by accident.
        st.markdown(f":material/block: {tr('find.not_offered')}")
        return
    fits = not isinstance(report, DeckError) and report.fits
    card = names_of(devices) or tr("gauge.this_cpu")
    if not isinstance(report, DeckError) and not fits:
        st.warning(tr("find.fits_not", card=card), icon=":material/warning:")
    warn_of_room(size, free)
    with st.container(gap="xsmall"):
        if fits:
            draw_button(source, folder, tr("find.download", size=size_words(size)))
        else:
            with st.popover(tr("find.download", size=size_words(size)), icon=":material/download:", width="stretch"):
                st.markdown(tr("find.download_question", card=card))
                draw_button(source, folder, tr("find.download_anyway", size=size_words(size)))
        st.caption(tr("find.plan", folder=folder, free=size_words(free)))
    show_refused(id_of(folder, is_adapter=False))
