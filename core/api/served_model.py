"""What the API serves: the loaded model, and the characters by their names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.api.errors import ApiError
from core.api.model_tag import without_tag
from core.chat.model_prompt import ModelPrompt, read_model_prompt
from core.chat.presets import read_recommended
from core.checkpoint.adapter_folders import list_adapters
from core.checkpoint.checkpoint import read_checkpoint
from core.common.errors import DeckError, EngineError
from core.common.paths import model_name
from core.common.values import printable
from core.engine.interface import Engine
from core.engine.protocol import Load, ModelFacts
from core.engine.request_options import AdapterUse
from core.library.adapters import answering_adapters, fitting_adapters, read_fitting, room_for_adapter
from core.library.scan import LibraryEntry, find
from core.personas.listing import Entry, Listing
from core.standby.settings import other_names

OWNER = "llamadeck"
# No file has a longer name.
MAX_NAME_CHARS, MAX_SHOWN_CHARS = 255, 100


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The model that answers. `recommended` are its own generation settings, `made_s` when its folder was changed.
    `pool_tokens`: how many tokens all chats have together; None where each can have a whole context."""

    model: ModelPrompt
    context_tokens: int
    num_slots: int
    recommended: dict[str, Any]
    made_s: int
    facts: ModelFacts | None = None
    adapter: AdapterUse | None = None
    pool_tokens: int | None = None

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def adapters(self) -> list[Path]:
        """The LoRA adapters that answer when a request names them: those that the model was loaded with room for."""
        if self.facts is None or self.model.folder is None:
            return []
        return answering_adapters(self.model.folder, self.facts.adapters)

    @property
    def has_room(self) -> bool:
        return self.facts is not None and self.facts.adapters.count > 0

    def named(self, name: str | None) -> tuple[ServedModel, str | None]:
        """With the adapter of a name like "MODEL:ADAPTER", and the model's name without it. Raises ApiError."""
        name = without_tag(name, (self.name,))
        wanted = adapter_in(name, self.name)
        if wanted is None:
            return self, name
        folder = _adapter_folder(wanted, self.model.folder)
        if (folder is None or not self.has_room) and other_names() == "any":
            return self, name
        if folder is None:
            raise _no_adapter(wanted, self.name, self.adapters if self.has_room else _fitting(self.model.folder))
        if not self.has_room:
            # Whoever makes room must not be told then that the adapter cannot be used at all.
            _require_fitting(folder, self.model.folder)
            raise ApiError("adapters_no_room", adapter=printable(wanted[:MAX_SHOWN_CHARS]))
        return replace(self, adapter=AdapterUse(wanted, folder)), self.name


def adapter_in(name: str | None, model: str) -> str | None:
    """The adapter in a name like "MODEL:ADAPTER"; None where that is not of `model`."""
    return name[len(model) + 1 :] if name is not None and name.startswith(f"{model}:") else None


def require_adapter(wanted: str, model: str) -> None:
    """Read whether the model of the library can have the adapter called `wanted`, before it takes another one's place.

    Raises ApiError where there is none of that name, CheckpointError for one that it cannot have, EngineError for one
    that the load would have no room for.
    """
    checkpoint = find(model)
    folder = _adapter_folder(wanted, checkpoint.path)
    if folder is None:
        raise _no_adapter(wanted, model, _fitting(checkpoint.path))
    adapter, room = read_fitting(folder, checkpoint), room_for_adapter(checkpoint)
    if adapter.rank > room.rank:
        raise EngineError("adapter_room_rank", adapter=adapter.name, base=model, rank=adapter.rank, limit=room.rank)
    if not room.holds(adapter.rank, adapter.changes_experts):
        raise EngineError("adapter_room_experts", adapter=adapter.name, base=model)


def _adapter_folder(name: str, model: Path | None) -> Path | None:
    """Also of one that `model` cannot have: the engine says why."""
    return next((one for one in list_adapters(model) if one.name == name), None)


def _require_fitting(adapter: Path, model: Path | None) -> None:
    """Raise CheckpointError where the model in `model` cannot have the adapter in `adapter`, with whatever room."""
    if model is not None and adapter not in _fitting(model):
        read_fitting(adapter, read_checkpoint(model))


def _fitting(model: Path | None) -> list[Path]:
    return [] if model is None else fitting_adapters(model)


def _no_adapter(name: str, model: str, known: list[Path]) -> ApiError:
    names = ", ".join(one.name for one in known) or "-"
    if not name.strip():
        return ApiError("api_adapter_unnamed", loaded=model, known=names)
    return ApiError("api_adapter", name=printable(name[:MAX_SHOWN_CHARS]), loaded=model, known=names)


def no_such_model(name: str, answering: str) -> ApiError:
    """For a name that means nothing, where the model `answering` does the others."""
    # Of an empty one the sentence would have a gap.
    name = name if name.strip() else f'"{name}"'
    shown = printable(name if len(name) <= MAX_NAME_CHARS else f"{name[:MAX_SHOWN_CHARS]}…")
    key = "api_model_library" if other_names() == "load" else "api_model"
    return ApiError(key, name=shown, loaded=answering)


def read_served_model(engine: Engine) -> ServedModel:
    """Reads files: not for the event loop. Raises DeckError; ApiError or EngineError where no model can answer."""
    state = engine.state
    if state.phase == "loading":
        raise ApiError("api_loading", name=state.model or "", percent=int(state.fraction * 100))
    model, facts = read_model_prompt(state, engine.server_counter), state.facts
    if model is None or facts is None:
        lost = state.error if state.server is not None else None
        raise EngineError(lost.key, **lost.params) if lost else EngineError("nothing_loaded")
    changed_ns, recommended = 0, {}
    if model.folder is not None:
        with suppress(OSError):  # The folder was taken away under a loaded model, which goes on answering.
            changed_ns = model.folder.stat().st_mtime_ns
            recommended = _read_recommended(model.folder, changed_ns)
    return ServedModel(
        model,
        facts.context_tokens,
        facts.num_slots,
        recommended,
        changed_ns // 10**9,
        facts,
        pool_tokens=facts.pool_tokens,
    )


@lru_cache(4)
def _read_recommended(folder: Path, changed_ns: int) -> dict[str, Any]:
    return read_recommended(folder)


def find_character(name: str | None, served: ServedModel, characters: Listing) -> Entry | None:
    """The character that a request's `model` means; None for the loaded model. Raises ApiError for any other name,
    unless every name is to be the loaded model's."""
    if name is None or name == served.name:
        return None
    is_any = other_names() == "any"
    if len(name) > MAX_NAME_CHARS:
        if is_any:
            return None
        raise no_such_model(name, served.name)
    try:
        entry = characters.find(name)
    except DeckError:
        entry = None
    if entry is None or entry.character is None:
        if is_any:
            return None
        raise no_such_model(name, served.name)
    return entry


def list_loadable(entries: Iterable[LibraryEntry]) -> list[dict[str, Any]]:
    """The models that a request loads by naming them. How long their contexts are is known once they are loaded."""
    return [_described(entry.name, _made_s(entry.folder), None) for entry in entries]


def list_models(served: ServedModel, characters: Listing) -> list[dict[str, Any]]:
    """The loaded model, then every character that can answer, as OpenAI lists models."""
    return _listed(_described(served.name, served.made_s, served), served.adapters, characters, served)


def list_asleep(load: Load, characters: Listing) -> list[dict[str, Any]]:
    """The same of a model that comes back with a request."""
    adapters = answering_adapters(load.folder, load.adapters)
    return _listed(_described(model_name(load.folder), _made_s(load.folder), None), adapters, characters, None)


def _listed(
    model: dict[str, Any], adapters: Iterable[Path], characters: Listing, served: ServedModel | None
) -> list[dict[str, Any]]:
    found, name_of_model = [model], model["id"]
    for folder in adapters:
        found.append(_described(f"{name_of_model}:{folder.name}", _made_s(folder), served) | {"parent": name_of_model})
    try:
        entries = characters.entries()
    except DeckError:
        # The page of characters says what is wrong with the folder; the model answers without it.
        entries = ()
    counts = Counter(entry.name for entry in entries)
    for entry in entries:
        if entry.character is not None and entry.name != name_of_model:
            # Its key where another one has the same name.
            name = entry.name if counts[entry.name] == 1 else entry.key
            found.append(_described(name, _changed_s(entry), served) | {"parent": name_of_model})
    return found


def _described(name: str, created_s: int, served: ServedModel | None) -> dict[str, Any]:
    about = {"id": name, "object": "model", "created": created_s, "owned_by": OWNER}
    if served is None:
        return about
    shared = {} if served.pool_tokens is None else {"pool_tokens": served.pool_tokens}
    return about | {"max_model_len": served.context_tokens} | shared


def _changed_s(entry: Entry) -> int:
    return _made_s(entry.text_path)


def _made_s(path: Path) -> int:
    try:
        return int(path.stat().st_mtime)
    except OSError:
        return 0
