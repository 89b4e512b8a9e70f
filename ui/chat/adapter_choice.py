"""The LoRA adapter that answers in a chat."""

from __future__ import annotations

from pathlib import Path

from core.chat.records import ChatInfo
from core.checkpoint.adapters import AdapterShape
from core.engine.protocol import EngineState
from core.engine.request_options import AdapterUse
from core.library.adapters import adapters_by_room as by_room_of_folder


def adapters_by_room(state: EngineState) -> tuple[list[Path], list[AdapterShape]]:
    """The adapters that can be chosen now, and those that could be, had the model been loaded with room for them."""
    if state.facts is None or state.folder is None:
        return [], []
    return by_room_of_folder(state.folder, state.facts.adapters)


def adapter_of(info: ChatInfo, state: EngineState) -> AdapterUse | None:
    """The chat's adapter, where it is there. A chat keeps its choice while a model without room is loaded."""
    wanted = info.settings.get("adapter")
    folder = next((one for one in adapters_by_room(state)[0] if one.name == wanted), None)
    return AdapterUse(folder.name, folder) if folder is not None else None
