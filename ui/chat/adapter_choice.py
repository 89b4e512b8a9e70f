"""The LoRA adapter that answers in a chat."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from core.chat.records import ChatInfo
from core.checkpoint.adapter_folders import list_adapters
from core.checkpoint.adapters import read_adapter
from core.common.errors import DeckError
from core.engine.protocol import EngineState
from core.engine.request_options import AdapterUse
from core.memory.adapter_room import match_adapter
from ui.load.entries_cache import Fingerprint, fingerprint
from ui.shared.resources import library_entry


def adapters_here(state: EngineState) -> list[Path]:
    """The adapters that can be chosen now; none where the model was loaded without room for any."""
    if state.facts is None or not state.facts.adapters.count:
        return []
    return fitting_adapters(state)


def fitting_adapters(state: EngineState) -> list[Path]:
    """The adapters on disk that are sound and made for the loaded model's shapes, with room for them or not."""
    model = state.folder
    if state.facts is None or model is None:
        return []
    mark = fingerprint(model)
    return [one for one in list_adapters(model) if _fits(one, fingerprint(one), model, mark)]


def adapter_of(info: ChatInfo, state: EngineState) -> AdapterUse | None:
    """The chat's adapter, where it is there. A chat keeps its choice while a model without room is loaded."""
    wanted = info.settings.get("adapter")
    folder = next((one for one in adapters_here(state) if one.name == wanted), None)
    return AdapterUse(folder.name, folder) if folder is not None else None


@lru_cache(1024)
def _fits(adapter: Path, mark: Fingerprint, model: Path, model_mark: Fingerprint) -> bool:
    """The marks only say that nothing has changed since: a page asks with every run, and files are read once."""
    checkpoint = library_entry(os.fsencode(model), model_mark).checkpoint
    try:
        shape = read_adapter(adapter)
        if checkpoint is not None:
            match_adapter(shape, checkpoint)
    except DeckError:
        return False
    return True
