"""What the API serves: the loaded model, and the characters by their names; knows no request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.api.errors import ApiError
from core.chat.model_prompt import Counter, read_reader
from core.chat.presets import read_recommended
from core.chat.template import ChatTemplate, read_template
from core.chat.tokens import read_counter
from core.common.errors import DeckError, EngineError
from core.common.values import printable
from core.engine.interface import Engine
from core.personas.character import Character
from core.personas.listing import Entry, Listing

OWNER = "llamadeck"
# No file has a longer name.
MAX_NAME_CHARS, MAX_SHOWN_CHARS = 255, 100


@dataclass(frozen=True, slots=True)
class Loaded:
    """The model that answers. `recommended` are its own generation settings, `made_s` when its folder was changed.

    `count_prompt` counts whole prompts where `counter` only estimates pieces.
    """

    name: str
    context_tokens: int
    num_slots: int
    template: ChatTemplate
    counter: Counter
    recommended: dict[str, Any]
    made_s: int
    count_prompt: Callable[[str], int] | None = None


def read_loaded(engine: Engine) -> Loaded:
    """Reads files: not for the event loop. Raises DeckError; ApiError or EngineError where no model can answer."""
    state = engine.state
    if state.phase == "loading":
        raise ApiError("api_loading", name=state.model or "", percent=int(state.fraction * 100))
    if state.phase != "ready" or state.model is None or state.facts is None:
        lost = state.error if state.server is not None else None
        raise EngineError(lost.key, **lost.params) if lost else EngineError("nothing_loaded")
    facts = state.facts
    if facts.remote is not None and (reader := read_reader(engine)) is not None:
        context, slots, count = facts.context_tokens, facts.num_slots, reader.count_prompt
        return Loaded(reader.model, context, slots, reader.template, reader.counter, {}, 0, count)
    if (folder := state.folder) is None:
        raise EngineError("nothing_loaded")
    counter = read_counter(folder)
    try:
        changed_ns = folder.stat().st_mtime_ns
        template, values = _read_files(folder, changed_ns)
    except OSError:
        # The folder was taken away under a loaded model, which goes on answering.
        changed_ns, template, values = 0, ChatTemplate(None, "", ""), {}
    return Loaded(state.model, facts.context_tokens, facts.num_slots, template, counter, values, changed_ns // 10**9)


@lru_cache(4)
def _read_files(folder: Path, changed_ns: int) -> tuple[ChatTemplate, dict[str, Any]]:
    return read_template(folder), read_recommended(folder)


def find_character(name: str | None, loaded: Loaded, characters: Listing) -> Character | None:
    """The character that a request's `model` means; None for the loaded model. Raises ApiError for any other name."""
    if name is None or name == loaded.name:
        return None
    if len(name) > MAX_NAME_CHARS:
        raise ApiError("api_model", name=f"{printable(name[:MAX_SHOWN_CHARS])}…", loaded=loaded.name)
    try:
        character = characters.find(name).character
    except DeckError:
        character = None
    if character is None:
        raise ApiError("api_model", name=printable(name), loaded=loaded.name)
    return character


def list_models(loaded: Loaded, characters: Listing) -> list[dict[str, Any]]:
    """The loaded model, then every character that can answer, as OpenAI lists models."""
    found = [_described(loaded.name, loaded.made_s, loaded)]
    try:
        entries = characters.entries()
    except DeckError:
        # The page of characters says what is wrong with the folder; the model answers without it.
        entries = ()
    for entry in entries:
        if entry.character is not None and entry.name != loaded.name:
            found.append(_described(_id(entry, entries), _changed_s(entry), loaded) | {"parent": loaded.name})
    return found


def _described(name: str, created_s: int, loaded: Loaded) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": created_s,
        "owned_by": OWNER,
        "max_model_len": loaded.context_tokens,
    }


def _id(entry: Entry, entries: Sequence[Entry]) -> str:
    """The character's name, or its key where another one has the same name."""
    return entry.name if [one.name for one in entries].count(entry.name) == 1 else entry.key


def _changed_s(entry: Entry) -> int:
    try:
        return int(entry.text_path.stat().st_mtime)
    except OSError:
        return 0
