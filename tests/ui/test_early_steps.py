"""A timer of a page takes no step: the step's own message does."""

from __future__ import annotations

from typing import cast

import pytest
from streamlit.proto.ClientState_pb2 import ClientState
from streamlit.runtime.app_session import AppSession
from streamlit.runtime.scriptrunner.script_runner import ScriptRunner
from streamlit.runtime.scriptrunner_utils import script_requests
from streamlit.runtime.scriptrunner_utils.script_requests import RerunData, ScriptRequests
from streamlit.runtime.state.safe_session_state import SafeSessionState
from streamlit.runtime.state.session_state import SessionState

from ui.server.early_steps import at_its_address, take_steps_once


def message(is_timer: bool) -> ClientState:
    state = ClientState(is_auto_rerun=is_timer)
    state.widget_states.widgets.add(id="toggle").bool_value = True
    state.widget_states.widgets.add(id="input").chat_input_value.data = "Hello"
    state.widget_states.widgets.add(id="button").trigger_value = True
    return state


def test_a_step_is_taken_by_its_own_message_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """While an answer was written, timers ran between a click and its message. A question then stood in its chat three
    times, and a chat was deleted twice, of which the second said that another tab had done it."""
    seen: list[int | None] = []

    def request_rerun(session: object, state: ClientState | None) -> None:
        seen.append(None if state is None else len(state.widget_states.widgets))

    monkeypatch.setattr(AppSession, "request_rerun", request_rerun)
    monkeypatch.setattr(ScriptRunner, "_run_script", lambda runner, data: None)
    monkeypatch.setattr(script_requests, "_coalesce_widget_states", script_requests._coalesce_widget_states)
    take_steps_once()
    session = cast(AppSession, object())
    for is_timer in (True, False):
        AppSession.request_rerun(session, message(is_timer))
    AppSession.request_rerun(session, None)
    assert seen == [0, 3, None]


def test_a_timer_takes_nothing_of_a_step_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its fields it took back what the waiting message told: a switch that was turned stood as before."""
    monkeypatch.setattr(AppSession, "request_rerun", lambda session, state: None)
    monkeypatch.setattr(ScriptRunner, "_run_script", lambda runner, data: None)
    monkeypatch.setattr(script_requests, "_coalesce_widget_states", script_requests._coalesce_widget_states)
    take_steps_once()
    own, timer = message(False), message(True)
    AppSession.request_rerun(cast(AppSession, object()), timer)
    requests = ScriptRequests()
    for is_timer, state in ((False, own), (True, timer), (True, timer)):
        requests.request_rerun(RerunData(widget_states=state.widget_states, is_auto_rerun=is_timer))
    request = requests.on_scriptrunner_ready()
    assert {one.id for one in request.rerun_data.widget_states.widgets} == {"toggle", "input", "button"}


def test_a_timer_leads_no_page_back_to_the_address_before() -> None:
    """One that waited while a question was asked in a new chat showed the new chat again, without the question."""
    session = SessionState()
    session.query_params.populate_from_query_string("chat=3&x=a&x=b")
    state = SafeSessionState(session, lambda: None)
    timer = RerunData("chat=new", fragment_id_queue=["status"], is_auto_rerun=True)
    assert at_its_address(timer, state).query_string == "chat=3&x=a&x=b"
    # A timer's message that a person's own one was waiting with, and that one alone.
    for own in (RerunData("chat=2", is_auto_rerun=True), RerunData("chat=2", fragment_id_queue=["status"])):
        assert at_its_address(own, state) is own
