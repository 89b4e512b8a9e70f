"""Named generation settings: those that ship and a person's own, in data/presets.yaml; knows no chat and no page."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from core.atomic import write_atomically
from core.engine.messages import MAX_STOP_STRINGS, Sampling
from core.errors import DeckError, InputError
from core.model_files import printable, quoted, read_json, regular_size
from core.preferences import Preferences
from core.settings import data_dir

SHIPPED = Path(__file__).with_name("presets.yaml")
MAX_FILE_BYTES = 100_000
MAX_NAME_CHARS = 60
PREFERENCE_GROUP = "preset"
# What a checkpoint may recommend in its generation_config.json.
RECOMMENDED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True, slots=True)
class Preset:
    """Some of Sampling's settings under a name; what it leaves out is left to the model's recommendation."""

    name: str
    values: dict[str, Any]
    is_own: bool = False


class PresetError(DeckError):
    """A person's presets cannot be read or written."""


class Presets:
    """All presets, by name. The file is read anew each time: it is small, and people edit it."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or data_dir() / "presets.yaml"
        self._lock = threading.Lock()

    def shipped(self) -> list[Preset]:
        return [Preset(name, values) for name, values in _read(SHIPPED).items()]

    def own(self) -> list[Preset]:
        """A person's own. Raises PresetError for a file that cannot be used."""
        return [Preset(name, values, is_own=True) for name, values in _read(self._path).items()]

    def get(self, name: str) -> Preset:
        """Raises InputError where there is none of that name."""
        for preset in [*self.shipped(), *self.own()]:
            if preset.name == name:
                return preset
        raise InputError("preset_unknown", name=quoted(name))

    def save(self, name: str, values: Mapping[str, Any]) -> None:
        """Keep `values` as a person's own preset, in place of an own one of that name.

        Raises InputError for a name or a value that cannot be, PresetError where the file cannot be used or written.
        """
        name = _checked_name(name)
        if any(preset.name.casefold() == name.casefold() for preset in self.shipped()):
            raise InputError("preset_name_taken", name=quoted(name))
        checked = check_values(values)
        with self._lock:
            self._write(_read(self._path) | {name: checked})

    def delete(self, name: str) -> Preset:
        """Remove a person's own preset; what is returned can be saved again."""
        with self._lock:
            kept = _read(self._path)
            if name not in kept:
                raise InputError("preset_unknown", name=quoted(name))
            values = kept.pop(name)
            self._write(kept)
        return Preset(name, values, is_own=True)

    def _write(self, presets: dict[str, dict[str, Any]]) -> None:
        try:
            write_atomically(self._path, yaml.safe_dump(presets, allow_unicode=True, sort_keys=False))
        except OSError as error:
            why = error.strerror or str(error)
            raise PresetError("presets_unwritable", path=printable(str(self._path)), why=why) from error


def check_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Some of Sampling's settings, each in its range, as YAML and JSON can hold them. Raises InputError."""
    for name in values:
        if name not in Sampling.names():
            raise InputError("setting_unknown", name=quoted(name), known=", ".join(Sampling.names()))
    stop = values.get("stop", ())
    if not isinstance(stop, (list, tuple)):
        raise InputError("stop_strings", count=1, limit=MAX_STOP_STRINGS)
    checked = asdict(Sampling(**{**values, "stop": tuple(stop)}))
    return {name: list(checked[name]) if name == "stop" else checked[name] for name in values}


def combine(*layers: Mapping[str, Any]) -> Sampling:
    """What holds when later layers go before earlier ones: the model's recommendation, a preset, the chat's own.

    Raises InputError for a value out of its range.
    """
    values: dict[str, Any] = {}
    for layer in layers:
        values |= check_values(layer)
    return Sampling(**{**values, "stop": tuple(values.get("stop", ()))})


def read_recommended(folder: Path) -> dict[str, Any]:
    """What the checkpoint in `folder` recommends for itself, as far as it makes sense."""
    try:
        found = read_json(folder / "generation_config.json") or {}
        values = {name: found[name] for name in RECOMMENDED if found.get(name) is not None}
        if "top_k" in values:
            values["top_k"] = int(values["top_k"])
        return check_values(values)
    except (DeckError, TypeError, ValueError):
        return {}


def model_preset(preferences: Preferences, model: str) -> str | None:
    """The name of the preset that a person chose for a model."""
    return preferences.get(PREFERENCE_GROUP, model) or None


def set_model_preset(preferences: Preferences, model: str, name: str | None) -> None:
    preferences.set(PREFERENCE_GROUP, model, name or "")


def _read(path: Path) -> dict[str, dict[str, Any]]:
    shown = printable(str(path))
    try:
        if regular_size(path) > MAX_FILE_BYTES:
            raise PresetError("presets_damaged", path=shown)
        found = yaml.safe_load(path.read_text("utf-8"))
        presets = {} if found is None else found
        return {_checked_name(name): check_values(values) for name, values in presets.items()}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise PresetError("presets_unreadable", path=shown, why=error.strerror or str(error)) from error
    except (InputError, yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise PresetError("presets_damaged", path=shown) from error


def _checked_name(name: str) -> str:
    """A preset's name on one line. Raises InputError."""
    if not isinstance(name, str) or not name.strip() or len(name) > MAX_NAME_CHARS or not name.isprintable():
        raise InputError("preset_name", name=quoted(name), limit=MAX_NAME_CHARS)
    return name.strip()
