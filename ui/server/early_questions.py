"""A question is asked once, also while timers draw parts of the page anew.

Between Enter and the message that asks the question, a browser whose page is slow may run timers of fragments;
Streamlit 1.67 sends what stands in the input with each of these too, and the question would be asked several times.
"""

from __future__ import annotations

from streamlit.proto.ClientState_pb2 import ClientState
from streamlit.runtime.app_session import AppSession


def ask_questions_once() -> None:
    """Let timers of all sessions ask nothing. Call this before the first tab."""
    request_rerun = AppSession.request_rerun

    def request(session: AppSession, client_state: ClientState | None) -> None:
        if client_state is not None:
            leave_out_question(client_state)
        request_rerun(session, client_state)

    AppSession.request_rerun = request  # type: ignore[method-assign, assignment]


def leave_out_question(state: ClientState) -> None:
    """Leave out of a timer's message what was sent with an input: the question's own message follows."""
    widgets = state.widget_states.widgets
    if state.is_auto_rerun:
        for place in reversed(range(len(widgets))):
            if widgets[place].WhichOneof("value") == "chat_input_value":
                del widgets[place]
