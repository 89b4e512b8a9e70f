"""What closed tabs leave behind: nothing that stays open, also where Python never looks at all objects."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from streamlit.runtime.session_manager import SessionInfo

from benchmarks.tabs import come_and_go, dashboard_on, watched
from tests.support.dashboard import dashboard
from ui.server import sessions
from ui.server.sessions import LeavingSessions

WAIT_S = 60.0


class Session:
    """What is used of Streamlit's."""

    def __init__(self, name: str, runner: object = None) -> None:
        self.id, self._scriptrunner = name, runner
        self._script_event_loop = asyncio.new_event_loop()
        self.ended = asyncio.Event()

    def shutdown(self) -> None:
        self._script_event_loop.close()
        self.ended.set()
        if self.id == "broken":
            raise RuntimeError("an upload cannot be removed")


def info(session: Session) -> SessionInfo:
    return SessionInfo(client=None, session=session, script_run_count=1)  # type: ignore[arg-type]


def names(storage: LeavingSessions) -> list[str]:
    return [one.session.id for one in storage.list()]


def run(story: Any, keep_s: float = 3600.0, most: int = 128) -> None:
    async def tell() -> None:
        async with asyncio.timeout(WAIT_S):
            await story(LeavingSessions(asyncio.get_running_loop(), keep_s, most))

    asyncio.run(tell())


async def until(is_so: Any) -> None:
    """Turns of the loop; the timeout around the story ends what never comes."""
    while not is_so():
        await asyncio.sleep(0)


def test_a_closed_tabs_loop_is_closed_and_the_tab_can_come_back() -> None:
    async def story(storage: LeavingSessions) -> None:
        session = Session("one")
        storage.save(info(session))
        await until(session._script_event_loop.is_closed)
        found = storage.get("one")
        assert found is not None and found.session is session and names(storage) == ["one"]
        storage.delete("one")
        assert not session._script_event_loop.is_closed() and storage.get("one") is None and names(storage) == []
        session._script_event_loop.close()

    run(story)


def test_the_loop_of_a_page_that_still_runs_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "POLL_S", 0)

    async def story(storage: LeavingSessions) -> None:
        running, other = Session("running", runner=object()), Session("other")
        storage.save(info(running))
        storage.save(info(other))
        await until(other._script_event_loop.is_closed)
        assert not running._script_event_loop.is_closed()
        running._scriptrunner = None
        await until(running._script_event_loop.is_closed)

    run(story)


def test_a_tab_that_is_back_at_once_keeps_its_loop() -> None:
    async def story(storage: LeavingSessions) -> None:
        back, other = Session("back"), Session("other")
        storage.save(info(back))
        storage.delete("back")
        storage.save(info(other))
        await until(other._script_event_loop.is_closed)
        assert not back._script_event_loop.is_closed()
        back._script_event_loop.close()

    run(story)


def test_a_session_ends_when_its_time_is_over_though_another_ends_badly(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sessions, "POLL_S", 0)

    async def story(storage: LeavingSessions) -> None:
        broken, well = Session("broken"), Session("well")
        storage.save(info(broken))
        storage.save(info(well))
        await broken.ended.wait()
        await well.ended.wait()
        assert storage.list() == [] and storage.get("well") is None

    run(story, keep_s=0)
    assert "did not end well" in caplog.text


def test_of_too_many_the_oldest_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "POLL_S", 0)

    async def story(storage: LeavingSessions) -> None:
        all_of_them = [Session(str(number)) for number in range(9)]
        for session in all_of_them:
            storage.save(info(session))
        await until(lambda: len(storage.list()) == 4)
        assert [session.ended.is_set() for session in all_of_them] == [True] * 5 + [False] * 4
        assert names(storage) == ["5", "6", "7", "8"]

    run(story, most=4)


def test_another_kind_of_streamlit_is_said(caplog: pytest.LogCaptureFixture) -> None:
    sessions.end_sessions_in_time(SimpleNamespace(_session_mgr=object()))  # type: ignore[arg-type]
    assert "may keep files open" in caplog.text


def test_forty_tabs_that_come_and_go_leave_no_file_open(tmp_path: Path) -> None:
    """Each once left three: after eighty tabs a process that may open 256 opened no more."""
    places = {f"LLAMADECK_{name}": str(tmp_path / name.lower()) for name in ("DATA", "MODELS", "CHARACTERS")}
    with dashboard(os.environ | places) as url:
        assert asyncio.run(come_and_go(url, 14, 2)) == 0
        with watched(dashboard_on(url)) as figures:
            assert asyncio.run(come_and_go(url, 40, 2)) == 0
    before, after = figures["files"]
    assert after - before < 20
