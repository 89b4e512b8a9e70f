"""The generation settings: their widgets, and the values that this tab chose; knows no chat."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

import streamlit as st

from core.engine.messages import MAX_SEED, MAX_STOP_STRINGS, SAMPLING_RANGES, Sampling
from core.errors import DeckError
from core.model_files import read_json
from core.settings import models_dir
from ui.i18n import tr
from ui.resources import runner

SLIDERS = ("temperature", "top_p", "min_p", "repetition_penalty")
STEP = 0.05
# JavaScript's whole numbers end here; a larger seed can be given in the command line.
MAX_WIDGET_SEED = min(MAX_SEED, 2**53 - 1)
# What a checkpoint may recommend in its generation_config.json.
RECOMMENDED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def defaults() -> dict[str, Any]:
    """What holds until a person chooses: the loaded model's own recommendation, else this program's."""
    values = {field.name: field.default for field in fields(Sampling)}
    model = runner().state.model
    try:
        recommended = (read_json(models_dir() / model / "generation_config.json") if model else None) or {}
        values |= {name: recommended[name] for name in RECOMMENDED if recommended.get(name) is not None}
        values["top_k"] = int(values["top_k"])
        return asdict(Sampling(**values))
    except (DeckError, TypeError, ValueError):
        return {field.name: field.default for field in fields(Sampling)}


def key(name: str) -> str:
    return f"sampling_{name}"


def chosen_sampling() -> Sampling:
    """This tab's settings. Raises InputError for a value out of its range, which no widget lets through."""
    values = {name: st.session_state.get(key(name), value) for name, value in defaults().items()}
    values["stop"] = tuple(text.replace("\\n", "\n") for text in values["stop"])
    return Sampling(**values)


def sampling_widgets() -> None:
    left, right = st.columns(2)
    value = defaults()
    for index, name in enumerate(SLIDERS):
        low, high = SAMPLING_RANGES[name]
        with (left, right)[index % 2]:
            st.slider(*_label(name), float(low), float(high), float(value[name]), STEP, key=key(name),
                      help=tr(f"sampling.{name}_help"), persist_state="session")  # fmt: skip
    with left:
        _number("top_k", value["top_k"], *SAMPLING_RANGES["top_k"])
        _number("seed", None, 0, MAX_WIDGET_SEED, placeholder=tr("sampling.seed_random"))
    with right:
        _number("max_new_tokens", value["max_new_tokens"], *SAMPLING_RANGES["max_new_tokens"])
        st.multiselect(*_label("stop"), [], key=key("stop"), accept_new_options=True, persist_state="session",
                       max_selections=MAX_STOP_STRINGS, placeholder=tr("sampling.stop_placeholder"),
                       help=tr("sampling.stop_help"))  # fmt: skip
    st.button(tr("sampling.reset"), key="sampling_reset", icon=":material/restart_alt:", on_click=_reset)


def _label(name: str) -> tuple[str]:
    return (tr(f"sampling.{name}"),)


def _number(name: str, value: int | None, low: float, high: float, placeholder: str | None = None) -> None:
    st.number_input(*_label(name), int(low), int(high), value, 1, key=key(name), placeholder=placeholder,
                    help=tr(f"sampling.{name}_help"), persist_state="session")  # fmt: skip


def _reset() -> None:
    for name, value in defaults().items():
        st.session_state[key(name)] = list(value) if name == "stop" else value
