"""What the chat page says after a click: an error, or what was just done and can be taken back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple

import streamlit as st

from core.common.errors import DeckError
from core.common.panics import panics_as_errors, why_of
from ui.chat.reading_place import go_to_end

log = logging.getLogger(__name__)
NOTICE_KEY, ERROR_KEY = "chat_notice", "chat_error"
# Of the last import: what was left out of each file, and the files that could not be read.
LEFT_KEY, FAILED_KEY = "chat_import_left", "chat_import_failed"


class Notice(NamedTuple):
    """What was just deleted and can be taken back: its `kind` ("chat", "message"), its id, and in which chat."""

    kind: str
    number: int
    chat: int


def show_errors(step: Callable[..., None]) -> Callable[..., None]:
    """Decorates what a button does: the page shows its error in the next run."""

    @wraps(step)
    def run(*args: Any, **values: Any) -> None:
        for key in (ERROR_KEY, NOTICE_KEY, LEFT_KEY, FAILED_KEY):
            st.session_state.pop(key, None)
        try:
            with panics_as_errors():
                step(*args, **values)
        except DeckError as error:
            tell(error)
        except Exception as error:  # A click's edge: the page goes on, and what was typed is not lost with it.
            log.exception("%s failed", step)
            tell(DeckError("page_fault", why=f"{type(error).__name__}: {why_of(error)}"))

    return run


def tell(error: DeckError) -> None:
    """Say what went wrong below the messages, and show that place: a click may have been far above it."""
    st.session_state[ERROR_KEY] = error
    go_to_end()
