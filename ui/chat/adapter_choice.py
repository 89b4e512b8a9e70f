"""The LoRA adapter that answers in a chat."""

from __future__ import annotations

from pathlib import Path

from core.chat.records import ChatInfo
from core.checkpoint.adapters import AdapterShape
from core.engine.protocol import EngineState
from core.engine.request_options import AdapterUse
from core.library.adapters import answering_adapters, lacking_room


def adapters_here(state: EngineState) -> list[Path]:
    """The adapters that can be chosen now: those that the loaded model has room for."""
    if state.facts is None or state.folder is None:
        return []
    return answering_adapters(state.folder, state.facts.adapters)


def adapters_without_room(state: EngineState) -> list[AdapterShape]:
    """Those on disk that the loaded model could have, had it been loaded with room for them."""
    if state.facts is None or state.folder is None:
        return []
    return lacking_room(state.folder, state.facts.adapters)


def adapter_of(info: ChatInfo, state: EngineState) -> AdapterUse | None:
    """The chat's adapter, where it is there. A chat keeps its choice while a model without room is loaded."""
    wanted = info.settings.get("adapter")
    folder = next((one for one in adapters_here(state) if one.name == wanted), None)
    return AdapterUse(folder.name, folder) if folder is not None else None
