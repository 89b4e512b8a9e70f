"""Chat: ask the loaded model, read its answer as it grows, and switch between chats."""

import streamlit as st

from ui import chat
from ui.engine import not_ready_notice
from ui.errors import show_error
from ui.i18n import tr
from ui.markdown import escape
from ui.resources import conversations, runner
from ui.routing import has_arrived, require_router
from ui.sampling import sampling_widgets

require_router()
current = chat.arrive(has_arrived())
chat.ask_queued(current)
is_ready = runner().state.phase == "ready"
running = current.running if current else None

st.header(escape(current.title) if current else tr("chat.new_title"))
with st.container(horizontal=True):
    st.button(tr("chat.new"), key="chat_new", icon=":material/add:", disabled=current is None,
              on_click=chat.show_chat, args=(None,))  # fmt: skip
    with st.popover(tr("chat.settings"), icon=":material/tune:"):
        sampling_widgets()
    if current:
        with st.popover(":material/delete:", help=tr("chat.delete")):
            st.markdown(tr("chat.delete_question"))
            st.button(tr("chat.delete_yes"), key="chat_delete", type="primary",
                      on_click=chat.delete_chat, args=(current.number,))  # fmt: skip

if chat.is_gone():
    st.info(tr("chat.gone"), icon=":material/info:")
if current:
    chat.draw_transcript(current)
elif is_ready:
    st.markdown(tr("chat.greeting"))
    with st.container(horizontal=True):
        for name in ("explain", "write", "plan"):
            st.button(tr(f"chat.idea_{name}"), key=f"chat_idea_{name}", on_click=chat.ask,
                      args=(tr(f"chat.idea_{name}"),))  # fmt: skip
if not is_ready:
    not_ready_notice(current.messages[-1].answer if current else None)
if error := st.session_state.get(chat.ERROR_KEY):
    show_error(error)

# Always the same places below: an input that moves loses its focus.
with st.bottom.container():
    if running:
        st.button(tr("chat.stop"), key="chat_stop", icon=":material/stop_circle:", on_click=running.cancel)
# Drawn outside st.bottom, where Streamlit pins it anyway: only then does the page follow a growing answer.
st.chat_input(tr("chat.placeholder") if is_ready else tr("chat.placeholder_empty"), key=chat.INPUT_KEY,
              disabled=not is_ready, on_submit=chat.submit)  # fmt: skip

others = conversations().newest_first()
if others:
    with st.sidebar:
        st.caption(tr("chat.list"))
        chat.chat_list(others, current)
