"""A chat's generation settings: the preset, the form of its parameters, and what holds in the end."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import streamlit as st

from core.chat.preset_files import MAX_FILE_BYTES, read_preset
from core.chat.presets import check_values, model_preset, set_model_preset
from core.chat.records import ChatInfo
from core.common.errors import DeckError
from core.engine.sampling_params import MAX_SEED, SAMPLING_RANGES
from ui.chat.chat_settings import change_settings
from ui.chat.session import info_of
from ui.chat.setup import preset_of, sampling_of
from ui.shared.errors import sentence, show_error
from ui.shared.i18n import text, tr
from ui.shared.identity import held, hold, key_of, let_go, take_held
from ui.shared.resources import engine, preferences, presets

# Rows of one or two: beside each other where there is room, else in this order.
ROWS = (
    ("temperature", "top_p"),
    ("min_p", "repetition_penalty"),
    ("top_k", "max_new_tokens"),
    ("seed", "stop"),
)
# In an expander: those that most people leave alone, each beside what it works with.
MORE_ROWS = (
    ("presence_penalty", "frequency_penalty"),
    ("xtc_probability", "xtc_threshold"),
    ("dry_multiplier", "dry_base"),
    ("dry_allowed_length", "dry_range"),
    ("dry_sequence_breakers",),
    ("typical_p", "mirostat"),
    ("mirostat_tau", "mirostat_eta"),
)
NUMBERS = ("top_k", "max_new_tokens", "seed", "dry_allowed_length", "dry_range", "mirostat")
STEP = 0.05
# Beyond this nobody has asked for anything sensible, and a slider would be too coarse.
SLIDER_ENDS = {"temperature": 2.0, "repetition_penalty": 2.0, "dry_multiplier": 5.0, "dry_base": 4.0}
TEXT_LISTS = ("stop", "dry_sequence_breakers")
# JavaScript's whole numbers end here; a larger seed can be given in the command line.
MAX_WIDGET_SEED = min(MAX_SEED, 2**53 - 1)
PRESET, NAME, ERROR_KEY = "sampling_preset", "sampling_name", "sampling_error"
IMPORTED_KEY, IMPORT_COUNT_KEY = "sampling_imported", "sampling_import_count"


def sampling_form(tag: str) -> None:
    """The preset and its parameters of the chat that is called `tag`. Raises DeckError where it is gone."""
    info = info_of(tag)
    _preset_choice(tag, info)
    if error := st.session_state.pop(f"{ERROR_KEY}_{tag}", None):
        show_error(error)
    values = asdict(sampling_of(info))
    _rows(ROWS, values, tag)
    with st.expander(tr("sampling.more"), icon=":material/tune:", key=f"sampling_more_{tag}"):
        _rows(MORE_ROWS, values, tag)
    own = info.settings.get("sampling", {})
    st.button(tr("sampling.reset"), key=f"sampling_reset_{tag}", icon=":material/restart_alt:", type="tertiary",
              disabled=not own, on_click=change_settings, args=(tag,), kwargs={"sampling": None})  # fmt: skip
    _keeping(tag, info)


def preset_label(name: str) -> str:
    if not name:
        return text("sampling.model_own")
    shipped = {preset.name for preset in presets().shipped()}
    return text(f"preset.{name}") if name in shipped else name


def _preset_choice(tag: str, info: ChatInfo) -> None:
    try:
        own, left_out = presets().own(), presets().left_out()
    except DeckError as error:
        show_error(error)
        own, left_out = [], []
    for name, why in left_out:
        about = tr("sampling.left_out", name=name, file=presets().file.path.name)
        st.warning(f"{about} {sentence(why)}", icon=":material/rule:")
    names = ["", *(preset.name for preset in [*presets().shipped(), *own])]
    chosen = preset_of(info)
    shown = chosen if chosen in names else ""
    key = key_of(PRESET, tag, shown)

    def choose() -> None:
        # A browser that shows the choice late tells it as if it were new.
        if (now := st.session_state[key]) != shown:
            change_settings(tag, preset=now, sampling=None)

    st.selectbox(tr("sampling.preset"), names, key=key, format_func=preset_label, on_change=choose)
    if chosen and chosen in {preset.name for preset in presets().shipped()}:
        st.caption(tr(f"preset.{chosen}_help"))


def _change(name: str, key: str, tag: str) -> None:
    """Keep one changed value in the chat; one that cannot be is refused with its range."""
    value = st.session_state[key]
    if name in TEXT_LISTS:
        value = [one.replace("\\n", "\n") for one in value]
    try:
        checked = check_values({name: value}) if value is not None or name == "seed" else {}
    except DeckError as error:
        st.session_state[f"{ERROR_KEY}_{tag}"] = error
        return
    if not _is_held(checked, tag):
        change_settings(tag, sampling=checked)


def _is_held(values: dict[str, Any], tag: str) -> bool:
    """Whether `values` hold in the chat anyway. A browser that shows a field late tells its value as if it were new."""
    try:
        return bool(values.items() <= asdict(sampling_of(info_of(tag))).items())
    except DeckError:
        return False


def _rows(rows: tuple[tuple[str, ...], ...], values: dict[str, Any], tag: str) -> None:
    for row in rows:
        for name, place in zip(row, st.columns(len(row)), strict=True):
            with place:
                if name in TEXT_LISTS:
                    _texts(name, values[name], tag)
                elif name in NUMBERS:
                    _number(name, values[name], tag)
                else:
                    _slider(name, values[name], tag)


def _slider(name: str, value: float, tag: str) -> None:
    low, high = SAMPLING_RANGES[name]
    key, end = key_of(f"sampling_{name}", tag, float(value)), max(SLIDER_ENDS.get(name, high), value)
    st.slider(tr(f"sampling.{name}"), float(low), float(end), step=STEP, key=key, help=tr(f"sampling.{name}_help"),
              on_change=_change, args=(name, key, tag))  # fmt: skip


def _number(name: str, value: int | None, tag: str) -> None:
    # Without limits of the widget's own: it would put a wrong value right without a word.
    key = key_of(f"sampling_{name}", tag, None if value is None else min(value, MAX_WIDGET_SEED))
    st.number_input(tr(f"sampling.{name}"), value=None, step=1, key=key,
                    placeholder=tr("sampling.seed_random") if name == "seed" else None,
                    help=tr(f"sampling.{name}_help"), on_change=_change, args=(name, key, tag))  # fmt: skip


def _texts(name: str, value: tuple[str, ...], tag: str) -> None:
    shown = [one.replace("\n", "\\n") for one in value]
    key = key_of(f"sampling_{name}", tag, shown)
    st.multiselect(tr(f"sampling.{name}"), shown, key=key, accept_new_options=True,
                   placeholder=tr("sampling.stop_placeholder"), help=tr(f"sampling.{name}_help"),
                   on_change=_change, args=(name, key, tag))  # fmt: skip


def _keeping(tag: str, info: ChatInfo) -> None:
    """Save as a preset of one's own, delete one, make one the default of the loaded model."""
    chosen, model, seen = preset_of(info), engine().state.model, own_values()
    key = key_of(NAME, tag, held(NAME, tag))
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.text_input(tr("sampling.save_name"), key=key, placeholder=tr("sampling.save_placeholder"),
                      on_change=take_held, args=(NAME, tag, key))  # fmt: skip
        st.button(tr("sampling.save"), key=f"sampling_save_{tag}", icon=":material/save:", on_click=_save,
                  args=(tag, key, seen))  # fmt: skip
    _draw_import(tag)
    if chosen in seen:
        st.button(tr("sampling.delete", name=preset_label(chosen)), key=f"sampling_delete_{tag}", type="tertiary",
                  icon=":material/delete:", on_click=_delete, args=(tag, chosen, seen))  # fmt: skip
    if model and (model_preset(preferences(), model) or "") != chosen:
        st.button(tr("sampling.make_default", name=preset_label(chosen), model=model), key=f"sampling_default_{tag}",
                  type="tertiary", icon=":material/bookmark:", on_click=set_model_preset,
                  args=(preferences(), model, chosen))  # fmt: skip


def _draw_import(tag: str) -> None:
    """Presets of other programs; a new key after each import empties the field."""
    with st.expander(tr("sampling.import"), icon=":material/upload_file:", key=f"sampling_import_part_{tag}"):
        for name, left_out in st.session_state.pop(f"{IMPORTED_KEY}_{tag}", ()):
            st.success(tr("sampling.imported", name=name), icon=":material/check_circle:")
            if left_out:
                st.caption(tr("sampling.no_counterpart", names=", ".join(left_out)))
        key = f"sampling_import_{tag}_{st.session_state.get(IMPORT_COUNT_KEY, 0)}"
        st.file_uploader(tr("sampling.import_help"), type=["yaml", "yml", "json"], accept_multiple_files=True, key=key,
                         max_upload_size=MAX_FILE_BYTES // 2**20, on_change=_import, args=(tag, key))  # fmt: skip


def _import(tag: str, key: str) -> None:
    """Each file for itself; the last one that is a preset holds in the chat."""
    added: list[tuple[str, tuple[str, ...]]] = []
    for file in st.session_state[key]:
        try:
            found = read_preset(file.name, file.getvalue())
            added.append((presets().add(found.name, found.values), found.left_out))
        except DeckError as error:
            st.session_state[f"{ERROR_KEY}_{tag}"] = error
    st.session_state[IMPORT_COUNT_KEY] = st.session_state.get(IMPORT_COUNT_KEY, 0) + 1
    if added:
        st.session_state[f"{IMPORTED_KEY}_{tag}"] = added
        change_settings(tag, preset=added[-1][0], sampling=None)


def own_values() -> dict[str, dict[str, Any]]:
    """The values of a person's own presets by name; none where their file cannot be used, which is said above."""
    try:
        return {preset.name: preset.values for preset in presets().own()}
    except DeckError:
        return {}


def _save(tag: str, key: str, seen: dict[str, dict[str, Any]]) -> None:
    """Keep what holds in the chat now, with what was changed by the same click."""
    name = st.session_state[key].strip()
    try:
        values = asdict(sampling_of(info_of(tag)))
        presets().save(name, {name: value for name, value in values.items() if name != "seed"}, seen)
        change_settings(tag, preset=name, sampling=None)
        let_go(NAME, tag)
    except DeckError as error:
        st.session_state[f"{ERROR_KEY}_{tag}"] = error


def _delete(tag: str, name: str, seen: dict[str, dict[str, Any]]) -> None:
    """The values stay in the chat, so that saving them again takes the deletion back."""
    try:
        gone = presets().delete(name, seen)
        change_settings(tag, preset="", sampling={**gone.values, **info_of(tag).settings.get("sampling", {})})
        hold(NAME, tag, name)
    except DeckError as error:
        st.session_state[f"{ERROR_KEY}_{tag}"] = error
