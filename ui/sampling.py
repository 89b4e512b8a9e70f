"""A chat's generation settings: the preset, the form of its parameters, and what holds in the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Protocol

import streamlit as st

from core.chat.presets import check_values, combine, model_preset, read_recommended, set_model_preset
from core.chat.reader import folder_of
from core.chat.records import Chat, ChatInfo
from core.engine.messages import MAX_SEED, SAMPLING_RANGES, Sampling
from core.errors import DeckError
from ui.errors import show_error
from ui.i18n import text, tr
from ui.resources import preferences, presets, runner

SLIDERS = ("temperature", "top_p", "min_p", "repetition_penalty")
NUMBERS = ("top_k", "max_new_tokens", "seed")
STEP = 0.05
# Beyond this nobody has asked for anything sensible, and a slider would be too coarse.
SLIDER_ENDS = {"temperature": 2.0, "repetition_penalty": 2.0}
# JavaScript's whole numbers end here; a larger seed can be given in the command line.
MAX_WIDGET_SEED = min(MAX_SEED, 2**53 - 1)
PRESET_KEY, NAME_KEY, ERROR_KEY = "sampling_preset", "sampling_name", "sampling_error"


def recommended() -> dict[str, Any]:
    """What the loaded model recommends for itself, as far as it makes sense."""
    folder = folder_of(runner().state)
    return read_recommended(folder) if folder else {}


def preset_of(info: ChatInfo) -> str:
    """The name of the chat's preset, else the model's default; empty for the model's own recommendation."""
    model = runner().state.model
    return str(info.settings.get("preset", (model_preset(preferences(), model) if model else None) or ""))


def preset_values(name: str) -> dict[str, Any]:
    """A preset's values; nothing where it was deleted meanwhile."""
    try:
        return presets().get(name).values if name else {}
    except DeckError:
        return {}


def sampling_of(info: ChatInfo) -> Sampling:
    """What holds in a chat: the model's recommendation, the preset, the chat's own. Raises InputError."""
    return combine(recommended(), preset_values(preset_of(info)), info.settings.get("sampling", {}))


class Change(Protocol):
    """Sets some of a chat's settings; None takes one away, and what is given of "sampling" joins what is there."""

    def __call__(self, info: ChatInfo, **values: object) -> None: ...


def sampling_form(chat_now: Callable[[], Chat], change_settings: Change) -> None:
    """The preset and its parameters. `chat_now` reads the chat anew, `change_settings` keeps what is chosen."""
    info = chat_now().info
    _preset_choice(info, change_settings)
    if error := st.session_state.pop(ERROR_KEY, None):
        show_error(error)
    values = asdict(sampling_of(info))
    left, right = st.columns(2)
    for index, name in enumerate(SLIDERS):
        with (left, right)[index % 2]:
            _slider(name, values[name], info, change_settings)
    with left:
        _number("top_k", values["top_k"], info, change_settings)
        _number("seed", values["seed"], info, change_settings, placeholder=tr("sampling.seed_random"))
    with right:
        _number("max_new_tokens", values["max_new_tokens"], info, change_settings)
        _stop_strings(values["stop"], info, change_settings)
    own = info.settings.get("sampling", {})
    st.button(tr("sampling.reset"), key="sampling_reset", icon=":material/restart_alt:", type="tertiary",
              disabled=not own, on_click=change_settings, args=(info,), kwargs={"sampling": None})  # fmt: skip
    _keeping(info, values, change_settings)


def preset_label(name: str) -> str:
    if not name:
        return text("sampling.model_own")
    shipped = {preset.name for preset in presets().shipped()}
    return text(f"preset.{name}") if name in shipped else name


def _preset_choice(info: ChatInfo, change_settings: Change) -> None:
    try:
        own = presets().own()
    except DeckError as error:
        show_error(error)
        own = []
    names = ["", *(preset.name for preset in [*presets().shipped(), *own])]
    chosen = preset_of(info)
    st.session_state[PRESET_KEY] = chosen if chosen in names else ""

    def choose() -> None:
        change_settings(info, preset=st.session_state[PRESET_KEY], sampling=None)

    st.selectbox(tr("sampling.preset"), names, key=PRESET_KEY, format_func=preset_label, on_change=choose)
    if chosen and chosen in {preset.name for preset in presets().shipped()}:
        st.caption(tr(f"preset.{chosen}_help"))


def _change(name: str, info: ChatInfo, change_settings: Change) -> None:
    """Keep one changed value in the chat; one that cannot be is refused with its range."""
    value = st.session_state[f"sampling_{name}"]
    if name == "stop":
        value = [one.replace("\\n", "\n") for one in value]
    try:
        checked = check_values({name: value}) if value is not None or name == "seed" else {}
    except DeckError as error:
        st.session_state[ERROR_KEY] = error
        return
    change_settings(info, sampling=checked)


def _slider(name: str, value: float, info: ChatInfo, change_settings: Change) -> None:
    low, high = SAMPLING_RANGES[name]
    key, end = f"sampling_{name}", max(SLIDER_ENDS.get(name, high), value)
    st.session_state[key] = float(value)
    st.slider(tr(f"sampling.{name}"), float(low), float(end), step=STEP, key=key, help=tr(f"sampling.{name}_help"),
              on_change=_change, args=(name, info, change_settings))  # fmt: skip


def _number(
    name: str, value: int | None, info: ChatInfo, change_settings: Change, placeholder: str | None = None
) -> None:
    # Without limits of the widget's own: it would put a wrong value right without a word.
    key = f"sampling_{name}"
    st.session_state[key] = None if value is None else min(value, MAX_WIDGET_SEED)
    st.number_input(tr(f"sampling.{name}"), value=None, step=1, key=key, placeholder=placeholder,
                    help=tr(f"sampling.{name}_help"), on_change=_change,
                    args=(name, info, change_settings))  # fmt: skip


def _stop_strings(value: tuple[str, ...], info: ChatInfo, change_settings: Change) -> None:
    key = "sampling_stop"
    shown = [one.replace("\n", "\\n") for one in value]
    st.session_state[key] = shown
    st.multiselect(tr("sampling.stop"), shown, key=key, accept_new_options=True,
                   placeholder=tr("sampling.stop_placeholder"), help=tr("sampling.stop_help"),
                   on_change=_change, args=("stop", info, change_settings))  # fmt: skip


def _keeping(info: ChatInfo, values: dict[str, Any], change_settings: Change) -> None:
    """Save as a preset of one's own, delete one, make one the default of the loaded model."""
    chosen, model = preset_of(info), runner().state.model
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.text_input(tr("sampling.save_name"), key=NAME_KEY, placeholder=tr("sampling.save_placeholder"))
        st.button(tr("sampling.save"), key="sampling_save", icon=":material/save:", on_click=_save,
                  args=(info, values, change_settings))  # fmt: skip
    if chosen and all(preset.name != chosen for preset in presets().shipped()):
        st.button(tr("sampling.delete", name=preset_label(chosen)), key="sampling_delete", type="tertiary",
                  icon=":material/delete:", on_click=_delete, args=(info, chosen, change_settings))  # fmt: skip
    if model and (model_preset(preferences(), model) or "") != chosen:
        st.button(tr("sampling.make_default", name=preset_label(chosen), model=model), key="sampling_default",
                  type="tertiary", icon=":material/bookmark:", on_click=set_model_preset,
                  args=(preferences(), model, chosen))  # fmt: skip


def _save(info: ChatInfo, values: dict[str, Any], change_settings: Change) -> None:
    name = st.session_state[NAME_KEY].strip()
    kept = {key: value for key, value in values.items() if key != "seed"}
    try:
        presets().save(name, kept)
        change_settings(info, preset=name, sampling=None)
        st.session_state[NAME_KEY] = ""
    except DeckError as error:
        st.session_state[ERROR_KEY] = error


def _delete(info: ChatInfo, name: str, change_settings: Change) -> None:
    """The values stay in the chat, so that saving them again takes the deletion back."""
    try:
        gone = presets().delete(name)
        change_settings(info, preset="", sampling={**gone.values, **info.settings.get("sampling", {})})
        st.session_state[NAME_KEY] = name
    except DeckError as error:
        st.session_state[ERROR_KEY] = error
