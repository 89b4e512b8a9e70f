"""A step is taken once, by its own message: timers, which draw parts of the page anew, take none.

Streamlit 1.67 sends all that a page holds with each timer. Two kinds of timers take a step a second time:

- Early ones. Between a click, or Enter, and the message that tells it, timers of a slow page tell it too: a question
  would be asked several times, and what was just deleted would be deleted once more, which fails.
- Late ones. They come from a page that the browser shows until it has drawn the next one. Their fields are news to that
  page, which would take each for changed; and their address is the one from before, to which the page would go back.
"""

from __future__ import annotations

import time
from urllib.parse import parse_qs
from weakref import WeakKeyDictionary

from streamlit.proto.ClientState_pb2 import ClientState
from streamlit.runtime.app_session import AppSession

# A browser has drawn the next page by then. Whatever its address still says, its timers count again.
LATE_S = 2.0


def take_steps_once() -> None:
    """Let timers of all sessions take no step. Call this before the first tab."""
    request_rerun = AppSession.request_rerun
    late_since_s: WeakKeyDictionary[AppSession, float] = WeakKeyDictionary()

    def request(session: AppSession, state: ClientState | None) -> None:
        if state is not None and state.is_auto_rerun:
            # The server has what the fields say.
            del state.widget_states.widgets[:]
            if not has_address_of(session, state):
                if time.monotonic() - late_since_s.setdefault(session, time.monotonic()) < LATE_S:
                    return
            else:
                late_since_s.pop(session, None)
        request_rerun(session, state)

    AppSession.request_rerun = request  # type: ignore[method-assign, assignment]


def has_address_of(session: AppSession, state: ClientState) -> bool:
    """Whether a message comes from the address that the session is at."""
    # A copy: the page that runs may change it meanwhile.
    params = dict(session.session_state.query_params._query_params)
    here = {name: value if isinstance(value, list) else [value] for name, value in params.items()}
    return parse_qs(state.query_string, keep_blank_values=True) == here
