"""Generation settings of other programs: text-generation-webui's presets (YAML) and SillyTavern's (JSON)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from core.chat.presets import MAX_NAME_CHARS, YAML, check_values
from core.common.errors import DeckError, InputError
from core.common.plain_json import load_json
from core.common.values import quoted_json
from core.engine.sampling_params import WHOLE_SETTINGS

MAX_FILE_BYTES = 2 * 2**20
MAX_VALUES = 20_000
# What they call our settings, and what a file means that leaves one out.
NAMES: Mapping[str, tuple[str, ...]] = {
    "temperature": ("temperature", "temp", "temp_openai"),
    "top_p": ("top_p", "top_p_openai"),
    "top_k": ("top_k", "top_k_openai"),
    "min_p": ("min_p", "min_p_openai"),
    "repetition_penalty": ("repetition_penalty", "rep_pen", "repetition_penalty_openai"),
    "max_new_tokens": ("max_new_tokens", "genamt", "openai_max_tokens", "max_length"),
    "presence_penalty": ("presence_penalty", "presence_pen", "pres_pen_openai"),
    "frequency_penalty": ("frequency_penalty", "freq_pen", "freq_pen_openai"),
    "typical_p": ("typical_p", "typical"),
}
# Samplers that count only where the first of their settings is not 0.
GROUPS: tuple[Mapping[str, tuple[str, ...]], ...] = (
    {"xtc_probability": ("xtc_probability",), "xtc_threshold": ("xtc_threshold",)},
    {
        "dry_multiplier": ("dry_multiplier",),
        "dry_base": ("dry_base",),
        "dry_allowed_length": ("dry_allowed_length",),
        "dry_range": ("dry_penalty_last_n", "dry_range"),
    },
    {"mirostat": ("mirostat_mode",), "mirostat_tau": ("mirostat_tau",), "mirostat_eta": ("mirostat_eta",)},
)
NEUTRAL: Mapping[str, float] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
# What changes answers and is not here, by the value with which it changes nothing.
OTHERS: Mapping[str, Any] = {
    **dict.fromkeys(("tfs", "encoder_repetition_penalty", "encoder_rep_pen"), 1),
    **dict.fromkeys(("guidance_scale", "num_beams", "length_penalty"), 1),
    **dict.fromkeys(("top_a", "top_a_openai", "epsilon_cutoff", "eta_cutoff", "top_n_sigma", "nsigma", "skew"), 0),
    **dict.fromkeys(("no_repeat_ngram_size", "penalty_alpha"), 0),
    **dict.fromkeys(("repetition_penalty_range", "rep_pen_range", "rep_pen_decay", "min_length"), 0),
    "smoothing_factor": 0,
    **dict.fromkeys(
        ("dynatemp", "dynamic_temperature", "temperature_last", "ban_eos_token", "ignore_eos_token"), False
    ),
    **dict.fromkeys(("negative_prompt", "grammar_string", "banned_tokens", "custom_token_bans"), ""),
    **dict.fromkeys(("logit_bias", "json_schema"), None),
}


@dataclass(frozen=True, slots=True)
class ForeignPreset:
    """A preset of another program. `left_out` are the names of its settings that have no counterpart here."""

    name: str
    values: dict[str, Any]
    left_out: tuple[str, ...]


def read_preset(file: str, data: bytes) -> ForeignPreset:
    """The preset in a file called `file`. Raises InputError for what is none, and for a value out of its range."""
    found = _parse(file, data)
    values = {ours: value for ours, theirs in NAMES.items() if (value := _first(found, ours, theirs)) is not None}
    grouped = _grouped(found)
    if not values and not grouped and not any(name in found for name in OTHERS):
        raise InputError("preset_file_unknown", file=quoted_json(file))
    values = {**NEUTRAL, **values, **grouped}
    if found.get("do_sample") is False:
        values["temperature"] = 0.0
    # Some write -1 for a setting that cuts nothing.
    values["top_k"] = max(0, values["top_k"])
    if values.get("max_new_tokens", 1) < 1:
        del values["max_new_tokens"]
    name = " ".join("".join(letter if letter.isprintable() else " " for letter in PurePath(file).stem).split())
    left_out = tuple(name for name, neutral in OTHERS.items() if _differs(found.get(name), neutral))
    return ForeignPreset(name[:MAX_NAME_CHARS].strip() or "?", check_values(values), left_out)


def _grouped(found: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the samplers that are on."""
    values: dict[str, Any] = {}
    for group in GROUPS:
        own = {ours: value for ours, theirs in group.items() if (value := _first(found, ours, theirs)) is not None}
        if own.get(next(iter(group))):
            values |= own
    if "dry_range" in values:
        # Some write -1 for all of the text.
        values["dry_range"] = max(0, values["dry_range"])
    breakers = _breakers(found.get("dry_sequence_breakers"))
    if breakers is not None and "dry_multiplier" in values:
        values["dry_sequence_breakers"] = breakers
    return values


def _breakers(value: Any) -> list[str] | None:
    """A list of texts, or the JSON of one, as both programs keep it."""
    if isinstance(value, str):
        try:
            value = load_json(f"[{value}]" if not value.strip().startswith("[") else value, MAX_VALUES)
        except (ValueError, RecursionError, DeckError):
            return None
    return value if isinstance(value, list) and all(isinstance(one, str) for one in value) else None


def _parse(file: str, data: bytes) -> dict[str, Any]:
    if len(data) > MAX_FILE_BYTES:
        raise InputError("preset_file_unknown", file=quoted_json(file))
    try:
        text = data.decode("utf-8-sig")
        found = load_json(text, MAX_VALUES) if text.lstrip().startswith("{") else YAML.load(text)
    except (ValueError, RecursionError, TypeError, DeckError):
        found = None
    if not isinstance(found, dict):
        raise InputError("preset_file_unknown", file=quoted_json(file))
    return found


def _first(found: Mapping[str, Any], ours: str, names: tuple[str, ...]) -> int | float | None:
    """The first of the settings called `names` that is a number, for the setting that is `ours`."""
    for name in names:
        value = found.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            is_whole = ours in WHOLE_SETTINGS and isinstance(value, float) and value.is_integer()
            return int(value) if is_whole else value
    return None


def _differs(value: Any, neutral: Any) -> bool:
    """Whether a setting would change something: it is there, and is not what changes nothing."""
    if isinstance(neutral, int | float) and isinstance(value, int | float):
        return value != neutral
    return bool(value)
