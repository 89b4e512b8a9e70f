"""What all pages and tabs of this process share; the only cached accessors, each one line. Draws nothing."""

from __future__ import annotations

import os
from pathlib import Path

import streamlit as st

from core.chat.conversation import Conversations
from core.engine.rate import TokenRate
from core.engine.runner import Runner
from core.library import LibraryEntry, read_entry
from core.monitor import Monitor
from ui.preferences import Preferences


@st.cache_resource(show_spinner=False)
def runner() -> Runner:
    """The engine. LLAMADECK_WORKER names another worker module, for tests without a model."""
    return Runner(os.environ.get("LLAMADECK_WORKER", "core.engine.worker"))


@st.cache_resource(show_spinner=False, on_release=Monitor.stop)
def monitor() -> Monitor:
    """The readings of the GPUs, which begin with the first use."""
    return Monitor().start()


@st.cache_resource(show_spinner=False)
def token_rate() -> TokenRate:
    return TokenRate()


@st.cache_resource(show_spinner=False)
def conversations() -> Conversations:
    return Conversations()


@st.cache_resource(show_spinner=False)
def queued_questions() -> dict[int, str]:
    """By a chat's number: what was typed while its last answer was still being written."""
    return {}


@st.cache_resource(show_spinner=False)
def preferences() -> Preferences:
    return Preferences()


@st.cache_resource(show_spinner=False, max_entries=256)
def library_entry(folder: bytes, fingerprint: tuple[tuple[bytes, int, int], ...]) -> LibraryEntry:
    """The model in `folder`, read anew when its `fingerprint` (names, sizes, times of its files) changes."""
    return read_entry(Path(os.fsdecode(folder)))
