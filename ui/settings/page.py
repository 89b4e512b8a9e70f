"""The page Settings: language, access, what this installation is; each section in words of its own."""

from __future__ import annotations

from importlib import metadata

import streamlit as st

from core.common.i18n import LANGUAGES
from core.common.paths import cache_dir, characters_dir, data_dir, models_dir, version
from core.library.last_model import is_loaded_at_start, set_loaded_at_start
from ui.settings.access import draw_access
from ui.settings.api_keys import draw_keys
from ui.settings.connection import draw_connection
from ui.settings.files import draw_files
from ui.settings.serving import draw_idle, draw_serving
from ui.settings.theme import choose_theme
from ui.shared.i18n import language, take_language, tr
from ui.shared.identity import key_of
from ui.shared.markdown import escape
from ui.shared.shortcuts import SHORTCUTS

SHOWN_PACKAGES = ("streamlit", "torch", "transformers", "gptqmodel")


def draw_settings() -> None:
    st.title(tr("nav.settings"))
    st.subheader(tr("settings.language"))
    _draw_language()
    st.subheader(tr("settings.theme"))
    choose_theme("settings_theme")
    st.subheader(tr("settings.start"))
    _draw_start()
    st.subheader(tr("settings.serving"))
    draw_serving()
    st.subheader(tr("settings.idle"))
    draw_idle()
    st.subheader(tr("settings.access"))
    draw_access()
    draw_keys()
    st.subheader(tr("settings.connection"))
    draw_connection()
    draw_files()
    st.subheader(tr("settings.shortcuts"))
    _draw_shortcuts()
    st.subheader(tr("settings.about"))
    _draw_about()


def _draw_language() -> None:
    key = key_of("settings_language", "", language(), is_translated=False)
    st.selectbox(tr("settings.language"), list(LANGUAGES), format_func=LANGUAGES.__getitem__, key=key,
                 label_visibility="collapsed", on_change=take_language, args=(key,))  # fmt: skip
    st.caption(tr("settings.language_text"))


def _draw_start() -> None:
    key = key_of("settings_at_start", "", is_loaded_at_start())
    st.toggle(tr("settings.at_start"), key=key, on_change=_choose_start, args=(key,),
              help=tr("settings.at_start_text"))  # fmt: skip


def _choose_start(key: str) -> None:
    set_loaded_at_start(st.session_state[key])


def _draw_shortcuts() -> None:
    """The keys of the chat and what each does."""
    st.markdown("\n".join(f"- `{keys}` {tr(f'settings.keys_{name}')}" for name, keys in SHORTCUTS.items()))


def _draw_about() -> None:
    packages = " · ".join(f"{name} {metadata.version(name)}" for name in SHOWN_PACKAGES)
    folders = {"models": models_dir(), "data": data_dir(), "characters": characters_dir(), "cache": cache_dir()}
    lines = [f"**{tr('settings.version')}**: LlamaDeck {version()} · {packages}"]
    lines += [f"**{tr(f'settings.{name}')}**: {escape(str(folder))}" for name, folder in folders.items()]
    st.markdown("  \n".join(lines))
