"""The reader's language: which one, the choice in the sidebar, and tr()."""

from __future__ import annotations

import streamlit as st

from core.common.i18n import LANGUAGES, guess_language, translate
from ui.shared.identity import key_of
from ui.shared.markdown import escape
from ui.shared.resources import LANGUAGE_KEY, preferences

KEY = LANGUAGE_KEY


def language() -> str:
    """This tab's language: chosen here, else remembered for browsers of this locale, else guessed from it."""
    chosen = st.session_state.get(KEY)
    if chosen not in LANGUAGES:
        remembered = preferences().get("languages", browser_locale())
        chosen = remembered if remembered in LANGUAGES else guess_language(browser_locale())
        st.session_state[KEY] = chosen
    return chosen


def tr(key: str, **params: str | int | float) -> str:
    """The text of `key` in the reader's language, as Markdown; the texts in `params` are escaped."""
    return translate(language(), key, **escaped(params))


def text(key: str, **params: str | int | float) -> str:
    """The text of `key` in the reader's language, not as Markdown: for charts, HTML and screen readers."""
    return translate(language(), key, **params)


def escaped(params: dict[str, str | int | float]) -> dict[str, str | int | float]:
    return {name: escape(value) if isinstance(value, str) else value for name, value in params.items()}


def browser_locale() -> str:
    return str(st.context.locale or "")


def choose_language() -> None:
    """Draw the choice of language."""
    key = key_of("language_choice", "", language(), is_translated=False)
    st.segmented_control(
        tr("language.label"),
        list(LANGUAGES),
        format_func=LANGUAGES.__getitem__,
        key=key,
        required=True,
        label_visibility="collapsed",
        on_change=take_language,
        args=(key,),
        width="stretch",
    )


def take_language(key: str) -> None:
    """For the on_change of a choice of language with this key."""
    st.session_state[KEY] = st.session_state[key]
    preferences().set("languages", browser_locale(), language())
