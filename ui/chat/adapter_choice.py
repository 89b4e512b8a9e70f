"""The LoRA adapter that answers in a chat."""

from __future__ import annotations

from pathlib import Path

from core.chat.records import ChatInfo
from core.checkpoint.adapter_folders import list_adapters
from core.engine.protocol import EngineState
from core.engine.request_options import AdapterUse


def adapters_here(state: EngineState) -> list[Path]:
    """The adapters that can be chosen now; none where the model was loaded without room for any."""
    if state.facts is None or not state.facts.adapters.count or state.folder is None:
        return []
    return list_adapters(state.folder)


def adapter_of(info: ChatInfo, state: EngineState) -> AdapterUse | None:
    """The chat's adapter, where it is there. A chat keeps its choice while a model without room is loaded."""
    wanted = info.settings.get("adapter")
    folder = next((one for one in adapters_here(state) if one.name == wanted), None)
    return AdapterUse(folder.name, folder) if folder is not None else None
