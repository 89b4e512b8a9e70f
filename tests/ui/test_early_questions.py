"""A timer of a page asks no question: the question's own message does."""

from __future__ import annotations

from typing import cast

import pytest
from streamlit.proto.ClientState_pb2 import ClientState
from streamlit.runtime.app_session import AppSession

from ui.server.early_questions import ask_questions_once, leave_out_question


def message(is_auto_rerun: bool) -> ClientState:
    state = ClientState(is_auto_rerun=is_auto_rerun)
    state.widget_states.widgets.add(id="slider").int_value = 3
    state.widget_states.widgets.add(id="input").chat_input_value.data = "Hello"
    state.widget_states.widgets.add(id="toggle").bool_value = True
    return state


@pytest.mark.parametrize(
    ("is_auto_rerun", "wanted"), [(True, ["slider", "toggle"]), (False, ["slider", "input", "toggle"])]
)
def test_a_question_is_asked_by_its_own_message_alone(is_auto_rerun: bool, wanted: list[str]) -> None:
    """On a slow machine timers ran between Enter and the message; a question then stood in its chat three times."""
    state = message(is_auto_rerun)
    leave_out_question(state)
    assert [widget.id for widget in state.widget_states.widgets] == wanted


def test_every_session_goes_through_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str] | None] = []

    def request_rerun(session: object, state: ClientState | None) -> None:
        seen.append(None if state is None else [widget.id for widget in state.widget_states.widgets])

    monkeypatch.setattr(AppSession, "request_rerun", request_rerun)
    ask_questions_once()
    session = cast(AppSession, object())
    AppSession.request_rerun(session, message(True))
    AppSession.request_rerun(session, None)
    assert seen == [["slider", "toggle"], None]
