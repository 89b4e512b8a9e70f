"""The connection on the page Settings: whether a websocket gets through, as this browser finds it."""

from __future__ import annotations

import streamlit as st

from ui.server.websocket_check import SCRIPT, WORDS
from ui.shared.i18n import text, tr

HTML = '<p role="status"></p>'
STYLE = "p { margin: 0; }"
JS = (
    SCRIPT
    + """
export default function ({ parentElement, data }) {
    const said = parentElement.querySelector("p");
    const show = (word, ms) => { said.textContent = data[word].replace("{ms}", ms); };
    if (parentElement.llamadeckChecked) {
        show(...parentElement.llamadeckChecked);
        return;
    }
    show("trying", 0);
    checkWebsocket((word, ms) => {
        parentElement.llamadeckChecked = [word, ms];
        show(word, ms);
    });
}
"""
)
_check = st.components.v2.component("llamadeck_connection", html=HTML, css=STYLE, js=JS)


def draw_connection() -> None:
    _check(key="settings_connection", data={word: text(f"websocket.{word}", ms="{ms}") for word in WORDS})
    st.caption(tr("websocket.elsewhere"))
