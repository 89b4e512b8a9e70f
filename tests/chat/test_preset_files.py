"""Presets of text-generation-webui and SillyTavern: what they mean here, and what of them has no counterpart."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.chat.preset_files import NEUTRAL, read_preset
from core.chat.presets import combine
from core.common.errors import DeckError, InputError

TAVERN = {"temp": 1.25, "top_p": 1, "top_k": 0, "min_p": 0.1, "rep_pen": 1.05, "typical_p": 1, "tfs": 0.95,
          "rep_pen_range": 0, "do_sample": True, "dynatemp": False,
          "min_temp": 0, "max_temp": 2, "mirostat_mode": 2, "mirostat_tau": 5,
          "json_schema": {}, "logit_bias": [], "sampler_order": [6, 0, 1], "genamt": 350}  # fmt: skip


def test_a_preset_of_text_generation_webui_is_read() -> None:
    found = read_preset(
        "Midnight Enigma.yaml", b"temperature: 0.98\ntop_p: 0.37\nrepetition_penalty: 1.18\ntop_k: 100\n"
    )
    assert found.name == "Midnight Enigma" and found.left_out == ()
    assert found.values == {**NEUTRAL, "temperature": 0.98, "top_p": 0.37, "top_k": 100, "repetition_penalty": 1.18}


def test_a_preset_of_sillytavern_is_read_and_what_has_no_counterpart_is_named() -> None:
    found = read_preset("Miro.json", json.dumps(TAVERN).encode())
    assert found.values == {"temperature": 1.25, "top_p": 1, "top_k": 0, "min_p": 0.1, "repetition_penalty": 1.05,
                            "max_new_tokens": 350, "typical_p": 1, "mirostat": 2, "mirostat_tau": 5}  # fmt: skip
    assert set(found.left_out) == {"tfs"}


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("do_sample: false\ntop_p: 0.5", "temperature", 0.0),
        ("top_k: -1", "top_k", 0),
        ("top_k: 40.0", "top_k", 40),
        ('\ufeff{"temp_openai": 0.9, "openai_max_tokens": 300, "prompts": []}', "temperature", 0.9),
        ("dynamic_temperature: true\nmin_p: 0.07", "min_p", 0.07),
        ("temperature: 1\nmax_new_tokens: 0", "temperature", 1),
        ("dry_multiplier: 0.8\ndry_penalty_last_n: -1", "dry_range", 0),
        (r'{"dry_multiplier": 0.8, "dry_sequence_breakers": "[\"\\n\", \":\"]"}', "dry_sequence_breakers", ["\n", ":"]),
        ("xtc_probability: 0.5\nxtc_threshold: 0.1", "xtc_threshold", 0.1),
    ],
)
def test_older_and_odd_files_mean_what_they_say(text: str, name: str, value: float) -> None:
    assert read_preset("odd", text.encode()).values[name] == value


def test_settings_of_a_sampler_that_is_off_are_left_alone() -> None:
    assert not {"dry_base", "mirostat_tau"} & set(
        read_preset("odd", b"top_k: 3\ndry_base: 99\nmirostat_tau: -5").values
    )


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xfe\x00", b"[1, 2]", b"name: Ada\ngreeting: Hello", b'{"messages": []}', b"{" * 100_000,
     b"a: !!python/x 1",
     b"temperature: [1]", b"x" * (3 * 2**20), b"{\x00}", b"temperature: 1\ntemperature: 2"],
)  # fmt: skip
def test_what_is_no_preset_is_a_sentence(data: bytes) -> None:
    with pytest.raises(InputError) as caught:
        read_preset("no.yaml", data)
    assert caught.value.key == "preset_file_unknown"


@pytest.mark.parametrize("text", ["temperature: 90", "min_p: .nan", "top_k: 1.5", "repetition_penalty: .inf"])
def test_a_value_that_cannot_be_is_named(text: str) -> None:
    with pytest.raises(InputError) as caught:
        read_preset("no.yaml", text.encode())
    assert caught.value.key in ("setting_range", "setting_whole")


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers())


@given(st.dictionaries(st.sampled_from([*TAVERN, "temperature", "max_length"]), VALUES), st.text())
def test_whatever_a_file_holds_is_a_preset_or_a_sentence(values: dict[str, object], name: str) -> None:
    try:
        found = read_preset(name, json.dumps(values).encode())
    except DeckError:
        return
    combine(found.values)
    assert found.name.strip() and found.name.isprintable()
