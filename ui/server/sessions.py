"""The sessions of closed tabs: each can come back for a while, and is then ended.

Streamlit keeps such sessions with all they hold, three open files each, and drops them without ending them. Their files
and uploads then come back only with a full garbage collection, which is seldom here: `postScriptGC` is off.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from builtins import list as List
from dataclasses import dataclass

from streamlit import config
from streamlit.runtime import Runtime
from streamlit.runtime.app_session import AppSession
from streamlit.runtime.session_manager import SessionInfo, SessionStorage

log = logging.getLogger(__name__)
MAX_SESSIONS = 128
POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class Leaving:
    """A session without a tab. `until_s` is when it ends, by the event loop's clock."""

    info: SessionInfo
    until_s: float


class LeavingSessions(SessionStorage):
    """The sessions of tabs that lost their connection, each for `keep_s`. A session's event loop is closed as soon as
    its page stops running, and made anew for a tab that comes back."""

    def __init__(self, loop: asyncio.AbstractEventLoop, keep_s: float, most: int = MAX_SESSIONS) -> None:
        self._loop, self._keep_s, self._most = loop, keep_s, most
        # Signing out may take a session away in the thread of a page.
        self._lock = threading.Lock()
        self._stored: dict[str, Leaving] = {}
        self._is_looking = False

    def get(self, session_id: str) -> SessionInfo | None:
        leaving = self._stored.get(session_id)
        return leaving.info if leaving else None

    def save(self, session_info: SessionInfo) -> None:
        leaving = Leaving(session_info, self._loop.time() + self._keep_s)
        with self._lock:
            self._stored[session_info.session.id] = leaving
        self._loop.call_soon_threadsafe(self._take, leaving)

    def delete(self, session_id: str) -> None:
        """Give the session back to a tab, or to the thread that ends it."""
        with self._lock:
            session = self._stored.pop(session_id).info.session
        if session._script_event_loop.is_closed():
            session._script_event_loop = asyncio.new_event_loop()

    def list(self) -> List[SessionInfo]:
        with self._lock:
            return [leaving.info for leaving in self._stored.values()]

    def _take(self, leaving: Leaving) -> None:
        # It may have gone back to a tab already.
        if self._stored.get(leaving.info.session.id) is leaving:
            rest(leaving.info.session)
        if not self._is_looking:
            self._look()

    def _look(self) -> None:
        """End the sessions whose time is over, and the oldest of too many; let the others rest."""
        with self._lock:
            oldest = list(self._stored.values())
            over = [one for place, one in enumerate(oldest) if one.until_s <= self._loop.time()
                    or place < len(oldest) - self._most]  # fmt: skip
            for one in over:
                del self._stored[one.info.session.id]
            resting = [one.info.session for one in self._stored.values()]
        for session in resting:
            rest(session)
        for one in over:
            end(one.info.session)
        self._is_looking = bool(self._stored)
        if self._is_looking:
            self._loop.call_later(POLL_S, self._look)


def rest(session: AppSession) -> None:
    """Close the session's event loop unless a page runs that may still use it."""
    if session._scriptrunner is None and not session._script_event_loop.is_running():
        session._script_event_loop.close()


def end(session: AppSession) -> None:
    """Give back uploads, pictures and what else the session holds."""
    try:
        session.shutdown()
    except Exception:  # One session's fault must not keep another from its end.
        log.exception("a session did not end well")


def end_sessions_in_time(runtime: Runtime) -> None:
    """Replace Streamlit's storage of sessions. Call this in the server's event loop, before the first tab."""
    manager = runtime._session_mgr
    if not hasattr(manager, "_session_storage"):
        log.warning("the sessions are not the usual ones; closed tabs may keep files open")
        return
    keep_s = float(config.get_option("server.disconnectedSessionTTL"))
    manager._session_storage = LeavingSessions(asyncio.get_running_loop(), keep_s)
