"""The small files that cannot be used: which they are, what to do, and a way to begin a new one."""

from __future__ import annotations

import streamlit as st

from core.common.errors import DeckError
from core.common.json_file import FileDamaged
from core.doctor.settings_files import problems
from ui.shared.errors import show_error
from ui.shared.i18n import tr
from ui.shared.people import person

ERROR_KEY, DONE_KEY = "files_error", "files_done"


def sidebar_files() -> None:
    """A line on every page: what is chosen there could not be kept."""
    if problems(person()):
        st.warning(tr("files.sidebar"), icon=":material/report:")


def draw_files() -> None:
    """Nothing where all is well."""
    found = problems(person())
    done, error = st.session_state.pop(DONE_KEY, None), st.session_state.pop(ERROR_KEY, None)
    if not (found or done or error):
        return
    st.subheader(tr("files.title"))
    if done:
        st.success(tr("files.done", file=done), icon=":material/check_circle:")
    if error is not None:
        show_error(error)
    for file, problem in found:
        with st.container(border=True, key=f"file_{file.path.stem}"):
            show_error(problem)
            if isinstance(problem, FileDamaged):
                st.button(tr("files.set_aside"), key=f"file_aside_{file.path.stem}", icon=":material/drive_file_move:",
                          help=tr("files.set_aside_help"), on_click=_set_aside, args=(str(file.path),))  # fmt: skip


def _set_aside(path: str) -> None:
    """Only one of those that this person may mend."""
    try:
        for file, _ in problems(person()):
            if str(file.path) == path and (aside := file.set_aside()) is not None:
                st.session_state[DONE_KEY] = str(aside)
    except DeckError as error:
        st.session_state[ERROR_KEY] = error
