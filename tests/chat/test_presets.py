"""Presets: good ones ship, a person's own are kept, and a value that cannot be is refused with its range."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.chat.presets import (
    Presets,
    check_values,
    combine,
    model_preset,
    set_model_preset,
)
from core.chat.records import MODES
from core.common.errors import InputError
from core.common.i18n import LANGUAGES, catalogue
from core.common.json_file import FileError
from core.common.preferences import Preferences
from core.engine.sampling_params import SAMPLING_RANGES, Sampling


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "presets.yaml"


def test_good_ones_ship_and_say_what_they_are_for(path: Path) -> None:
    shipped = Presets(path).shipped()
    assert {"precise", "balanced", "creative", "deterministic"} <= {preset.name for preset in shipped}
    for preset in shipped:
        assert not preset.is_own and isinstance(combine(preset.values), Sampling)
        for language in LANGUAGES:
            assert {f"preset.{preset.name}", f"preset.{preset.name}_help"} <= set(catalogue(language))
    assert combine(Presets(path).get("deterministic").values).temperature == 0


def test_every_setting_and_mode_is_explained_in_both_languages() -> None:
    for language in LANGUAGES:
        texts = catalogue(language)
        assert all(f"sampling.{name}" in texts and f"sampling.{name}_help" in texts for name in Sampling.names())
        assert all(f"mode.{mode}" in texts and f"mode.{mode}_help" in texts for mode in MODES)


def test_an_own_preset_is_there_after_a_restart(path: Path) -> None:
    Presets(path).save(" 我的 ", {"temperature": 0.4, "stop": ("\n###",), "seed": None})
    (own,) = Presets(path).own()
    assert (own.name, own.is_own, own.values) == ("我的", True, {"temperature": 0.4, "stop": ["\n###"], "seed": None})
    Presets(path).save("我的", {"top_k": 5})
    assert Presets(path).get("我的").values == {"top_k": 5}
    deleted = Presets(path).delete("我的")
    assert Presets(path).own() == []
    Presets(path).save(deleted.name, deleted.values)
    assert Presets(path).own() == [deleted]


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "x" * 61, "\x00", "bell\x07", "\ud800", None, 5])
def test_a_name_that_cannot_be_is_refused(path: Path, name: Any) -> None:
    with pytest.raises(InputError) as caught:
        Presets(path).save(name, {})
    assert caught.value.key == "preset_name" and not path.exists()


def test_names_are_taken_once(path: Path) -> None:
    presets = Presets(path)
    with pytest.raises(InputError) as caught:
        presets.save("Precise", {})
    assert caught.value.key == "preset_name_taken"
    for operation in (presets.get, presets.delete):
        with pytest.raises(InputError) as caught:
            operation("nothing")
        assert caught.value.key == "preset_unknown" and "nothing" in str(caught.value)


@pytest.mark.parametrize("name", SAMPLING_RANGES)
def test_an_impossible_value_is_refused_with_its_range(path: Path, name: str) -> None:
    low, high = SAMPLING_RANGES[name]
    for value in (high + 1, low - 1, "0.5", None, True, [], float("nan")):
        with pytest.raises(InputError) as caught:
            Presets(path).save("mine", {name: value})
        assert caught.value.params["name"] == name and str(high) in str(caught.value)
    assert not path.exists()


@pytest.mark.parametrize(
    "values", [{"temperatur": 1}, {"stop": "END"}, {"stop": [""]}, {"stop": ["x"] * 257}, {"seed": -1}]
)
def test_other_nonsense_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        check_values(values)


@pytest.mark.parametrize(
    "content",
    ["[]", "text", "5", "!!python/object/apply:os.system ['true']", "{", "\t", "[" * 1000, "x" * 100_001,
     "mine: {top_k: 1}\nmine: {top_k: 2}"],
    ids=lambda content: content[:30],
)  # fmt: skip
def test_a_file_that_is_no_list_of_presets_is_left_alone(path: Path, content: str) -> None:
    path.parent.mkdir()
    path.write_text(content)
    presets = Presets(path)
    operations: list[Callable[[], object]] = [
        presets.own,
        lambda: presets.save("mine", {"top_k": 1}),
        lambda: presets.delete("mine"),
    ]
    for operation in operations:
        with pytest.raises(FileError) as caught:
            operation()
        assert caught.value.key == "presets_damaged" and str(path) in str(caught.value)
    assert path.read_text() == content and len(presets.shipped()) >= 5


@pytest.mark.parametrize(
    ("bad", "name", "key"),
    [
        ("bad: 5", "bad", "preset_values"),
        ("bad: [a]", "bad", "preset_values"),
        ("bad:", "bad", "preset_values"),
        ("bad: {temperature: 99}", "bad", "setting_range"),
        ("bad: {top_n_sigma: 0.9}", "bad", "setting_unknown"),
        ("bad: {1: 2}", "bad", "setting_unknown"),
        ("bad: {stop: &a [*a]}", "bad", "stop_strings"),
        ("bad: &a [*a]", "bad", "preset_values"),
        ("5: {top_k: 1}", "5", "preset_name"),
        ("2025-01-01: {top_k: 1}", "2025-01-01", "preset_values"),
        ('"a\\nb": {top_k: 1}', "a\nb", "preset_name"),
    ],
)
def test_a_bad_entry_is_left_out_and_named_and_stays_in_the_file(path: Path, bad: str, name: str, key: str) -> None:
    """One key of another program took all presets away, those that ship too."""
    path.parent.mkdir()
    path.write_text(f"mine: {{temperature: 0.5}}\n{bad}\n")
    presets = Presets(path)
    assert [preset.name for preset in presets.own()] == ["mine"] and presets.get("balanced") and presets.get("mine")
    ((found, error),) = presets.left_out()
    assert found == name and error.key == key and error.sentence("zh")
    presets.save("other", {"top_k": 3})
    presets.delete("mine")
    assert [preset.name for preset in presets.own()] == ["other"] and presets.left_out()[0][0] == name


def test_a_bad_entrys_name_is_not_written_over(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("bad: {top_n_sigma: 0.9}\n")
    with pytest.raises(InputError) as caught:
        Presets(path).save("bad", {"top_k": 3})
    assert caught.value.key == "preset_name_damaged" and "top_n_sigma" in path.read_text()


def test_files_that_cannot_be_read_or_written_are_told_of(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(FileError) as caught:
        Presets(path).own()
    assert caught.value.key == "presets_unreadable"
    path.rmdir()
    path.parent.rmdir()
    path.parent.write_text("a file in the folder's place")
    with pytest.raises(FileError):
        Presets(path).save("mine", {})
    with pytest.raises(FileError) as caught:
        Presets(Path(os.devnull) / "presets.yaml").save("mine", {})
    assert caught.value.key in ("presets_unwritable", "presets_unreadable")


def test_an_empty_file_holds_none(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("# nothing yet\n")
    assert Presets(path).own() == []


def test_the_chats_own_goes_before_the_preset_and_that_before_the_model() -> None:
    sampling = combine({"temperature": 0.1, "top_k": 7}, {"temperature": 0.2, "stop": ["a"]}, {"stop": ["b"]})
    assert sampling == Sampling(temperature=0.2, top_k=7, stop=("b",))
    assert combine() == Sampling()
    with pytest.raises(InputError):
        combine({"temperature": 9})


@given(st.dictionaries(st.sampled_from(Sampling.names()), st.one_of(st.floats(), st.integers(), st.text(), st.none())))
def test_whatever_is_checked_is_a_sampling_or_a_sentence(values: dict[str, Any]) -> None:
    try:
        checked = check_values(values)
    except InputError as error:
        assert error.sentence("zh")
    else:
        assert combine(checked) == combine(values) and checked.keys() == values.keys()


def test_a_models_default_is_remembered(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    set_model_preset(Preferences(path), "llama", "precise")
    assert model_preset(Preferences(path), "llama") == "precise" and model_preset(Preferences(path), "other") is None
    set_model_preset(Preferences(path), "llama", None)
    assert model_preset(Preferences(path), "llama") is None
