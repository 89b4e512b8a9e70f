"""Access on the page Settings: who is signed in, signing out, the password."""

from __future__ import annotations

import math
from collections.abc import Callable

import streamlit as st

from core.access.access import TooManyAttempts
from core.access.exposure import is_network
from core.access.visitors import is_session_cookie
from core.common.errors import DeckError, InputError
from ui.shared.browser import leave
from ui.shared.errors import show_error
from ui.shared.i18n import tr
from ui.shared.people import person
from ui.shared.resources import access

CURRENT_KEY, NEW_KEY, AGAIN_KEY = "settings_password_current", "settings_password_new", "settings_password_again"
# Whoever tries it here has signed in already: all of them wait together.
CLIENT = "the page Settings"
ERROR_KEY, DONE_KEY, LEAVES_KEY = "settings_error", "settings_done", "settings_leaves"


def draw_access() -> None:
    if person():
        _draw_person()
        return
    with st.container(border=True):
        st.markdown(tr("settings.who_password" if _has_session() else "settings.who_local"))
        with st.container(horizontal=True):
            if _has_session():
                st.button(tr("settings.sign_out"), key="settings_sign_out", icon=":material/logout:", on_click=_leave)
            if access().has_password:
                st.button(tr("settings.sign_out_all"), key="settings_sign_out_all", icon=":material/devices_off:",
                          help=tr("settings.sign_out_all_help"), on_click=_sign_out_everywhere)  # fmt: skip
    _draw_password()
    leave("settings_leave", now=st.session_state.pop(LEAVES_KEY, False))


def _draw_person() -> None:
    """Whoever signed in through a provider changes nothing about the password: it opens the chats of others."""
    with st.container(border=True):
        st.markdown(tr("settings.who_person", name=str(st.user.get("email") or st.user.get("name") or person())))
        st.button(tr("settings.sign_out"), key="settings_sign_out", icon=":material/logout:", on_click=_leave)
    leave("settings_leave", now=st.session_state.pop(LEAVES_KEY, False), provider=True)


def _has_session() -> bool:
    return any(access().sessions.is_valid(text) for name, text in st.context.cookies.items() if is_session_cookie(name))


def _draw_password() -> None:
    has_password = access().has_password
    with st.container(border=True):
        st.markdown(f"**{tr('settings.password')}**")
        if access().is_from_environment:
            st.markdown(tr("settings.password_given", name=access().variable))
            return
        st.caption(tr("settings.password_there" if has_password else "settings.password_none"))
        if done := st.session_state.pop(DONE_KEY, None):
            st.success(tr(f"settings.done_{done}"), icon=":material/check_circle:")
        if (error := st.session_state.pop(ERROR_KEY, None)) is not None:
            show_error(error)
        with st.form(key="settings_password", clear_on_submit=True, border=False):
            if has_password:
                _draw_field("settings.password_current", CURRENT_KEY, "current-password")
            _draw_field("settings.password_new", NEW_KEY, "new-password")
            _draw_field("settings.password_again", AGAIN_KEY, "new-password")
            with st.container(horizontal=True):
                name = "settings.password_change" if has_password else "settings.password_set"
                st.form_submit_button(tr(name), key="settings_password_set", type="primary", on_click=_set_password)
                if has_password:
                    is_open = is_network()
                    st.form_submit_button(tr("settings.password_remove"), key="settings_password_remove",
                                          disabled=is_open, on_click=_remove_password,
                                          help=tr("settings.password_remove_open") if is_open else None)  # fmt: skip


def _draw_field(label: str, key: str, autocomplete: str) -> None:
    st.text_input(tr(label), key=key, type="password", autocomplete=autocomplete, max_chars=256)


def _set_password() -> None:
    new, again = st.session_state[NEW_KEY], st.session_state[AGAIN_KEY]
    _change("set", lambda: _require_same(new, again), lambda: access().set_password(new))


def _remove_password() -> None:
    _change("removed", lambda: None, access().remove_password)


def _change(done: str, check: Callable[[], None], change: Callable[[], None]) -> None:
    """Change the password if the current one was given."""
    had_session = _has_session()
    try:
        check()
        _require_current(st.session_state.get(CURRENT_KEY, ""))
        change()
    except DeckError as error:
        st.session_state[ERROR_KEY] = error
    else:
        st.session_state[DONE_KEY] = done
        # Whoever was asked for nothing before is asked now.
        st.session_state[LEAVES_KEY] = had_session or access().has_password


def _require_same(new: str, again: str) -> None:
    if new != again:
        raise InputError("password_differs")


def _require_current(given: str) -> None:
    """An open tab must not be enough to shut its owner out."""
    if not access().has_password:
        return
    try:
        is_right = access().try_password(given, CLIENT)
    except TooManyAttempts as error:
        raise DeckError("password_wait", seconds=math.ceil(error.wait_s)) from None
    if not is_right:
        raise DeckError("password_wrong")


def _leave() -> None:
    st.session_state[LEAVES_KEY] = True


def _sign_out_everywhere() -> None:
    try:
        access().sessions.end_all()
    except DeckError as error:
        st.session_state[ERROR_KEY] = error
    else:
        st.session_state[LEAVES_KEY] = True
