"""The person who looks at this page, as the gate let them in."""

from __future__ import annotations

import streamlit as st

from core.access.scopes import person_in

PERSON_KEY = "person"


def person() -> str:
    """Whose chats this page shows: "" for local people and the password, else the person whom a provider signed in."""
    return person_in(st.context.headers) or ""


def begin_run() -> None:
    """Forget what the tab holds of another person: Streamlit keeps its session where somebody else signs in."""
    if st.session_state.setdefault(PERSON_KEY, person()) != person():
        st.session_state.clear()
        st.session_state[PERSON_KEY] = person()


def has_passed_gate() -> bool:
    """Whether the gate let this page's browser in. In a test, a script runs without a browser and its headers."""
    return not st.context.headers or person_in(st.context.headers) is not None
