"""Named generation settings: those that ship and a person's own, in data/presets.yaml."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from core.checkpoint.headers import read_json
from core.common.codec import Codec
from core.common.errors import DeckError, InputError
from core.common.json_file import JsonFile
from core.common.paths import data_dir
from core.common.plain_json import InvalidContent
from core.common.preferences import Preferences
from core.common.values import printable, quoted_json, quoted_text
from core.engine.sampling_params import MAX_BREAKERS, MAX_STOP_STRINGS, Sampling

SHIPPED = Path(__file__).with_name("presets.yaml")
MAX_FILE_CHARS = 100_000
MAX_NAME_CHARS = 60
PREFERENCE_GROUP = "preset"
# The settings that are lists of texts, each with the error of a wrong one.
LISTS = {"stop": "stop_strings", "dry_sequence_breakers": "dry_breakers"}
OwnValues = Mapping[str, dict[str, Any]]
# What presets.yaml holds. An entry that is no preset stays there as it is, for whoever can mend it.
Entries = Mapping[Any, Any]
# What a checkpoint may recommend in its generation_config.json.
RECOMMENDED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True, slots=True)
class Preset:
    """Some of Sampling's settings under a name; what it leaves out is left to the model's recommendation."""

    name: str
    values: dict[str, Any]
    is_own: bool = False


class Presets:
    """All presets, by name: those that ship, and one person's own in presets.yaml in their folder."""

    def __init__(self, path: Path | None = None) -> None:
        self.file = _file(path or data_dir() / "presets.yaml")

    def shipped(self) -> list[Preset]:
        return _read(_shipped.read(), is_own=False)[0]

    def own(self) -> list[Preset]:
        """A person's own. Raises FileError for a file that cannot be used."""
        return _read(self.file.read(), is_own=True)[0]

    def left_out(self) -> list[tuple[str, DeckError]]:
        """The entries of a person's file that are no presets, each with what is wrong. Raises FileError as own()."""
        return _read(self.file.read(), is_own=True)[1]

    def get(self, name: str) -> Preset:
        """Raises InputError where there is none of that name."""
        for preset in [*self.shipped(), *self.own()]:
            if preset.name == name:
                return preset
        raise InputError("preset_unknown", name=quoted_json(name))

    def save(self, name: str, values: Mapping[str, Any], seen: OwnValues | None = None) -> None:
        """Keep `values` as a person's own preset, in place of an own one of that name.

        `seen` are the own presets that the person was shown: one that is another by now is not written over.
        Raises InputError for a name or a value that cannot be, FileError where the file cannot be used or written.
        """
        name = _checked_name(name)
        if any(preset.name.casefold() == name.casefold() for preset in self.shipped()):
            raise InputError("preset_name_taken", name=quoted_json(name))
        checked = check_values(values)
        with self.file.change() as change:
            own = {preset.name: preset.values for preset in _read(change.value, is_own=True)[0]}
            if name in change.value and name not in own:
                raise InputError("preset_name_damaged", name=quoted_json(name))
            if own.get(name) != checked:
                _require_seen(name, own, seen)
            change.value = {**change.value, name: checked}

    def add(self, name: str, values: Mapping[str, Any]) -> str:
        """Keep `values` under `name`, or under the next free one like it, which is returned. Raises as save()."""
        taken = {preset.name.casefold() for preset in [*self.shipped(), *self.own()]}
        free = name
        for number in itertools.count(2):
            if free.casefold() not in taken:
                break
            free = f"{name[: MAX_NAME_CHARS - len(str(number)) - 3]} ({number})"
        self.save(free, values, {})
        return free

    def delete(self, name: str, seen: OwnValues | None = None) -> Preset:
        """Remove a person's own preset; what is returned can be saved again. `seen` as for save()."""
        with self.file.change() as change:
            own = {preset.name: preset.values for preset in _read(change.value, is_own=True)[0]}
            if name not in own:
                raise InputError("preset_unknown", name=quoted_json(name))
            _require_seen(name, own, seen)
            values = own[name]
            change.value = {one: kept for one, kept in change.value.items() if one != name}
        return Preset(name, values, is_own=True)


def _require_seen(name: str, kept: OwnValues, seen: OwnValues | None) -> None:
    """Raise where somebody else saved or changed the preset since it was `seen`."""
    if seen is not None and kept.get(name) != seen.get(name):
        raise InputError("preset_changed", name=quoted_json(name))


def check_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Some of Sampling's settings, each in its range, as YAML and JSON can hold them. Raises InputError."""
    for name in values:
        if name not in Sampling.names():
            raise InputError("setting_unknown", name=quoted_json(name), known=", ".join(Sampling.names()))
    lists = {name: _words(name, values[name]) for name in LISTS if name in values}
    checked = asdict(Sampling(**{**values, **lists}))
    return {name: list(checked[name]) if name in LISTS else checked[name] for name in values}


def _words(name: str, value: object) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise InputError(LISTS[name], count=1, limit=MAX_STOP_STRINGS if name == "stop" else MAX_BREAKERS)
    # YAML may hold half characters, which no tokenizer takes.
    return tuple(printable(word) if isinstance(word, str) else word for word in value)


def combine(*layers: Mapping[str, Any]) -> Sampling:
    """What holds when later layers go before earlier ones: the model's recommendation, a preset, the chat's own.

    Raises InputError for a value out of its range.
    """
    values: dict[str, Any] = {}
    for layer in layers:
        values |= check_values(layer)
    return Sampling(**values | {name: tuple(values[name]) for name in LISTS if name in values})


def read_recommended(folder: Path) -> dict[str, Any]:
    """What the checkpoint in `folder` recommends for itself, as far as it makes sense."""
    try:
        found = read_json(folder / "generation_config.json") or {}
        values = {name: found[name] for name in RECOMMENDED if found.get(name) is not None}
        if "top_k" in values:
            values["top_k"] = int(values["top_k"])
        return check_values(values)
    except (DeckError, TypeError, ValueError, OverflowError):
        return {}


def model_preset(preferences: Preferences, model: str) -> str | None:
    """The name of the preset that a person chose for a model."""
    return preferences.get(PREFERENCE_GROUP, model) or None


def set_model_preset(preferences: Preferences, model: str, name: str | None) -> None:
    preferences.set(PREFERENCE_GROUP, model, name or "")


def _checked_name(name: str) -> str:
    """A preset's name on one line. Raises InputError."""
    if not isinstance(name, str) or not name.strip() or len(name) > MAX_NAME_CHARS or not name.isprintable():
        raise InputError("preset_name", name=quoted_json(name), limit=MAX_NAME_CHARS)
    return name.strip()


class _Loader(yaml.SafeLoader):
    """Takes no name twice: one of the two presets would be lost by the next change."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(names)) != len(names):
            raise InvalidContent("a name stands there twice")
        return super().construct_mapping(node, deep)


def _load_yaml(text: str) -> Any:
    if len(text) > MAX_FILE_CHARS:
        raise InvalidContent(f"more than {MAX_FILE_CHARS} characters")
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError from error


def _parse(value: Any) -> Entries:
    if value is not None and not isinstance(value, dict):
        raise InvalidContent("no list of presets by name")
    return value or {}


def _read(entries: Entries, is_own: bool) -> tuple[list[Preset], list[tuple[str, DeckError]]]:
    """The presets among the entries of a file, and what is wrong with the others."""
    presets: list[Preset] = []
    left_out: list[tuple[str, DeckError]] = []
    for name, values in entries.items():
        try:
            if not isinstance(values, dict):
                raise InputError("preset_values")
            presets.append(Preset(_checked_name(name), check_values(values), is_own))
        except (TypeError, ValueError, OverflowError):
            left_out.append((_shown_name(name), InputError("preset_values")))
        except DeckError as error:
            left_out.append((_shown_name(name), error))
    return presets, left_out


def _shown_name(name: object) -> str:
    return quoted_text(name if isinstance(name, str) else str(name)) or "?"


def _file(path: Path) -> JsonFile[Entries]:
    sentences = {kind: f"presets_{kind}" for kind in ("damaged", "unreadable", "unwritable")}
    return JsonFile(path, _parse, dict, {}, codec=YAML, sentences=sentences)


YAML = Codec(_load_yaml, lambda values: yaml.safe_dump(values, allow_unicode=True, sort_keys=False))
_shipped = _file(SHIPPED)
