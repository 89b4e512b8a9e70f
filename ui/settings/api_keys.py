"""The part of the settings with the keys to the API: make one, see it once, revoke it, and how it is used."""

from __future__ import annotations

from urllib.parse import urljoin

import streamlit as st

from core.access.keys import MAX_NAME_CHARS, Key
from core.common.errors import DeckError
from core.common.paths import DEFAULT_HOST, DEFAULT_PORT
from ui.server.single_sign_on import checked_address
from ui.shared.errors import show_error
from ui.shared.fragment import redraw_every
from ui.shared.i18n import tr
from ui.shared.markdown import escape
from ui.shared.people import person
from ui.shared.resources import api_keys
from ui.shared.routing import has_arrived

NAME_KEY, MADE_KEY, ERROR_KEY = "api_key_name", "api_key_made", "api_key_error"
EXAMPLE = """curl {base}/chat/completions \\
  -H "Authorization: Bearer $LLAMADECK_KEY" \\
  -H "Content-Type: application/json" \\
  -d '{{"messages": [{{"role": "user", "content": "Hello"}}]}}'"""


TEST = 'curl {base}/key -H "Authorization: Bearer {key}"'
USED_POLL_S = 2.0


def draw_keys() -> None:
    """The whole part, with a heading of its own."""
    st.subheader(tr("keys.title"))
    st.markdown(tr("keys.text"))
    st.code(base_address(), language=None)
    with st.expander(tr("keys.use"), icon=":material/terminal:"):
        st.markdown(tr("keys.use_text"))
        st.code(EXAMPLE.format(base=base_address()), language="bash", wrap_lines=True)
    _draw_form()
    _draw_made()
    if error := st.session_state.pop(ERROR_KEY, None):
        show_error(error)
    try:
        keys = api_keys().of(person())
    except DeckError as error:
        show_error(error)
        return
    if not keys:
        st.info(tr("keys.none"), icon=":material/key_off:")
    for key in keys:
        _draw_key(key)


def base_address() -> str:
    """What a client is told: the address below which this page was opened, and the API's path."""
    url = str(st.context.url or "") or f"http://{DEFAULT_HOST}:{DEFAULT_PORT}/"
    return urljoin(url, "v1")


def _draw_form() -> None:
    with st.form(key="api_key_form", border=False, clear_on_submit=True):
        with st.container(horizontal=True, vertical_alignment="bottom"):
            st.text_input(tr("keys.name"), key=NAME_KEY, max_chars=MAX_NAME_CHARS, placeholder=tr("keys.name_example"))
            st.form_submit_button(tr("keys.make"), key="api_key_make", icon=":material/add:", on_click=_make)


def _make() -> None:
    try:
        name, address = str(st.session_state.get(NAME_KEY) or ""), checked_address(st.user.to_dict())
        st.session_state[MADE_KEY] = api_keys().make(name, person(), address if person() else "")
    except DeckError as error:
        st.session_state[ERROR_KEY] = error


def _draw_made() -> None:
    """The new key, until it was noted or the page is left."""
    if has_arrived():
        st.session_state.pop(MADE_KEY, None)
    if made := st.session_state.get(MADE_KEY):
        with st.container(border=True):
            st.markdown(tr("keys.made"))
            st.code(made, language=None, wrap_lines=True)
            st.markdown(tr("keys.test"))
            st.code(TEST.format(base=base_address(), key=made), language="bash", wrap_lines=True)
            st.button(tr("keys.noted"), key="api_key_noted", icon=":material/check:", on_click=_forget_made)


def _forget_made() -> None:
    st.session_state.pop(MADE_KEY, None)


def _draw_key(key: Key) -> None:
    with st.container(border=True, horizontal=True, vertical_alignment="center", key=f"api_key_{key.id}"):
        with st.container(gap="xsmall"):
            st.markdown(f"**{escape(key.name)}**  :gray[…{escape(key.end)}]")
            redraw_every(USED_POLL_S, _draw_used, key.id)
        with st.popover(tr("keys.revoke"), icon=":material/block:", key=f"api_key_ask_{key.id}"):
            st.markdown(tr("keys.revoke_text", name=key.name))
            st.button(tr("keys.revoke_yes"), key=f"api_key_revoke_{key.id}", type="primary", on_click=_revoke,
                      args=(key.id,))  # fmt: skip


def _draw_used(key_id: str) -> None:
    """When the key was made and used last, as it is by now: whoever tries it looks here."""
    try:
        key = next((one for one in api_keys().of(person()) if one.id == key_id), None)
    except DeckError:  # Said by the page as a whole.
        return
    if key is None:
        return
    used = tr("keys.used", day=key.used) if key.used else tr("keys.unused")
    # Whoever gave the password sees everybody's.
    whose = "" if key.owner == person() else f" · {escape(key.address or key.owner)}"
    st.caption(f"{tr('keys.made_on', day=key.made)} · {used}{whose}")


def _revoke(key_id: str) -> None:
    try:
        api_keys().revoke(key_id)
    except DeckError as error:
        st.session_state[ERROR_KEY] = error
