"""The result of a background task on a page: a short wait, then a line that watches for it."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import streamlit as st

from core.common.background import Task, Work
from ui.shared.errors import show_error
from ui.shared.fragment import redraw_every
from ui.shared.i18n import tr
from ui.shared.resources import tasks

# How long a page waits itself: a near server answers within it, and nothing flashes.
INLINE_WAIT_S = 0.25
POLL_S = 0.4


def answer(key: Hashable, work: Work, waiting: str) -> Any:
    """What `work` returns; None while it runs, which is said, and where it failed, whose error is shown."""
    task = tasks().get(key, work)
    if not task.wait(INLINE_WAIT_S):
        redraw_every(POLL_S, _watch, task, waiting)
        return None
    if task.error is not None:
        show_error(task.error)
        st.button(tr("find.again"), key=f"find_again_{key}", icon=":material/refresh:",
                  on_click=tasks().forget, args=(key,))  # fmt: skip
        return None
    return task.result


def failed(key: Hashable) -> str | None:
    """The key of the error of a task that failed; None otherwise."""
    task = tasks().known(key)
    return task.error.key if task and task.is_done and task.error else None


def _watch(task: Task, waiting: str) -> None:
    if task.is_done:
        st.rerun()
    st.caption(f":material/hourglass_top: {waiting}")
