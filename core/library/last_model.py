"""The model that was used last on this machine, whether a start loads it again, and what each was loaded for.

Kept for the whole installation: all who use it share its engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from core.common.errors import InputError
from core.common.paths import data_dir
from core.common.preferences import Preferences
from core.memory.adapter_room import NO_ROOM, AdapterRoom
from core.memory.cache_choice import EVERY_CHAT_FULL, CacheChoice

GROUP, LOADS = "last_model", "loads"
# Before the tokens in all of a load.
POOL = "pool="
EIGHT_BIT, EXPERTS = "bits=8", "experts"


@dataclass(frozen=True, slots=True)
class LastModel:
    """What it is called, and what it was loaded for."""

    name: str
    context_tokens: int
    num_chats: int
    adapters: AdapterRoom = NO_ROOM
    cache: CacheChoice = EVERY_CHAT_FULL


def last_model() -> LastModel | None:
    """It may no longer be on disk."""
    kept = _preferences(data_dir())
    name, context, chats = (kept.get(GROUP, value) or "" for value in ("name", "context_tokens", "num_chats"))
    if not name:
        return None
    load = _preferences(data_dir()).get(LOADS, name) or ""
    *_, pool = _words(load)
    return LastModel(name, _number(context, 0), _number(chats, 1), cache=_cache(load, pool))


def last_load(name: str) -> LastModel | None:
    """What the model called `name` was loaded for the last time; None where it never was."""
    load = _preferences(data_dir()).get(LOADS, name) or ""
    context, chats, count, rank, pool = _words(load)
    if context:
        room = _room(count, rank, EXPERTS in load.split(" "))
        return LastModel(name, _number(context, 0), _number(chats, 1), room, _cache(load, pool))
    # As an older version kept it, of the last one alone.
    last = last_model()
    return last if last is not None and last.name == name else None


def note_last_model(model: LastModel) -> None:
    kept = _preferences(data_dir())
    if model != last_load(model.name):
        room = f" {model.adapters.count} {model.adapters.rank}" if model.adapters.is_chosen else ""
        pool = f" {POOL}{model.cache.pool_tokens}" if model.cache.pool_tokens is not None else ""
        bits = f" {EIGHT_BIT}" if model.cache.bits == 8 else ""
        experts = f" {EXPERTS}" if model.adapters.has_experts else ""
        kept.set(LOADS, model.name, f"{model.context_tokens} {model.num_chats}{room}{pool}{bits}{experts}")
    last = last_model()
    if last is None or (last.name, last.context_tokens, last.num_chats) != (
        model.name, model.context_tokens, model.num_chats
    ):  # fmt: skip
        kept.set(GROUP, "context_tokens", str(model.context_tokens))
        kept.set(GROUP, "num_chats", str(model.num_chats))
        kept.set(GROUP, "name", model.name)


def is_loaded_at_start() -> bool:
    return _preferences(data_dir()).get(GROUP, "at_start") == "yes"


def set_loaded_at_start(is_wanted: bool) -> None:
    _preferences(data_dir()).set(GROUP, "at_start", "yes" if is_wanted else "no")


def _words(kept: str) -> tuple[str, str, str, str, str]:
    """Context, chats, the adapters' number and rank, tokens in all; "" for what is not said."""
    words = [word for word in kept.split(" ") if word not in (EIGHT_BIT, EXPERTS)]
    context, chats, count, rank, *_ = (*(word for word in words if not word.startswith(POOL)), "", "", "", "")
    return context, chats, count, rank, "".join(word.removeprefix(POOL) for word in words if word.startswith(POOL))


def _cache(kept: str, pool: str) -> CacheChoice:
    return CacheChoice(_number(pool, 0) or None, 8 if EIGHT_BIT in kept.split(" ") else 16)


def _room(count: str, rank: str, has_experts: bool) -> AdapterRoom:
    try:
        return AdapterRoom(_number(count, 0), _number(rank, 0), has_experts)
    except InputError:
        return NO_ROOM


def _number(text: str, default: int) -> int:
    """A person may have written anything into the file; what is out of range is refused by the load."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else default


@lru_cache(4)
def _preferences(folder: Path) -> Preferences:
    return Preferences(folder / "settings.json")
