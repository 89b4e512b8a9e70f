"""The models and adapters on disk as pages need them on every run: a folder is read once until it changes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

import streamlit as st

from core.checkpoint.adapter_folders import list_adapters
from core.checkpoint.checkpoint import Checkpoint
from core.common.paths import model_name
from core.common.values import printable
from core.library.adapters import FoundAdapter, find_adapters, read_alone
from core.library.fingerprint import Fingerprint, fingerprint
from core.library.scan import LibraryEntry, scan
from ui.shared.i18n import tr
from ui.shared.resources import library_entry

# So many models are shown with their adapters.
MAX_KEPT = 256
# Whoever waits longer is told for what. Twenty models of today's sizes take half a minute on two busy cores.
TOLD_AFTER_S = 0.5


def models() -> list[LibraryEntry]:
    """What core.library.scan.scan gives, without reading an unchanged folder again; says meanwhile what is being read.

    Raises CheckpointError.
    """
    place, began_s = st.empty(), time.monotonic()

    def read(folder: Path) -> LibraryEntry:
        if time.monotonic() - began_s >= TOLD_AFTER_S:
            place.markdown(f":shimmer[{tr('load.reading', name=printable(model_name(folder)))}]")
        return library_entry(os.fsencode(folder), fingerprint(folder))

    try:
        return scan(read)
    finally:
        place.empty()


def adapters_of(checkpoint: Checkpoint) -> list[FoundAdapter]:
    """What core.library.adapters.find_adapters gives, without reading again what did not change."""
    own = [checkpoint.path] if checkpoint.path is not None else []
    folders = [*own, *list_adapters(checkpoint.path)]
    return _adapters_of(tuple((os.fsencode(folder), fingerprint(folder)) for folder in folders), checkpoint)


def adapters_of_none(entries: Iterable[LibraryEntry]) -> list[FoundAdapter]:
    """The adapters in adapters/ that are shown with none of these models."""
    checkpoints = (entry.checkpoint for entry in entries if entry.checkpoint is not None)
    used = {one.folder for checkpoint in checkpoints for one in adapters_of(checkpoint) if one.is_of_model}
    return [adapter_alone(folder) for folder in list_adapters() if folder not in used]


def adapter_alone(folder: Path) -> FoundAdapter:
    """What core.library.adapters.read_alone gives, without reading again what did not change."""
    return _adapter_alone(os.fsencode(folder), fingerprint(folder))


@st.cache_resource(show_spinner=False, max_entries=MAX_KEPT)
def _adapter_alone(folder: bytes, seen: Fingerprint) -> FoundAdapter:
    return read_alone(Path(os.fsdecode(folder)))


@st.cache_resource(show_spinner=False, max_entries=MAX_KEPT)
def _adapters_of(seen: tuple[tuple[bytes, Fingerprint], ...], _checkpoint: Checkpoint) -> list[FoundAdapter]:
    return find_adapters(_checkpoint)
