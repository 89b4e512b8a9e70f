"""Which thing a widget edits, as its key says it.

A browser takes no new value for a widget that it does not show, such as one in a closed popover: it sends the old value
with its next step, as if a person had chosen it. So each thing, and each value that comes from outside, gets a widget
of its own. A callback is given the thing and the key that its widget was drawn for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

DRAWN_KEY, COUNT_KEY, HELD_KEY = "drawn_widgets", "drawn_count", "held_texts"


class Drawn(NamedTuple):
    """The widget that was drawn last under a name. `value` is the stored value as this tab knows it."""

    thing: str
    key: str
    value: Any


def key_of(name: str, thing: object, value: Any, kept: Callable[[Any], Any] | None = None) -> str:
    """The key of the widget that shows `value`, which is the `name` of `thing`.

    The key begins with both, and stays the same while only the widget itself changes the value. `kept` gives what is
    stored of a typed text, where that is not all of it: a new widget would lose the focus in the midst of typing.
    """
    state, thing = st.session_state, str(thing)
    last = _drawn().get(name)
    if last is not None and last.thing == thing and last.key in state and _shows(state[last.key], value, kept):
        key = last.key
        if not _is_sent(key):
            # Streamlit sends a value only in the run that sets it; a browser that comes later has not got it.
            state[key] = value
    else:
        number = state[COUNT_KEY] = state.get(COUNT_KEY, 0) + 1
        key = "_".join([name, thing, *([] if last is None else [str(number)])])
        state[key] = value
    _drawn()[name] = Drawn(thing, key, value)
    return key


def _is_sent(key: str) -> bool:
    """Whether the browser sent the value of this widget with the step that this run is for.

    It sends none for a widget that it has not shown yet, such as one in a closed popover or on a page that was left.
    """
    if (run := get_script_run_ctx()) is None:
        return False
    session = run.session_state._state
    return session._key_id_mapper.get_id_from_key(key, "") in session._new_widget_state


def _shows(typed: Any, value: Any, kept: Callable[[Any], Any] | None) -> bool:
    return bool((typed if kept is None else kept(typed)) == value)


def known_value(name: str, thing: object, drawn: Any) -> Any:
    """What this tab saw or stored last as the `name` of `thing`; else what the widget was `drawn` with."""
    last = _drawn().get(name)
    return last.value if last is not None and last.thing == str(thing) else drawn


def note_stored(name: str, thing: object, value: Any) -> None:
    """Note that this tab has stored `value`: a second change, before the page is drawn again, goes on from it."""
    last = _drawn().get(name)
    if last is not None and last.thing == str(thing):
        _drawn()[name] = last._replace(value=value)


def _drawn() -> dict[str, Drawn]:
    drawn: dict[str, Drawn] = st.session_state.setdefault(DRAWN_KEY, {})
    return drawn


# Texts that a tab holds until they are used --------------------------------------------------------------------------


def held(name: str, thing: object) -> str:
    """The text typed as the `name` of `thing` and not used yet."""
    return _held().get((name, str(thing)), "")


def hold(name: str, thing: object, text: str) -> None:
    _held()[name, str(thing)] = text


def let_go(name: str, thing: object) -> None:
    """Forget a text that was used: its field is empty the next time it is drawn."""
    _held().pop((name, str(thing)), None)


def take_held(name: str, thing: object, key: str) -> None:
    """For the on_change of the field with this key."""
    hold(name, thing, str(st.session_state[key] or ""))


def _held() -> dict[tuple[str, str], str]:
    texts: dict[tuple[str, str], str] = st.session_state.setdefault(HELD_KEY, {})
    return texts
