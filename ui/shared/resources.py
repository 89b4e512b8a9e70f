"""What all pages and tabs of this process share: the only cached accessors."""

from __future__ import annotations

import os
from pathlib import Path

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from core.access.access import Access
from core.access.keys import KeyStore
from core.chat.presets import Presets
from core.chat.recorder import Recorder
from core.chat.service import ChatService
from core.chat.store import ChatStore
from core.common.background import TaskPool
from core.common.paths import person_dir
from core.common.preferences import Preferences
from core.engine.rate import TokenRate
from core.engine.runner import Runner
from core.gpu.monitor import Monitor
from core.hub.branches import BranchReader
from core.hub.queue import DownloadQueue
from core.library.scan import LibraryEntry, read_entry
from core.personas.lorebooks import Lorebooks
from core.personas.store import Characters
from core.personas.thumbnails import Thumbnails
from core.quantize.queue import QuantizeQueue
from core.remote.router import EngineRouter
from core.standby.idle import IdleWatch
from ui.shared.people import person

# Where a tab keeps its language.
LANGUAGE_KEY = "language"


@st.cache_resource(show_spinner=False)
def engine() -> EngineRouter:
    """The engine, this machine's or another server's. LLAMADECK_WORKER names another worker module, for tests."""
    return EngineRouter(Runner(os.environ.get("LLAMADECK_WORKER", "core.worker.main")))


@st.cache_resource(show_spinner=False, on_release=Monitor.stop)
def monitor() -> Monitor:
    """The readings of the GPUs, which begin with the first call."""
    return Monitor().start()


@st.cache_resource(show_spinner=False)
def token_rate() -> TokenRate:
    return TokenRate()


@st.cache_resource(show_spinner=False)
def access() -> Access:
    """What guards this installation."""
    return Access()


@st.cache_resource(show_spinner=False)
def chat_file() -> ChatStore:
    """The chat history. Raises ChatStoreError where its file cannot be used; the next call tries again."""
    return ChatStore()


def chat_store() -> ChatStore:
    """The chats of whoever looks at this page."""
    return chat_file().of(person())


@st.cache_resource(show_spinner=False)
def recorder() -> Recorder:
    return Recorder(chat_file().of_all())


@st.cache_resource(show_spinner=False)
def chat_service() -> ChatService:
    """Asks in any chat whose number it is given: pages read it from `chat_store` first, which has their own only."""
    return ChatService(chat_file().of_all(), recorder(), engine())


def presets() -> Presets:
    """Those that ship, and the own ones of whoever looks at this page."""
    return _presets(person())


@st.cache_resource(show_spinner=False, max_entries=256)
def _presets(owner: str) -> Presets:
    return Presets(person_dir(owner) / "presets.yaml")


def preferences() -> Preferences:
    """What whoever looks at this page chose once."""
    return _preferences(person())


@st.cache_resource(show_spinner=False, max_entries=256)
def _preferences(owner: str) -> Preferences:
    return Preferences(person_dir(owner) / "settings.json")


@st.cache_resource(show_spinner=False, on_release=DownloadQueue.close)
def downloads() -> DownloadQueue:
    return DownloadQueue()


@st.cache_resource(show_spinner=False, on_release=QuantizeQueue.close)
def quantizing() -> QuantizeQueue:
    """The jobs that make GPTQ models."""
    return QuantizeQueue()


@st.cache_resource(show_spinner=False, on_release=IdleWatch.close)
def idle_watch() -> IdleWatch:
    """How long nothing was done; serve.py starts what follows from it."""
    return IdleWatch(engine(), lambda: downloads().is_busy or quantizing().is_busy)


@st.cache_resource(show_spinner=False)
def tasks() -> TaskPool:
    return TaskPool()


@st.cache_resource(show_spinner=False)
def branch_reader() -> BranchReader:
    return BranchReader()


@st.cache_resource(show_spinner=False, max_entries=256)
def library_entry(folder: bytes, fingerprint: tuple[tuple[bytes, int, int], ...]) -> LibraryEntry:
    """The model in `folder`, read anew when its `fingerprint` (names, sizes, times of its files) changes."""
    return read_entry(Path(os.fsdecode(folder)))


def characters() -> Characters:
    """The characters as this tab's reader sees them, which ui.shared.i18n notes; outside of a tab, as they are."""
    # Streamlit logs a warning where its state is asked for outside of a tab, and so at each start.
    is_tab = get_script_run_ctx(suppress_warning=True) is not None
    return _characters(str(st.session_state.get(LANGUAGE_KEY) or "") if is_tab else "")


@st.cache_resource(show_spinner=False)
def _characters(language: str) -> Characters:
    return Characters(language=language)


@st.cache_resource(show_spinner=False)
def lorebooks() -> Lorebooks:
    """Those that belong to no character."""
    return Lorebooks()


@st.cache_resource(show_spinner=False)
def thumbnails() -> Thumbnails:
    """Small pictures of the characters."""
    return Thumbnails()


@st.cache_resource(show_spinner=False)
def api_keys() -> KeyStore:
    return KeyStore()
