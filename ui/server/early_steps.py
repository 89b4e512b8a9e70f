"""A step is taken once, by its own message: timers, which draw parts of the page anew, take none.

Streamlit 1.67 sends all that a page holds with each timer. Two kinds of timers take a step a second time:

- Early ones. Between a click, or Enter, and the message that tells it, timers of a slow page tell it too: a question
  would be asked several times, and what was just deleted would be deleted once more, which fails.
- Late ones. They come from a page that the browser shows until it has drawn the next one. Their fields are news to that
  page, which would take each for changed; and their address is the one from before, to which the page would go back.
"""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import urlencode

from streamlit.proto.ClientState_pb2 import ClientState
from streamlit.proto.WidgetStates_pb2 import WidgetStates
from streamlit.runtime.app_session import AppSession
from streamlit.runtime.scriptrunner.script_runner import ScriptRunner
from streamlit.runtime.scriptrunner_utils import script_requests
from streamlit.runtime.scriptrunner_utils.script_requests import RerunData
from streamlit.runtime.state.safe_session_state import SafeSessionState


def take_steps_once() -> None:
    """Let timers of all sessions take no step. Call this before the first tab."""
    request_rerun, run_script = AppSession.request_rerun, ScriptRunner._run_script
    coalesce = script_requests._coalesce_widget_states

    def request(session: AppSession, state: ClientState | None) -> None:
        if state is not None and state.is_auto_rerun:
            # The server has what the fields say.
            del state.widget_states.widgets[:]
        request_rerun(session, state)

    def merge(waiting: WidgetStates | None, new: WidgetStates | None) -> WidgetStates | None:
        # Streamlit takes what a new message does not tell for what it takes back.
        return coalesce(waiting, new if new is not None and new.widgets else None)

    def run(runner: ScriptRunner, data: RerunData) -> None:
        run_script(runner, at_its_address(data, runner._session_state))

    AppSession.request_rerun = request  # type: ignore[method-assign, assignment]
    script_requests._coalesce_widget_states = merge  # type: ignore[assignment]
    ScriptRunner._run_script = run  # type: ignore[method-assign, assignment]


def at_its_address(data: RerunData, state: SafeSessionState) -> RerunData:
    """What is run for a timer alone, at the address that the session has by then."""
    if not (data.is_auto_rerun and data.fragment_id_queue):
        return data
    with state.query_params() as params:
        return replace(data, query_string=urlencode(params._query_params, doseq=True))
