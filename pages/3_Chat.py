"""Chat: talk to the loaded model, alone or as a character; one text to write together; all chats in the sidebar."""

import streamlit as st

from core.chat.prompt_context import Prompt
from core.chat.records import Chat
from core.chat.stats import error_of
from core.common.errors import DeckError
from ui.chat import actions, session
from ui.chat.cast import draw_cast
from ui.chat.composer import draw_composer, fitted_prompt
from ui.chat.feedback import ERROR_KEY
from ui.chat.files import draw_open_file
from ui.chat.header import draw_head
from ui.chat.history import chat_list, draw_left_behind
from ui.chat.notebook import draw_notebook
from ui.chat.portraits import Faces, faces_of
from ui.chat.reading_place import keep_place
from ui.chat.transcript import draw_impersonation, draw_transcript
from ui.shared.browser import keep_typed
from ui.shared.engine_status import not_ready_notice, silence_notice, way_to_model
from ui.shared.errors import show_error
from ui.shared.i18n import tr
from ui.shared.resources import engine
from ui.shared.routing import has_arrived, require_router
from ui.shared.starter import starter_notice

require_router()


def draw_page() -> None:
    current = actions.ask_noted(session.open_chat(has_arrived()))
    draft = actions.take_impersonation(current.info.id)
    faces, prompt = faces_of(current), fitted_prompt(current)
    fitted = None if prompt is None or isinstance(prompt, DeckError) else prompt
    draw_head(current, faces, fitted)
    if session.is_missing():
        st.info(tr("chat.gone"), icon=":material/info:")
    if current.info.mode == "notebook":
        draw_notebook(current)
    else:
        draw_transcript(current, faces, fitted.begins_at if fitted else 0)
        if draft is not None:
            draw_impersonation(draft, faces)
        elif not current.messages and is_ready:
            draw_ideas(session.tag_of(current.info))
    silence_notice()
    if not is_ready:
        say_what_is_missing(current)
    if error := st.session_state.get(ERROR_KEY):
        show_error(error)
    draw_left_behind()
    draw_input(current, prompt, faces)
    draw_open_file()
    with st.sidebar:
        chat_list(current.info.id)


def draw_ideas(tag: str) -> None:
    st.markdown(tr("chat.greeting"))
    with st.container(horizontal=True):
        for name in ("explain", "write", "plan"):
            st.button(tr(f"chat.idea_{name}"), key=f"chat_idea_{name}_{tag}", on_click=actions.ask,
                      args=(tag, tr(f"chat.idea_{name}")))  # fmt: skip


def say_what_is_missing(current: Chat) -> None:
    """The way to a model. Why the engine ended is not said twice, where the last answer says it."""
    last = error_of(current.messages[-1].stats) if current.messages else None
    error = engine().state.error
    if last is None or error is None or (last.key, last.params) != (error.key, error.params):
        not_ready_notice()
    else:
        way_to_model()


def draw_input(current: Chat, prompt: Prompt | DeckError | None, faces: Faces) -> None:
    # Always the same places below: an input that moves loses its focus.
    with st.bottom.container():
        if is_ready:
            starter_notice(engine().state.model, "chat")
        if len(current.info.cast) > 1 and current.info.mode != "notebook":
            draw_cast(current, faces)
        draw_composer(current, prompt)
    if current.info.mode == "notebook":
        return
    # Drawn outside st.bottom, where Streamlit pins it anyway: only then does the page follow a growing answer.
    # One for all chats: another one would lose the focus. What is typed in each is kept apart by the browser.
    tag = session.tag_of(current.info)
    # What is asked of a model that sleeps waits for its load.
    is_asleep, is_loading = engine().state.asleep is not None, engine().state.phase == "loading"
    end = "" if is_ready else "_asleep" if is_asleep else "_loading" if is_loading else "_empty"
    st.chat_input(tr(f"chat.placeholder{end}"), key=session.INPUT_KEY, disabled=not (is_ready or is_asleep), 
                  accept_file="multiple", on_submit=actions.submit, args=(tag,))  # fmt: skip
    keep_place()
    keep_typed(session.INPUT_KEY, tag, session.born_tag(current.info), session.place_of(current.info), session.filled())


is_ready = engine().state.phase == "ready"
try:
    draw_page()
except DeckError as problem:
    show_error(problem)
