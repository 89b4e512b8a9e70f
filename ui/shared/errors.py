"""DeckErrors on a page."""

from __future__ import annotations

import logging

import streamlit as st

from core.common.errors import DeckError
from core.common.i18n import translate
from ui.shared.i18n import escaped, language

log = logging.getLogger(__name__)


def sentence(error: DeckError) -> str:
    """The error in the reader's language, as Markdown."""
    return translate(language(), f"error.{error.key}", **escaped(error.params))


def show_error(error: DeckError) -> None:
    st.error(sentence(error), icon=":material/error:")
