"""Which thing a widget edits, as its key says it.

A browser takes no new value for a widget that it does not show, such as one in a closed popover: it sends the old value
with its next step, as if a person had chosen it. Nor has it the last run yet when a step is on its way already. So each
thing, and each value that comes from outside, gets a widget of its own. A callback is given the thing and the key that
its widget was drawn for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from ui.shared.resources import LANGUAGE_KEY

DRAWN_KEY, COUNT_KEY, HELD_KEY = "drawn_widgets", "drawn_count", "held_texts"
# The widgets whose value the browser has, and what Streamlit made of its last step.
SENT_KEY, STEP_KEY = "sent_widgets", "last_step"
WORDS_KEY = "shown_words"


class Drawn(NamedTuple):
    """The widget that was drawn last under a name. `value` is the stored value as this tab knows it."""

    thing: str
    key: str
    value: Any
    language: str
    words: tuple[str, ...]


def key_of(
    name: str,
    thing: object,
    value: Any,
    kept: Callable[[Any], Any] | None = None,
    is_translated: bool = True,
    words: Iterable[str] = (),
) -> str:
    """The key of the widget that shows `value`, which is the `name` of `thing`, or of the tab where `thing` is empty.

    The key begins with both, and stays the same while only the widget itself changes the value. `kept` gives what is
    stored of a typed text, where that is not all of it: a new widget would lose the focus in the midst of typing.
    Browsers tell a choice by its words: where a widget `is_translated`, another language has one of its own, and so
    have other `words` of its choices, such as names that somebody has changed.
    """
    state, thing, words = st.session_state, str(thing), tuple(words)
    language = str(state.get(LANGUAGE_KEY, "")) if is_translated else ""
    last = _drawn().get(name)
    is_same = last is not None and (last.thing, last.language, last.words) == (thing, language, words)
    if last is not None and is_same and last.key in state and _shows(state[last.key], value, kept):
        key = last.key
    else:
        if last is not None:
            _quieten(last.key, state.get(last.key, last.value))
        number = state[COUNT_KEY] = state.get(COUNT_KEY, 0) + 1
        key = "_".join(part for part in (name, thing, "" if last is None else str(number)) if part)
    begin_with(key, value)
    _drawn()[name] = Drawn(thing, key, value, language, words)
    return key


def begin_with(key: str, value: Any) -> None:
    """Let the widget with this key show `value` at first. Call it before the widget is drawn.

    Streamlit sends a value only in the run that sets it, and drops what it has not sent yet where another run follows
    at once: the browser would show an empty field, and send it. So the value is set until the browser has sent one.
    """
    state, sent = st.session_state, _sent()
    if key not in state:
        state[key] = value
        sent.discard(key)
    elif _is_sent(key):
        sent.add(key)
    elif key not in sent:
        state[key] = state[key]


def show_words(key: str, words: Mapping[Any, str]) -> None:
    """Let the browser show the choice of this key by these `words`, one for each value. Call it before it is drawn.

    A browser tells a choice by its words. It goes on to show those that it had, of another language or of what was
    known before, and a step that was late sends them: then the last value that was one of the choices holds.
    """
    state, shown = st.session_state, st.session_state.setdefault(WORDS_KEY, {})
    if key not in state:
        return
    last, value = shown.get(key), state[key]
    if value not in words and last is not None and last[0] in words:
        value = last[0]
    if value in words:
        if last != (value, words[value]) or state[key] != value:
            state[key] = value
            _sent().discard(key)
        begin_with(key, value)
        shown[key] = value, words[value]


def _quieten(key: str, value: Any) -> None:
    """Call no on_change where the widget with this key, which is drawn no longer, tells `value`.

    A browser that has not got this run yet sends that with its next step, and Streamlit takes it for a change.
    """
    if (run := get_script_run_ctx()) is None:
        return
    session = run.session_state._state
    widget = session.get_widget_metadata(session.get_widget_id_from_key(key) or "")
    if widget is None or (callback := widget.callback) is None:
        return

    def call_if_changed(*args: Any, **kwargs: Any) -> None:
        if st.session_state.get(key, value) != value:
            callback(*args, **kwargs)

    session._set_widget_metadata(replace(widget, callback=call_if_changed))


def _sent() -> set[str]:
    """The keys of the widgets whose value the browser has.

    A step without it shows that the browser has it no longer: it forgets the widgets of a page that is left at once,
    where the server may not. A run that a page asks for itself is for no new step, and shows nothing.
    """
    sent: set[str] = st.session_state.setdefault(SENT_KEY, set())
    run = get_script_run_ctx()
    if run is not None and run.context_info is not st.session_state.get(STEP_KEY):
        st.session_state[STEP_KEY] = run.context_info
        sent.intersection_update([key for key in sent if _is_sent(key)])
    return sent


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


def drawn_last(name: str) -> Drawn | None:
    """The widget that was drawn last under `name`."""
    return _drawn().get(name)


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
