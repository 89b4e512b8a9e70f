"""A timer of a page takes no step: the step's own message does."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest
from streamlit.proto.ClientState_pb2 import ClientState
from streamlit.runtime.app_session import AppSession
from streamlit.runtime.state.session_state import SessionState

from ui.server import early_steps
from ui.server.early_steps import take_steps_once

Send = Callable[[bool, str], bool]


class Session:
    """What is read of a session."""

    def __init__(self) -> None:
        self.session_state = SessionState()
        self.session_state.query_params.populate_from_query_string("chat=3")


def message(is_timer: bool, address: str) -> ClientState:
    state = ClientState(is_auto_rerun=is_timer, query_string=address)
    state.widget_states.widgets.add(id="toggle").bool_value = True
    state.widget_states.widgets.add(id="input").chat_input_value.data = "Hello"
    state.widget_states.widgets.add(id="button").trigger_value = True
    return state


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """How many values came with each message to a session."""
    found: list[int | None] = []

    def request_rerun(session: object, state: ClientState | None) -> None:
        found.append(None if state is None else len(state.widget_states.widgets))

    monkeypatch.setattr(AppSession, "request_rerun", request_rerun)
    take_steps_once()
    return found


def test_a_step_is_taken_by_its_own_message_alone(seen: list[int | None]) -> None:
    """While an answer was written, timers ran between a click and its message. A question then stood in its chat three
    times, and a chat was deleted twice, of which the second said that another tab had done it."""
    session = cast(AppSession, Session())
    for is_timer in (True, False):
        AppSession.request_rerun(session, message(is_timer, "chat=3"))
    AppSession.request_rerun(session, None)
    assert seen == [0, 3, None]


def test_a_timer_of_the_page_before_leads_nowhere_for_a_moment(
    seen: list[int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Late timers of a chat that was deleted led the page back to it, which was gone."""
    session = cast(AppSession, Session())
    AppSession.request_rerun(session, message(True, "chat=2"))
    assert seen == []
    AppSession.request_rerun(session, message(False, "chat=2"))
    assert seen == [3]
    monkeypatch.setattr(early_steps, "LATE_S", 0.0)
    AppSession.request_rerun(session, message(True, "chat=2"))
    assert seen == [3, 0]
